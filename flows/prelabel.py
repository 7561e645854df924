"""Flow: the campaign's model looks at new images by itself; what it finds become proposals for annotators."""

from typing import Any

from flows.jobs import current_job, job_scope
from flows.options import as_flow, as_step
from flows.passes import pins_of, run_passes
from pipeline.prelabels import PASS_VERSION, SAME_IOU
from pipeline.storage import prelabels
from schemas.predictions import Pins, Prelabels
from schemas.requests import DEFAULT_MIN_SCORE


@as_flow("prelabel")
def prelabel_flow(
    campaign: str, grid: int = 8, min_score: float = DEFAULT_MIN_SCORE, limit: int | None = None
) -> dict[str, Any]:
    """Propose masks on images whose task is new and that have no prelabels of the live model and adapter.

    Args:
        campaign: Name or id.
        grid: Clicks per side.
        min_score: Masks with a lower estimate of their quality are dropped.
        limit: Images that were not looked at before; None: all.

    Returns:
        images (looked at), new_images (not looked at before), proposals, stored (new ones), empty (images without
        any), failed (images) with examples, and the model, adapter, grid, min_score and version of the pass.
    """
    with job_scope("prelabel", campaign, {"grid": grid, "min_score": min_score, "limit": limit}) as job:
        record = job.services.campaign(campaign)
        pins = pins_of(record)
        counts = {"images": 0, "new_images": 0, "proposals": 0, "stored": 0, "empty": 0, "failed": 0}
        reasons: dict[str, str] = {}
        seen: list[str] = []
        while limit is None or counts["new_images"] < limit:
            wanted = None if limit is None else limit - counts["new_images"]
            if not (done := prelabel_images(campaign, pins, grid, min_score, wanted, seen, counts, reasons)):
                break
            seen += done
        facts = {"model_digest": pins.model_digest, "adapter_digest": pins.adapter_digest, "version": PASS_VERSION}
        return job.done({**counts, "reasons": reasons, "grid": grid, "min_score": min_score, **facts})


@as_step("prelabel images")
def prelabel_images(
    campaign: str,
    pins: Pins,
    grid: int,
    min_score: float,
    limit: int | None,
    seen: list[str],
    counts: dict[str, int],
    reasons: dict[str, str],
) -> list[str]:
    """Look at the next images of the queue and store what is found, image by image; the images' ids.

    Args:
        campaign: Name or id.
        pins: Model and adapter.
        grid: Clicks per side.
        min_score: See the flow.
        limit: Images at most.
        seen: Ids of images to pass over.
        counts: Of the flow's result, counted on.
        reasons: File name to why it failed, a few.
    """
    job = current_job()
    database = job.services.database
    record = job.services.campaign(campaign)
    with database.connect() as conn:
        todo = prelabels.images_to_prelabel(conn, record.id, pins, limit, seen)
    number = record.categories[0].number if len(record.categories) == 1 else None
    total = counts["images"] + counts["failed"] + len(todo)
    for image, found in run_passes(job, pins, todo, grid):
        if isinstance(found, Prelabels):
            good = [mask for mask in found.masks if mask.score >= min_score]
            with database.connect() as conn:
                good = prelabels.distinct_from_stored(conn, record.id, image.id, pins, good, SAME_IOU)
            with database.begin() as conn:
                counts["stored"] += prelabels.store_prelabels(conn, record.id, image.id, pins, good, number)
            counts["images"] += 1
            counts["new_images"] += found.is_new
            counts["proposals"] += len(good)
            counts["empty"] += not good
        else:
            counts["failed"] += 1
            counts["new_images"] += 1
            if len(reasons) < 5:
                reasons[image.file_name] = found.reason
        job.progress(step="prelabel", done=counts["images"] + counts["failed"], total=total)
    return [image.id for image in todo]
