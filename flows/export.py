"""Flow: write a snapshot of the accepted masks. The work is in `pipeline.export`."""

from typing import Any

from prefect import flow, task

from flows.jobs import current_job, job_scope
from flows.options import FLOW, STEP
from pipeline.export.snapshot import export_snapshot


@flow(name="export", **FLOW)
def export_flow(campaign: str, to: str | None = None, formats: list[str] | None = None) -> dict[str, Any]:
    """Write a snapshot directory, its manifest last.

    Args:
        campaign: Name or id.
        to: URL to write to; None: below the campaign's folder in the storage.
        formats: Of coco, parquet, png; None: coco and parquet.

    Returns:
        The manifest's URI, snapshot number, counts and files.
    """
    with job_scope("export", campaign, {"to": to, "formats": formats}) as job:
        return job.done(write_snapshot(campaign, to, formats or ["coco", "parquet"]))


@task(name="write snapshot", **STEP)
def write_snapshot(campaign: str, to: str | None, formats: list[str]) -> dict[str, Any]:
    """Take and write one snapshot."""
    job = current_job()
    services = job.services
    record = services.campaign(campaign)
    report = export_snapshot(
        services.database,
        record,
        to or f"{services.storage_url}/campaigns/{record.id}/snapshots/{job.request.id}",
        formats,
        progress=lambda facts: job.progress(step="export", **facts),
        should_stop=job.should_stop,
    )
    job.check()
    return report.model_dump(mode="json")
