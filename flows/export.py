"""Flow: write a snapshot of the accepted masks. The work is in `pipeline.export`."""

from typing import Any

from flows.jobs import current_job, job_scope
from flows.options import as_flow, as_step
from pipeline.export.snapshot import export_snapshot
from schemas.errors import BusyError

PAUSES_S = (2.0, 10.0, 60.0)
"""Waits between attempts while the storage does not answer."""


@as_flow("export")
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


@as_step("write snapshot")
def write_snapshot(campaign: str, to: str | None, formats: list[str]) -> dict[str, Any]:
    """Take one snapshot and write it; while the storage does not answer, pause and begin again."""
    job = current_job()
    services = job.services
    record = services.campaign(campaign)
    target = to or f"{services.storage_url}/campaigns/{record.id}/snapshots/{job.request.id}"
    for pause_s in (*PAUSES_S, None):
        try:
            report = export_snapshot(
                services.database,
                record,
                target,
                formats,
                progress=lambda facts: job.progress(step="export", **facts),
                should_stop=job.should_stop,
                min_free_bytes=services.settings.min_free_bytes,
            )
            break
        except (BusyError, OSError) as error:
            if pause_s is None:
                raise
            job.progress(step="export", paused=str(error))
            job.wait(pause_s)
    job.check()
    return {"snapshot": report.snapshot_number, **report.model_dump(mode="json")}
