"""Prelabel passes of many images on the encoder actors, whatever becomes of them: `prelabel` stores, `order` ranks.

Images go out a few at a time. What a pass found is kept by the actors, so a run that was stopped asks again and soon
is where it ended.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from flows.encode_window import Chunk, EncodeWindow
from flows.jobs import Job
from flows.outages import FATAL, Outage
from schemas.campaigns import CampaignRecord, ImageRecord
from schemas.errors import ClickloopError
from schemas.predictions import EncodeFailure, Pins, Prelabels

CHUNK = 2
"""A pass takes seconds; a stopped run leaves at most what is in flight to be finished by the actors."""
MAX_ATTEMPTS = 3


def pins_of(record: CampaignRecord) -> Pins:
    """The campaign's model with the adapter that is live now."""
    return Pins(
        model_digest=record.model_digest,
        model_key=record.model_key,
        adapter_digest=record.live_adapter,
    )


def run_passes(
    job: Job, pins: Pins, images: Sequence[ImageRecord], grid: int
) -> Iterator[tuple[ImageRecord, Prelabels | EncodeFailure]]:
    """Each image with what the model found, or why nothing was; in the order in which they are ready.

    Args:
        job: Stops it when it should stop.
        pins: Model and adapter.
        images: To look at.
        grid: Clicks per side; 0: only the features.

    Raises:
        BadCheckpointError: The weights do not load.
        NotFoundError: The storage has no such weights.
        OutOfSpaceError: The disk is nearly full.
        ForbiddenError: The storage refuses the credentials.
        BusyError: It did not answer for as long as the settings allow.
        ClickloopError: An actor failed at the same image three times, for no fault of the image's.
    """
    todo, outage, attempts = list(images), Outage(job), Counter[str]()

    def submit(actor: Any, chunk: Chunk) -> Any:
        return actor.prelabel_chunk.remote([image.ref for image in chunk], pins, grid)

    while todo:
        retry: list[ImageRecord] = []
        pause, moved = "", False
        pool = job.services.pool(job.check)
        window = EncodeWindow(list(pool.encoders.values()), submit, job.check_calls)
        for result in window.run(_chunks(todo, attempts)):
            if result.crashed or result.error:
                attempts.update(image.id for image in result.chunk)
            for image in result.chunk if result.crashed or result.error else ():
                if attempts[image.id] < MAX_ATTEMPTS:
                    retry.append(image)
                elif result.error:
                    raise ClickloopError(f"No prelabels of {image.file_name}: {result.error}"[:1000])
                else:
                    reason = f"Looking at it killed the worker {MAX_ATTEMPTS} times."
                    yield image, EncodeFailure(sha256=image.sha256, code="error", reason=reason, is_image_fault=True)
            for image, answer in zip(result.chunk, result.answers, strict=False):
                if isinstance(answer, Prelabels) or answer.is_image_fault:
                    moved = True
                    yield image, answer
                elif answer.code in FATAL:
                    raise FATAL[answer.code](answer.reason)
                else:
                    retry.append(image)
                    pause = answer.reason
        todo = retry
        if pause:
            outage.wait(pause, moved)


def _chunks(images: Sequence[ImageRecord], attempts: Counter[str]) -> Iterator[Chunk]:
    """A few at a time; those that failed before alone."""
    fresh = [image for image in images if not attempts[image.id]]
    for start in range(0, len(fresh), CHUNK):
        yield fresh[start : start + CHUNK]
    yield from ([image] for image in images if attempts[image.id])
