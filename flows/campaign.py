"""Flow: everything that a campaign needs, in order: (create,) ingest, precompute, retrain, export."""

from typing import Any

from flows.imports import store_masks
from flows.jobs import current_job, job_scope
from flows.kinds import flow_of
from flows.options import as_flow, as_step
from flows.services import open_services
from flows.triggers import fire_triggers
from pipeline.campaigns import CampaignSpec, create_campaign
from schemas.settings import Settings

STEPS = ("ingest", "precompute", "retrain", "export")
"""What a campaign goes through, in this order."""


@as_flow("campaign")
def campaign_flow(
    campaign: str | None = None, create: dict[str, Any] | None = None, steps: list[str] | None = None
) -> dict[str, Any]:
    """Carry a campaign through its steps.

    Args:
        campaign: Name or id; None when it is to be created.
        create: A new campaign's `CampaignSpec`; then the only step, unless `steps` says otherwise, is ingest.
        steps: Of ingest, precompute, retrain, export; None: all.

    Returns:
        The campaign's id, name and model, and the result of each step under its name.
    """
    with job_scope("campaign", campaign, {"create": create, "steps": steps}) as job:
        name = campaign or make_campaign(create or {})
        results = {step: flow_of(step)(name) for step in steps or (["ingest"] if create else list(STEPS))}
        if create and create.get("annotations"):
            results["import"] = store_masks(name, create["annotations"], None, "object", None, trusted=True, look=False)
        record = job.services.campaign(name)
        facts = {"campaign_id": record.id, "name": record.name, "model_id": record.model_id}
        return job.done(facts | results)


@as_step("create campaign")
def make_campaign(create: dict[str, Any]) -> str:
    """Publish the model into the storage and write the campaign's row; its id. Again with the same id: the same."""
    job = current_job()
    job.progress(step="create")
    services = job.services
    return create_campaign(services.database, services.storage_url, CampaignSpec.model_validate(create)).id


@as_flow("triggers")
def triggers_flow() -> dict[str, Any]:
    """Request what campaigns' triggers ask for, by the clock of a Prefect server."""
    with open_services(Settings()) as services:
        return {"fired": fire_triggers(services.database)}
