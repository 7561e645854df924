"""The trainer: trains adapters and evaluates them, one job at a time, and tells how far it is meanwhile.

A training that was killed goes on from its checkpoint when the same job is given again, and a finished one is answered
at once; a checkpoint that is damaged or of other data is left behind. Knows the storage; does not know SQL, the gate or
when to train.
"""

import logging
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from torch import Tensor

from pipeline.adapters.evaluate import AdapterReport, EvaluationConfig, evaluate_adapter
from pipeline.adapters.files import AdapterMeta
from pipeline.adapters.scenes import AdapterImage
from pipeline.adapters.source import CachedSource
from pipeline.adapters.steps import AdapterConfig
from pipeline.adapters.stored import publish_adapter, stored_source, why_unreadable
from pipeline.adapters.train import AdapterResult, train_adapter
from pipeline.memory import keep_freed_memory
from pipeline.models._base import InteractiveModel
from pipeline.storage.files import as_space_error, patience, storage_error
from pipeline.storage.weights import load_model_by_digest, stored_adapter, with_adapter
from schemas.errors import BadCheckpointError, BadInputError, BusyError
from workers.cores import be_nice, device, heavy_turn, use_threads

logger = logging.getLogger(__name__)

_KEEP_S = 7 * 86400
"""How long checkpoints are kept, in seconds."""
_RETRIES = 30
"""Times that Ray makes a call again whose process was killed. Several go by while one process starts again."""
_READ_AT_ONCE = 8
"""Images that are looked at before training: what that costs on an object store is waiting."""
Method = TypeVar("Method", bound=Callable[..., object])


def _beside_jobs(method: Method) -> Method:
    """Answer while a job runs."""
    decorated: Method = ray.method(concurrency_group="control", max_task_retries=_RETRIES)(method)
    return decorated


def _resumable(method: Method) -> Method:
    """Call again when the process was killed: the job goes on where it was."""
    decorated: Method = ray.method(max_task_retries=_RETRIES)(method)
    return decorated


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """An adapter to be trained.

    Attributes:
        job_id: Names checkpoint and cancellation; the request's id.
        storage_url: Of the campaign.
        model_digest: Its pinned model.
        model_key: Of its embeddings.
        parent_digest: The live adapter, which training starts from; None: the bare model.
        campaign_id: For the card.
        snapshot_id: What it is trained on, for the lineage.
        kind: See `InteractiveModel.adapter_parameter_names`.
        images: Of the snapshot.
        config: How; `kind` above counts.
        work_dir: Local folder for checkpoints and mirrored embeddings.
    """

    job_id: str
    storage_url: str
    model_digest: str
    model_key: str
    parent_digest: str | None
    campaign_id: str
    snapshot_id: str
    kind: str
    images: tuple[AdapterImage, ...]
    config: AdapterConfig
    work_dir: str


@dataclass(frozen=True, kw_only=True)
class TrainedAdapter:
    """What a training gave.

    Attributes:
        digest: Of the published file; None when it was cancelled.
        uri: Where the file is, empty when there is none.
        metrics: JSON-serialisable.
    """

    digest: str | None
    uri: str
    size_bytes: int
    seed: int
    steps: int
    seconds: float
    metrics: dict[str, Any]
    cancelled: bool


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """Adapters to be compared on the same held-out images.

    Attributes:
        job_id: Names the cancellation; the request's id.
        adapters: Digests; None is the bare model.
        images: Held-out images.
        max_clicks: Of the robot user.
        max_masks: At most so many objects.
    """

    job_id: str
    storage_url: str
    model_digest: str
    model_key: str
    adapters: tuple[str | None, ...]
    images: tuple[AdapterImage, ...]
    max_clicks: int = 20
    max_masks: int = 200


