"""Flow: register a source's images in the catalogue, in place. The work is in `pipeline.ingest`."""

from typing import Any

from flows.jobs import current_job, job_scope
from flows.options import as_flow, as_step
from pipeline.ingest.scan import ingest


@as_flow("ingest")
def ingest_flow(campaign: str, images: str | None = None, readmit: bool = False) -> dict[str, Any]:
    """Look through a source and register what is new or changed.

    Args:
        campaign: Name or id.
        images: URL of the source; None: the campaign's own.
        readmit: Take images again that were purged.

    Returns:
        Counts: registered, duplicates, unchanged, quarantined, purged, moved, gone; see `IngestReport`.
    """
    with job_scope("ingest", campaign, {"images": images, "readmit": readmit}) as job:
        return job.done(register_images(campaign, images, readmit))


@as_step("register images")
def register_images(campaign: str, images: str | None, readmit: bool) -> dict[str, Any]:
    """One pass over the source; safe to run twice, since what is registered already is skipped by its listing."""
    job = current_job()
    record = job.services.campaign(campaign)
    report = ingest(
        job.services.database,
        record,
        images or record.source_url,
        progress=lambda facts: job.progress(step="ingest", **facts),
        should_stop=job.should_stop,
        max_pixels=job.services.settings.max_image_pixels,
        readmit=readmit,
    )
    job.check()
    return report.model_dump(mode="json")
