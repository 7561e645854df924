"""Flow: new tasks are handed out in the order of what there is to learn from them."""

from typing import Any

from flows.jobs import Job, current_job, job_scope
from flows.options import as_flow, as_step
from flows.passes import pins_of, run_passes
from pipeline.campaigns import is_encoded_once
from pipeline.ordering import GRID, ORDER_VERSION, SECONDS_PER_MASK, Look, look_of, order_images
from pipeline.storage import tasks
from pipeline.storage.sql import batches
from pipeline.storage.statistics import campaign_statistics
from schemas.campaigns import ImageRecord
from schemas.errors import BadInputError
from schemas.predictions import Pins, Prelabels
from schemas.requests import OrderBy


@as_flow("order")
def order_flow(campaign: str, by: OrderBy, seed: int = 0) -> dict[str, Any]:
    """Set the priorities of tasks that are new; images that come later queue up behind them.

    Args:
        campaign: Name or id.
        by: The score: see `pipeline.ordering.order_images`.
        seed: Of what is drawn.

    Returns:
        score (its name and version), seed, model and adapter, tasks (ordered), failed (images that could not be looked
        at: they come last), seconds_per_mask (what `gain` reckoned with), first (file names).

    Raises:
        BadInputError: Diversity of a model that encodes crops.
    """
    with job_scope("order", campaign, {"by": by, "seed": seed}) as job:
        record = job.services.campaign(campaign)
        if by in ("diversity", "mixed") and not is_encoded_once(record.model_id):
            raise BadInputError(
                f"{record.model_id} encodes crops, not whole images: there is nothing to tell images apart by. "
                "Order by uncertainty or gain instead."
            )
        database = job.services.database
        with database.connect() as conn:
            new = tasks.task_order(conn, record.id, new=True)
            others = [image for _, image in tasks.task_order(conn, record.id, new=False)]
            measured = campaign_statistics(conn, record.id).total.seconds_per_mask
        seconds_per_mask = measured or SECONDS_PER_MASK
        pins = pins_of(record)
        grid = {"plain": None, "diversity": 0}.get(by, GRID)
        looks = look_at(pins, [image for _, image in new], grid, "look at new images")
        labeled = look_at(pins, others, 0, "look at labeled images") if by in ("diversity", "mixed") else {}
        known = [(task, image) for task, image in new if image.id in looks]
        order = order_images(
            by,
            [looks[image.id] for _, image in known],
            labeled=[labeled[image.id] for image in others if image.id in labeled],
            seed=seed,
            seconds_per_mask=seconds_per_mask,
        )
        ordered = [known[index] for index in order]
        write_priorities(job, [task for task, _ in ordered], [task for task, _ in new], is_plain=by == "plain")
        return job.done(
            {
                "score": f"{by}-v{ORDER_VERSION}",
                "seed": seed,
                "model_digest": pins.model_digest,
                "adapter_digest": pins.adapter_digest,
                "tasks": len(known),
                "failed": len(new) - len(known),
                "seconds_per_mask": round(seconds_per_mask, 3),
                "first": [image.file_name for _, image in ordered[:5]],
            }
        )


@as_step("look at images")
def look_at(pins: Pins, images: list[ImageRecord], grid: int | None, step: str) -> dict[str, Look]:
    """What the model says about each image, by image id; those that cannot be read are left out; grid None: nothing."""
    if grid is None:
        return {image.id: Look(0.0, 0) for image in images}
    job = current_job()
    looks: dict[str, Look] = {}
    for done, (image, found) in enumerate(run_passes(job, pins, images, grid), start=1):
        if isinstance(found, Prelabels):
            looks[image.id] = look_of(found)
        job.progress(step=step, done=done, total=len(images))
    return looks


def write_priorities(job: Job, ordered: list[str], new: list[str], *, is_plain: bool) -> None:
    """Priorities below zero, the first task's the lowest; 0, which new images have, for the others and for plain."""
    priorities = dict.fromkeys(new, 0.0)
    if not is_plain:
        priorities |= {task: float(rank - len(ordered)) for rank, task in enumerate(ordered)}
    job.check()
    for batch in batches(priorities.items()):
        with job.services.database.begin() as conn:
            tasks.set_priorities(conn, dict(batch))
