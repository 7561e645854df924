"""Flow: encode every image of a campaign that has no embedding yet, shard by shard.

A step drives the encoder actors directly, since a Prefect task per chunk would cost more than the chunk. What is stored
is noted in short transactions, so that a run that was stopped goes on where it ended.
"""

import time
from collections.abc import Iterator
from typing import Any

from flows.encode_window import Chunk, ChunkResult, EncodeWindow
from flows.jobs import Job, JobStoppedError, current_job, job_scope
from flows.options import as_flow, as_step
from flows.outages import FATAL, Outage
from pipeline.campaigns import is_encoded_once
from pipeline.storage import campaigns, images
from schemas.campaigns import CampaignRecord
from schemas.predictions import Encoded, EncodeFailure

SHARD = 1000
"""Images of one flow step."""
CHUNK = 32
MAX_ATTEMPTS = 3


@as_flow("precompute")
def precompute_flow(campaign: str) -> dict[str, Any]:
    """Encode what is missing.

    Returns:
        Counts: encoded, already (there before), quarantined; seconds and images per second of encoding.
    """
    with job_scope("precompute", campaign, {}) as job:
        record = job.services.campaign(campaign)
        if not is_encoded_once(record.model_id):
            text = f"{record.model_id} encodes crops, not whole images: there is nothing to precompute."
            return job.done(_result({"encoded": 0, "already": 0, "quarantined": 0}, 0.0) | {"skipped": text})
        with job.services.database.connect() as conn:
            total = images.count_missing_embeddings(conn, record.id, record.model_key)
            already = campaigns.campaign_status(conn, record.id).embeddings
        job.progress(step="encode", done=0, total=total)
        if total:
            job.services.pool(job.check)  # its start is no part of the rate
        began = time.monotonic()
        counts = {"encoded": 0, "already": already, "quarantined": 0}
        after: int | None = 0
        while after is not None:
            shard = encode_shard(campaign, after, sum(counts.values()) - already, total)
            counts = {name: count + shard[name] for name, count in counts.items()}
            after = shard["after"]
        return job.done(_result(counts, time.monotonic() - began))


def _result(counts: dict[str, int], seconds: float) -> dict[str, Any]:
    rate = counts["encoded"] / seconds if counts["encoded"] else 0.0
    return counts | {"seconds": round(seconds, 3), "images_per_s": round(rate, 3)}


@as_step("encode shard")
def encode_shard(campaign: str, after: int, done: int, total: int) -> dict[str, Any]:
    """Encode the next `SHARD` images that lack an embedding, by number.

    Returns:
        encoded, already (stored, but not noted), quarantined, and `after`: the number to go on from, None at the end.
    """
    job = current_job()
    record = job.services.campaign(campaign)
    with job.services.database.connect() as conn:
        shard = images.missing_embeddings(conn, record.id, record.model_key, SHARD, after)
    if not shard:
        return {"encoded": 0, "already": 0, "quarantined": 0, "after": None}
    work = _Shard(job, record, done, total)
    work.run(shard)
    counts = {"encoded": work.encoded, "already": work.already, "quarantined": work.quarantined}
    return {**counts, "after": shard[-1].number}


class _Shard:
    """One shard under way: what is to be done again, what was noted."""

    def __init__(self, job: Job, record: CampaignRecord, done: int, total: int) -> None:
        self.job, self.record, self.done, self.total = job, record, done, total
        self.database = job.services.database
        self.encoded = self.already = self.quarantined = 0
        self.retry: Chunk = []
        self.pause: str = ""
        self.unheard: set[str] = set()
        """Images whose attempt is noted, and of which nothing was heard since."""

    def run(self, shard: Chunk) -> None:
        """Encode all of it; an end that is no image's fault counts as no attempt of those that were under way."""
        try:
            self._run(shard)
        except (JobStoppedError, *FATAL.values()):
            with self.database.begin() as conn:
                images.forget_encode_attempts(conn, sorted(self.unheard))
            raise

    def _run(self, shard: Chunk) -> None:
        """Encode all of it; pauses while the storage does not answer."""
        todo, outage = shard, Outage(self.job)
        while todo:
            self.retry, self.pause, before = [], "", self.encoded + self.already
            pool = self.job.services.pool(self.job.check)
            window = EncodeWindow(list(pool.encoders.values()), self._submit, self.job.check_calls)
            for result in window.run(self._chunks(todo)):
                self._note(result)
            todo = self.retry
            if self.pause:
                outage.wait(self.pause, self.encoded + self.already > before)

    def _submit(self, actor: Any, chunk: Chunk) -> Any:
        refs = [image.ref for image in chunk]
        return actor.encode_chunk.remote(refs, self.record.model_digest, self.record.model_key)

    def _chunks(self, todo: Chunk) -> Iterator[Chunk]:
        """Chunks to give out, their attempt committed: images that were tried before go alone, or to quarantine."""
        for start in range(0, len(todo), CHUNK):
            part = todo[start : start + CHUNK]
            self.unheard |= {image.id for image in part}
            with self.database.begin() as conn:
                attempts = images.note_encode_attempt(conn, [image.id for image in part])
                for image in part:
                    if attempts[image.id] > MAX_ATTEMPTS:
                        self._quarantine(conn, image.id, f"Encoding it failed {MAX_ATTEMPTS} times.")
            fresh = [image for image in part if attempts[image.id] == 1]
            if fresh:
                yield fresh
            yield from ([image] for image in part if 1 < attempts[image.id] <= MAX_ATTEMPTS)

    def _note(self, result: ChunkResult) -> None:
        """Write down what came of a chunk; what failed is kept for another try, or quarantined."""
        self.unheard -= {image.id for image in result.chunk}
        by_sha = {image.sha256: image for image in result.chunk}
        if result.crashed:
            self.retry += result.chunk
        stored = [answer for answer in result.answers if isinstance(answer, Encoded)]
        failed = [answer for answer in result.answers if isinstance(answer, EncodeFailure)]
        blameless = [by_sha[failure.sha256] for failure in failed if not failure.is_image_fault]
        if result.error:
            blameless, self.pause = result.chunk, result.error
        with self.database.begin() as conn:
            images.record_embeddings(conn, self.record.model_key, [(s.sha256, s.digest, s.size) for s in stored])
            images.forget_encode_attempts(conn, [image.id for image in blameless])
            for failure in failed:
                image = by_sha[failure.sha256]
                if failure.code in ("bad_image", "corrupt_data"):
                    self._quarantine(conn, image.id, failure.reason)
                elif failure.is_image_fault:
                    self.retry.append(image)
        self.retry += blameless
        self.encoded += sum(answer.is_new for answer in stored)
        self.already += sum(not answer.is_new for answer in stored)
        for failure in failed:
            if failure.code in FATAL:
                raise FATAL[failure.code](failure.reason)
            if not failure.is_image_fault:
                self.pause = failure.reason
        self._progress()

    def _quarantine(self, conn: Any, image_id: str, reason: str) -> None:
        images.quarantine_image(conn, image_id, reason)
        self.quarantined += 1

    def _progress(self) -> None:
        done = self.done + self.encoded + self.already + self.quarantined
        self.job.progress(step="encode", done=done, total=self.total)
