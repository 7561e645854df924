"""The encoder: images to stored embeddings, each once, an annotator's missing image before bulk work.

Three kinds of threads overlap: decoding, the forward pass (one, in batches of at most 100 ms on the CPU, after each of
which it looks at the interactive lane), and storing. Knows the storage; does not know SQL or who asks.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.embeddings.codec import embedding_digest, encode_bytes
from pipeline.embeddings.store import EmbeddingStore
from pipeline.inference.preprocess import image_to_input
from pipeline.ingest.decode import read_image
from pipeline.memory import keep_freed_memory
from pipeline.models._base import Encoding, InteractiveModel
from pipeline.storage.files import patience, storage_error
from pipeline.storage.weights import load_model_by_digest
from schemas.errors import (
    BadCheckpointError,
    BadInputError,
    BusyError,
    ClickloopError,
    CorruptDataError,
    EmbeddingMissingError,
    ForbiddenError,
    NotFoundError,
    OutOfSpaceError,
)
from schemas.predictions import Encoded, EncodeFailure, ImageRef
from workers.cores import be_nice, device, has_few_cores, heavy_turn, use_threads
from workers.lanes import Lane, Lanes
from workers.lru import Lru

logger = logging.getLogger(__name__)

BATCH_SECONDS = 0.1
"""Work of one forward batch, after which the interactive lane is looked at."""
CPU_BATCH = 8
GPU_BATCH = 32
_MODELS = 2


@dataclass(eq=False)
class _Job:
    image: ImageRef
    model_digest: str
    model_key: str
    expected_digest: str | None
    lane: Lane
    future: "Future[Encoded]" = field(default_factory=Future)
    inputs: Tensor | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.model_key, self.image.sha256


class Encoder:
    """Encodes images and puts the embeddings into the store.

    Args:
        storage_url: Of embeddings and models.
        threads: Torch threads of the forward pass.
        cache_dir: Local copies of what a remote storage holds; None: none.
        max_image_pixels: Larger images are refused.
        min_free_bytes: Storing stops before the disk has less than this.
    """

    def __init__(
        self,
        *,
        storage_url: str,
        threads: int = 1,
        cache_dir: str | None = None,
        max_image_pixels: int = 120_000_000,
        min_free_bytes: int = 0,
    ) -> None:
        keep_freed_memory()
        self._storage_url = storage_url
        self._threads = threads
        self._cache_dir = cache_dir
        self._max_image_pixels = max_image_pixels
        self.device = device()
        self._max_batch = GPU_BATCH if self.device == "cuda" else CPU_BATCH
        self._store = EmbeddingStore(storage_url, cache_dir, min_free_bytes)
        self._models: Lru[str, InteractiveModel] = Lru(_MODELS)
        self._loading = threading.Lock()
        self._changed = threading.Condition()  # guards everything below
        self._in_flight: dict[tuple[str, str], _Job] = {}
        self._to_decode: Lanes[_Job] = Lanes()
        self._to_forward: Lanes[_Job] = Lanes()
        self._decoding = 0
        self._is_closed = False
        self._seconds_per_image: dict[tuple[str, torch.Size], float] = {}
        self._counts = {"encoded": 0, "coalesced": 0, "present": 0, "failed": 0, "batches": 0, "forward_ms": 0}
        self._storing = ThreadPoolExecutor(2, "store", initializer=be_nice)
        decoders = 1 if has_few_cores() else 4
        self._threads_running = [threading.Thread(target=self._decode_loop, daemon=True) for _ in range(decoders)]
        self._threads_running.append(threading.Thread(target=self._forward_loop, daemon=True))
        for thread in self._threads_running:
            thread.start()

    def submit(
        self,
        image: ImageRef,
        model_digest: str,
        model_key: str,
        lane: Lane = "interactive",
        expected_digest: str | None = None,
    ) -> "Future[Encoded]":
        """Queue an image. Asking again while it is under way gives the same future.

        Args:
            image: To encode.
            model_digest: Of the weights.
            model_key: Under which the embedding is stored.
            lane: "interactive" comes before "bulk", also for a job that waited as bulk.
            expected_digest: Of the pins: a stored embedding with another digest is taken for corrupt.
        """
        with self._changed:
            if self._is_closed:
                raise BusyError("The encoder is closing. Try again.")
            job = self._in_flight.get((model_key, image.sha256))
            if job is not None:
                self._counts["coalesced"] += 1
                if lane == "interactive" and job.lane == "bulk":
                    job.lane = lane
                    self._to_decode.promote(job)
                    self._to_forward.promote(job)
                    self._changed.notify_all()
                return job.future
            job = _Job(image, model_digest, model_key, expected_digest, lane)
            job.future.set_running_or_notify_cancel()  # others may wait for it: whoever stops asking cannot cancel it
            self._in_flight[job.key] = job
            self._to_decode.add(lane, job)
            self._changed.notify_all()
        return job.future

    async def encode(
        self,
        image: ImageRef,
        model_digest: str,
        model_key: str,
        lane: Lane = "interactive",
        expected_digest: str | None = None,
    ) -> Encoded:
        """Encode one image unless it is stored already. See `submit`.

        Raises:
            BadImageError: It cannot be decoded.
            CorruptDataError: The file is not the one that was ingested.
            OutOfSpaceError: The disk is nearly full.
            BusyError: The storage or the image's source does not answer.
            ForbiddenError: It refuses the credentials.
        """
        future = self.submit(image, model_digest, model_key, lane, expected_digest)
        return await asyncio.wrap_future(future)

    async def encode_chunk(
        self, images: Sequence[ImageRef], model_digest: str, model_key: str
    ) -> list[Encoded | EncodeFailure]:
        """Encode images in the bulk lane; one that fails does not hold up the others.

        Returns:
            One answer per image, in order.
        """
        futures = [asyncio.wrap_future(self.submit(i, model_digest, model_key, "bulk")) for i in images]
        done = await asyncio.gather(*futures, return_exceptions=True)
        return [
            answer if isinstance(answer, Encoded) else failure_of(image.sha256, answer)
            for image, answer in zip(images, done, strict=True)
        ]

    def stats(self) -> dict[str, int]:
        """Counts since the start, and images under way now."""
        with self._changed:
            return {**self._counts, "in_flight": len(self._in_flight)}

    def close(self) -> None:
        """Refuse new work, fail what waits, finish what is under way."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads_running:
            thread.join()
        for job in [*self._to_decode.drain(), *self._to_forward.drain()]:
            self._fail(job, BusyError("The encoder is closing. Try again."))
        self._storing.shutdown()

    def _decode_loop(self) -> None:
        be_nice()
        while (job := self._next_to_decode()) is not None:
            stored = None
            try:
                with _waiting(job):
                    stored = self._stored(job)
                    if stored is None:
                        job.inputs = self._inputs(job)
            except Exception as error:
                self._fail(job, error)
            if stored is not None:
                self._finish(job, stored)
            with self._changed:
                self._decoding -= 1
                if job.inputs is not None:
                    self._to_forward.add(job.lane, job)
                self._changed.notify_all()

    def _next_to_decode(self) -> _Job | None:
        with self._changed:
            while not self._is_closed:
                ahead = self._decoding + self._to_forward.waiting("bulk")
                if self._to_decode.waiting("interactive"):
                    self._decoding += 1
                    return self._to_decode.take("interactive")[0]
                if self._to_decode.waiting("bulk") and ahead < 2 * self._max_batch:
                    self._decoding += 1
                    return self._to_decode.take("bulk")[0]
                self._changed.wait()
        return None

    def _stored(self, job: _Job) -> Encoded | None:
        """What the store has already; a damaged embedding is deleted."""
        try:
            data = self._store.get(job.model_key, job.image.sha256, job.expected_digest)
        except EmbeddingMissingError:
            return None
        except CorruptDataError as error:
            logger.warning("computing a corrupt embedding again: sha256=%s: %s", job.image.sha256, error)
            self._store.delete(job.model_key, job.image.sha256)
            return None
        return Encoded(sha256=job.image.sha256, digest=embedding_digest(data), size=len(data), is_new=False)

    def _inputs(self, job: _Job) -> Tensor:
        model = self.model(job.model_digest)
        if model.cut != "image":
            raise BadInputError(f"Model {model.model_id!r} encodes crops: there is nothing to store.")
        return image_to_input(model, read_image(job.image, max_pixels=self._max_image_pixels))

    def model(self, digest: str) -> InteractiveModel:
        """The bare model with these weights, loaded when it is not held."""
        with self._loading:
            model = self._models.get(digest)
            if model is None:
                model = load_model_by_digest(self._storage_url, digest, cache_dir=self._cache_dir, device=self.device)
                self._models.put(digest, model)
        return model

    def _forward_loop(self) -> None:
        be_nice()
        use_threads(self._threads)
        while batch := self._next_batch():
            try:
                encodings = self._forward(batch)
            except Exception as error:
                logger.exception("the forward pass failed: images=%s", [job.image.sha256 for job in batch])
                for job in batch:
                    self._fail(job, error)
                continue
            for job, encoding in zip(batch, encodings, strict=True):
                self._storing.submit(self._put, job, encoding)

    def _next_batch(self) -> list[_Job]:
        with self._changed:
            while not self._is_closed:
                lanes: tuple[Lane, Lane] = ("interactive", "bulk")
                for lane in lanes:
                    if self._to_forward.waiting(lane):
                        first = self._to_forward.first(lane)
                        batch = self._to_forward.take(lane, self._batch_limit(first), _are_alike)
                        self._changed.notify_all()  # decoders may go ahead
                        return batch
                self._changed.wait()
        return []

    def _batch_limit(self, job: _Job) -> int:
        if self.device != "cpu":
            return self._max_batch
        seconds = self._seconds_per_image.get(_shape(job), BATCH_SECONDS)
        return max(1, min(self._max_batch, int(BATCH_SECONDS / seconds)))

    def _forward(self, batch: list[_Job]) -> list[Encoding]:
        model = self.model(batch[0].model_digest)
        inputs = torch.cat([job.inputs for job in batch if job.inputs is not None])
        with heavy_turn():
            started = time.perf_counter()
            with torch.inference_mode():
                encoding = model.encode(inputs.to(self.device)).to("cpu")
            spent = time.perf_counter() - started
        seconds = spent / len(batch)
        with self._changed:
            before = self._seconds_per_image.get(_shape(batch[0]), seconds)
            self._seconds_per_image[_shape(batch[0])] = (before + seconds) / 2
            self._counts["batches"] += 1
            self._counts["forward_ms"] += round(1000 * spent)
        return [encoding.select(index) for index in range(len(batch))]

    def _put(self, job: _Job, encoding: Encoding) -> None:
        try:
            data = encode_bytes(encoding)
            with _waiting(job):
                digest = self._store.put(job.model_key, job.image.sha256, data)
        except Exception as error:
            self._fail(job, error)
            return
        self._finish(job, Encoded(sha256=job.image.sha256, digest=digest, size=len(data)))

    def _finish(self, job: _Job, encoded: Encoded) -> None:
        with self._changed:
            self._counts["encoded" if encoded.is_new else "present"] += 1
            del self._in_flight[job.key]
        job.future.set_result(encoded)

    def _fail(self, job: _Job, error: Exception) -> None:
        with self._changed:
            self._counts["failed"] += 1
            del self._in_flight[job.key]
        if not isinstance(error, ClickloopError) and isinstance(error, OSError):
            error = storage_error(error, f"Encoding {job.image.uri}")
        job.future.set_exception(error)


def _waiting(job: _Job) -> AbstractContextManager[None]:
    """In bulk it is whoever gives out the images that waits for a storage, once for all of them, and says so."""
    return patience(0) if job.lane == "bulk" else nullcontext()


def _shape(job: _Job) -> tuple[str, torch.Size]:
    assert job.inputs is not None, "decoded"
    return job.model_digest, job.inputs.shape


def _are_alike(first: _Job, second: _Job) -> bool:
    return _shape(first) == _shape(second)


def failure_of(sha256: str, error: BaseException) -> EncodeFailure:
    """An error as an image's answer, and whether the image is to blame."""
    if isinstance(error, OSError):
        error = storage_error(error, "Encoding it")
    code = error.code if isinstance(error, ClickloopError) else "error"
    reason = str(error) or type(error).__name__
    blameless = BusyError | ForbiddenError | OutOfSpaceError | NotFoundError | BadCheckpointError
    is_image_fault = not isinstance(error, blameless)
    return EncodeFailure(sha256=sha256, code=code, reason=reason, is_image_fault=is_image_fault)
