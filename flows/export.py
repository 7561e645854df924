"""Flow: write a snapshot of the accepted masks. The work is in `pipeline.export`."""

from typing import Any, Literal

from flows.jobs import Job, current_job, job_scope
from flows.options import as_flow, as_step
from pipeline.export.filters import named_filters
from pipeline.export.snapshot import ExportReport, export_snapshot, published_report
from pipeline.export.splits import Splits
from pipeline.storage import changes, snapshots
from schemas.errors import BadInputError, CorruptDataError, NotFoundError


@as_flow("export")
def export_flow(
    campaign: str,
    to: str | None = None,
    formats: list[str] | None = None,
    categories: list[str] | None = None,
    since: str | None = None,
    until: str | None = None,
    annotators: list[str] | None = None,
    states: list[str] | None = None,
    sure: bool | None = None,
    min_score: float | None = None,
    val: float = 0.0,
    test: float = 0.0,
    images: Literal["embedded", "uri"] = "embedded",
    since_snapshot: str | None = None,
) -> dict[str, Any]:
    """Write a snapshot directory, its manifest last.

    Args:
        campaign: Name or id.
        to: URL to write to; None: below the campaign's folder in the storage.
        formats: See `schemas.requests.Export`, as for the others; None: coco and parquet.
        categories: Names.
        since: Time with a zone.
        until: Time with a zone.
        annotators: Names or pseudonyms.
        states: Of tasks.
        sure: True: without masks that an annotator flagged as unsure.
        min_score: Without masks whose model states a lower IoU.
        val: Share to validate on.
        test: Share to test on.
        images: Whether image files are copied or named.
        since_snapshot: Number or id of an older one; None: everything is written.

    Returns:
        The manifest's URI, snapshot number, counts, and the first files; the manifest lists all.
    """
    filters: dict[str, Any] = {"categories": categories, "annotators": annotators, "states": states}
    filters |= {"since": since, "until": until, "sure": sure, "min_score": min_score}
    parts = {"val": val, "test": test}
    asked = {"to": to, "formats": formats, "images": images, "since_snapshot": since_snapshot} | filters | parts
    with job_scope("export", campaign, asked) as job:
        chosen = formats or ["coco", "parquet"]
        return job.done(write_snapshot(campaign, to, chosen, filters, Splits(**parts), images, since_snapshot))


@as_step("write snapshot")
def write_snapshot(
    campaign: str,
    to: str | None,
    formats: list[str],
    filters: dict[str, Any],
    splits: Splits,
    images: Literal["embedded", "uri"],
    since_snapshot: str | None,
) -> dict[str, Any]:
    """Take one snapshot and write it, or finish the one that the same export began at the same URL."""
    job = current_job()
    services = job.services
    record = services.campaign(campaign)
    with services.database.connect() as conn:
        wanted = named_filters(conn, record.id, **filters)
        if since_snapshot is not None:
            changes.require_written(conn, record.id, since_snapshot)
    target = to or f"{services.storage_url}/campaigns/{record.id}/snapshots/{job.request.id}"
    report = _published_before(job, target) or export_snapshot(
        services.database,
        record,
        target,
        formats,
        filters=wanted,
        splits=splits,
        images=images,
        since_snapshot=since_snapshot,
        progress=lambda facts: job.progress(step="export", **facts),
        should_stop=job.should_stop,
        min_free_bytes=services.settings.min_free_bytes,
    )
    if report.stopped:
        job.check()
    return report.as_result()


def _published_before(job: Job, target: str) -> ExportReport | None:
    """What an earlier attempt of this request published before its process died, or the database went away."""
    if job.request.attempt < 2:
        return None
    try:
        report = published_report(target)
        with job.services.database.connect() as conn:
            snapshot = snapshots.get_snapshot(conn, report.snapshot_id)
    except (NotFoundError, CorruptDataError, BadInputError):
        return None  # nothing, or nothing of this catalogue: the export says what it thinks of that
    return report if snapshot.created_at >= job.request.created_at else None
