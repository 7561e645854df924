"""Flows: masks that other tools made, or that a near-duplicate has, become proposals to correct, or truth."""

from typing import Any

from flows.jobs import current_job, job_scope
from flows.options import as_flow, as_step
from pipeline.imports import import_source
from pipeline.imports.propose import propose_in_groups
from schemas.requests import ImportFormat


@as_flow("import")
def import_flow(
    campaign: str,
    source: str,
    format: ImportFormat | None = None,
    category: str = "object",
    min_score: float | None = None,
    trusted: bool = False,
    look: bool = False,
) -> dict[str, Any]:
    """Read annotations and store their masks.

    Args:
        campaign: Name or id.
        source: File or folder, on any storage.
        format: One of `IMPORT_FORMATS`; None: by what is there.
        category: Of the instances of instance maps.
        min_score: Leave out what COCO's results score lower.
        trusted: They count as they are; else once somebody has accepted them.
        look: Only count what is there.

    Returns:
        See `pipeline.imports.store.ImportReport`.
    """
    asked: dict[str, Any] = {"source": source, "format": format, "category": category, "min_score": min_score}
    asked |= {"trusted": trusted, "look": look}
    with job_scope("import", campaign, asked) as job:
        return job.done(store_masks(campaign, source, format, category, min_score, trusted, look))


@as_step("store masks")
def store_masks(
    campaign: str,
    source: str,
    format: ImportFormat | None,
    category: str,
    min_score: float | None,
    trusted: bool,
    look: bool,
) -> dict[str, Any]:
    """Read, count, store; safe to run twice, since what is stored is known by its id."""
    job = current_job()
    record = job.services.campaign(campaign)

    def on_batch(done: int) -> None:
        job.check()
        job.progress(step="import", done=done)

    report = import_source(
        job.services.database,
        record,
        source,
        given=format,
        category=category,
        min_score=min_score,
        is_trusted=trusted,
        is_look=look,
        on_batch=on_batch,
    )
    return report.model_dump(mode="json")


@as_flow("propose")
def propose_flow(campaign: str) -> dict[str, Any]:
    """Propose the masks of labelled images to their near-duplicates.

    Args:
        campaign: Name or id.

    Returns:
        See `pipeline.imports.propose.ProposeReport`.
    """
    with job_scope("propose", campaign, {}) as job:
        return job.done(propose_masks(campaign))


@as_step("propose masks")
def propose_masks(campaign: str) -> dict[str, Any]:
    """Look for groups and store; safe to run twice, since images that have proposals are left alone."""
    job = current_job()

    def on_batch(done: int) -> None:
        job.check()
        job.progress(step="propose", done=done)

    return propose_in_groups(job.services.database, job.services.campaign(campaign), on_batch).model_dump(mode="json")