class Trainer:
    """Runs jobs; as an actor, one at a time, with `progress` and `cancel` beside them.

    Args:
        threads: Torch threads.
        cache_dir: Local folder for copies of what is read from an object store.
        storage_wait_s: How long an object store that does not answer is waited for.
        max_image_pixels: Larger images are left out.
    """

    def __init__(
        self,
        threads: int = 1,
        cache_dir: str | None = None,
        storage_wait_s: float = 300.0,
        max_image_pixels: int = 120_000_000,
    ) -> None:
        keep_freed_memory()
        self._threads = threads
        self._cache_dir = cache_dir
        self._storage_wait_s = storage_wait_s
        self._max_image_pixels = max_image_pixels
        self._progress: dict[str, Any] = {}
        self._cancelled: set[str] = set()
        self._lock = threading.Lock()

    @_resumable
    def train(self, job: TrainJob) -> TrainedAdapter:
        """Train an adapter on the images that can be read and publish it.

        Raises:
            BadInputError: There is nothing to train on, or the model has no adapter of that kind.
            NotFoundError: The storage lacks the model or the parent.
            BusyError, ForbiddenError: The storage does not answer, or refuses.
            OutOfSpaceError: The disk is full. The checkpoint stays.
        """
        self._begin()
        with self._waiting(job.job_id, "Training"):
            model = load_model_by_digest(
                job.storage_url, job.model_digest, cache_dir=self._cache_dir, device=device()
            )  # fmt: skip
            parent = self._parent(job, model)
            folder = Path(job.work_dir)
            folder.mkdir(parents=True, exist_ok=True)
            _remove_old(folder)
            source = self._source(model, job, folder)
            images, unreadable = self._readable(job.job_id, job.images)
            if unreadable and not any(image.targets for image in images):
                raise BadInputError(f"None of the images with accepted masks can be read. {unreadable[0]}")
            job = replace(job, images=images)
            checkpoint = folder / f"{job.job_id}.checkpoint"
            try:
                result = self._train(job, model, source, checkpoint, parent)
            except BadCheckpointError as error:  # damaged, or the live adapter changed between two attempts
                logger.warning("training starts again: %s", error.message)
                checkpoint.unlink()
                result = self._train(job, model, source, checkpoint, parent)
            return self._publish(job, model, result, len(unreadable))

    @_resumable
    def evaluate(self, job: EvaluateJob) -> tuple[AdapterReport, ...]:
        """Click the objects of the held-out images that can be read with each adapter in turn.

        Returns:
            One report per adapter; fewer when it was cancelled.

        Raises:
            BusyError, ForbiddenError: The storage does not answer, or refuses.
        """
        self._begin()
        with self._waiting(job.job_id, "Evaluating"):
            config = EvaluationConfig(max_clicks=job.max_clicks, max_masks=job.max_masks)
            base = load_model_by_digest(job.storage_url, job.model_digest, cache_dir=self._cache_dir, device=device())
            source = self._source(base, job, None)
            images, _ = self._readable(job.job_id, job.images, job.max_masks)  # an object of each is enough
            reports: list[AdapterReport] = []
            for number, digest in enumerate(job.adapters):
                model = base
                if digest is not None:
                    model = with_adapter(job.storage_url, base, digest, cache_dir=self._cache_dir)

                def tell(state: dict[str, Any], number: int = number) -> None:
                    self._report(job.job_id, "evaluate", state | {"adapter": number + 1, "adapters": len(job.adapters)})

                report = evaluate_adapter(
                    model, images, source, config, tell, lambda: self._is_cancelled(job.job_id), heavy_turn
                )
                if report is None:
                    break
                reports.append(report)
            return tuple(reports)

    @_beside_jobs
    def progress(self) -> dict[str, Any]:
        """Where the newest job is: {"job_id", "phase", ...}; empty before the first report."""
        with self._lock:
            return dict(self._progress)

    @_beside_jobs
    def cancel(self, job_id: str) -> None:
        """Stop a job (running or to come) at its next step; its checkpoint stays."""
        with self._lock:
            self._cancelled.add(job_id)

    @contextmanager
    def _waiting(self, job_id: str, what: str) -> Iterator[None]:
        """In the block wait for an object store as jobs do, and say so; its last failure is one for the user.

        A cancellation is over with the block: the same job may be given again.
        """

        def wait(seconds: float, why: str) -> None:
            with self._lock:
                self._progress = self._progress | {"job_id": job_id, "waiting_for": f"the storage: {why}"}
            end = time.monotonic() + seconds
            while time.monotonic() < end and not self._is_cancelled(job_id):
                time.sleep(0.1)
            if self._is_cancelled(job_id):
                raise BusyError(f"{what} was cancelled while the storage did not answer.")

        try:
            with patience(self._storage_wait_s, wait):
                yield
        except OSError as error:
            full = as_space_error(error, error.filename or "the disk")
            raise (storage_error(error, what) if full is error else full) from error
        finally:
            with self._lock:
                self._cancelled.discard(job_id)

    def _begin(self) -> None:
        be_nice()
        use_threads(self._threads)
        with self._lock:
            self._progress = {}

    def _report(self, job_id: str, phase: str, state: dict[str, Any]) -> None:
        with self._lock:
            self._progress = {"job_id": job_id, "phase": phase, **state}

    def _is_cancelled(self, job_id: str) -> bool:
        with self._lock:
            return job_id in self._cancelled

    def _source(self, model: InteractiveModel, job: TrainJob | EvaluateJob, work_dir: Path | None) -> CachedSource:
        return stored_source(
            model, job.storage_url, job.model_key, work_dir, self._cache_dir, heavy_turn, self._max_image_pixels
        )

    def _readable(
        self, job_id: str, images: Sequence[AdapterImage], most: int | None = None
    ) -> tuple[tuple[AdapterImage, ...], list[str]]:
        """The images (at most so many) whose masks can be used, and what is wrong with the others before them.

        Found out at the beginning, since one that fails in mid-training costs all that was done. A cancelled job looks
        at no more of them.
        """
        kept: list[AdapterImage] = []
        wrong: list[str] = []

        def look(image: AdapterImage) -> str | None:
            is_used = image.targets and not self._is_cancelled(job_id)
            return why_unreadable(image, self._max_image_pixels) if is_used else None

        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:  # each waits for the storage as this thread does
            for start in range(0, len(images), 8 * _READ_AT_ONCE):
                some = images[start : start + 8 * _READ_AT_ONCE]
                found = [pool.submit(copy_context().run, look, image) for image in some]
                for image, reason in zip(some, [future.result() for future in found], strict=True):
                    if reason is not None:
                        wrong.append(reason)
                    elif len(kept) != most:
                        kept.append(image)
                if len(kept) == most:
                    break
                self._report(job_id, "look at images", {"done": start + len(some), "total": len(images)})
        if wrong:
            logger.warning("%d of %d images are left out, the first: %s", len(wrong), len(images), wrong[0])
        return tuple(kept), wrong

    def _parent(self, job: TrainJob, model: InteractiveModel) -> dict[str, Tensor] | None:
        """The live adapter's tensors, where it is of the kind to be trained; another kind starts from the bare model,
        since two adapters of different kinds cannot be one file."""
        if job.parent_digest is None:
            return None
        tensors, meta = stored_adapter(job.storage_url, model, job.parent_digest, cache_dir=self._cache_dir)
        if meta.kind != job.kind:
            logger.info("the live adapter is of kind %s: %s starts from the bare model", meta.kind, job.kind)
            return None
        return tensors

    def _train(
        self,
        job: TrainJob,
        model: InteractiveModel,
        source: CachedSource,
        checkpoint: Path,
        parent: dict[str, Tensor] | None,
    ) -> AdapterResult:
        return train_adapter(
            model,
            job.images,
            source,
            replace(job.config, kind=job.kind),
            checkpoint,
            lambda state: self._report(job.job_id, "train", state),
            lambda: self._is_cancelled(job.job_id),
            heavy_turn,
            parent,
        )

    @staticmethod
    def _publish(job: TrainJob, model: InteractiveModel, result: AdapterResult, unreadable: int) -> TrainedAdapter:
        seed = job.config.seed
        metrics = result.metrics() | {
            "images": len(job.images),
            "unreadable": unreadable,
            "masks": sum(len(image.targets) for image in job.images),
            "recorded_clicks": sum(len(target.clicks) for image in job.images for target in image.targets),
        }
        common: dict[str, Any] = {"seed": seed, "steps": result.steps, "seconds": result.seconds, "metrics": metrics}
        if not result.finished:
            return TrainedAdapter(digest=None, uri="", size_bytes=0, cancelled=True, **common)
        meta = AdapterMeta(
            kind=job.kind, model_id=model.model_id, model_digest=job.model_digest, model_key=job.model_key,
            parent_digest=job.parent_digest, snapshot_id=job.snapshot_id, seed=seed,
        )  # fmt: skip
        card = {
            "campaign_id": job.campaign_id,
            "config": asdict(job.config),
            "metrics": metrics,
            "engine": {"torch": torch.__version__, "python": platform.python_version(), "device": device()},
        }
        digest, uri, size_bytes = publish_adapter(job.storage_url, result.tensors, meta, card)
        logger.info("adapter %s trained in %d steps, %.0f s", digest, result.steps, result.seconds)
        return TrainedAdapter(digest=digest, uri=uri, size_bytes=size_bytes, cancelled=False, **common)


def _remove_old(folder: Path) -> None:
    """Drop checkpoints that nobody will ask for again; finished ones answer a repeated call meanwhile."""
    for checkpoint in folder.glob("*.checkpoint"):
        if time.time() - checkpoint.stat().st_mtime > _KEEP_S:
            checkpoint.unlink(missing_ok=True)


TrainerActor = ray.remote(concurrency_groups={"control": 2})(Trainer)
