"""The refiner: what is the mask of these edits on this image with these weights? A pure function, memoised.

It keeps no session. Embeddings, decoded images and the states after edit prefixes are kept in bytes-bounded caches;
losing them costs time, never an answer. Knows the storage; does not know SQL, encoders or who asks.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.embeddings.codec import decode_bytes, embedding_digest
from pipeline.embeddings.store import EmbeddingStore
from pipeline.inference.engines import engine_name, engine_record, tuned_engine, with_engine
from pipeline.inference.instance import InstanceState, apply_edit, final_mask, start
from pipeline.ingest.decode import read_image
from pipeline.masks.boxes import mask_box_xyxy
from pipeline.masks.digest import box_digest
from pipeline.masks.packed import pack_box
from pipeline.masks.rle import mask_to_rle, rle_to_mask
from pipeline.memory import keep_freed_memory
from pipeline.models._base import Encoding, InteractiveModel
from pipeline.storage.weights import load_model_by_digest, with_adapter
from schemas.clicks import Click
from schemas.engines import DEFAULT_ENGINE, EngineName, EngineSetting, Tuning, check_available
from schemas.errors import BadCheckpointError, BusyError, EmbeddingMissingError
from schemas.predictions import Engine, ImageRef, MaskReply, Pins, RefineRequest, Window
from workers.cores import device, note_click, use_threads
from workers.lru import K, Lru, V

logger = logging.getLogger(__name__)

MAX_MODELS = 8
"""Models that a refiner holds at once, counting each adapter laid over one (it shares the model's other weights), and
as many again on engines of their own (they share all weights)."""
_PROBE_SIDE = 64
_READERS = 2
"""Images that are read at once for clicks: about 8 bytes a pixel each."""


@dataclass(frozen=True)
class _Embedding:
    digest: str | None
    encoding: Encoding | None


@dataclass(frozen=True)
class _Known:
    """A state, and what computed its last step."""

    state: InstanceState
    embedding_digest: str | None
    engine: Engine


NO_EMBEDDING = _Embedding(None, None)
"""What models with cut "crop" have."""


@dataclass
class _Timer:
    """Milliseconds by stage."""

    stages: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.stages[stage] = round(self.stages.get(stage, 0.0) + 1000 * (now - self._last), 3)
        self._last = now


class Refiner:
    """Answers refine requests from the storage and its own memory.

    Call `refine` from one thread at a time; the others may be called beside it.

    Args:
        storage_url: Of embeddings, models and adapters.
        cache_bytes: Limit of what is kept: half for images, a quarter each for embeddings and states.
        threads: Torch threads.
        cache_dir: Local copies of what a remote storage holds; None: none.
        max_image_pixels: Larger images are refused.
        engine: What new instances are pinned to; each request is computed with what it pins.
        tuning: Says what "auto" is.
        image_wait_s: Seconds that a click waits for its image to be read; then it is to come again. None: no limit.

    Raises:
        BadInputError: This machine lacks the engine.
    """

    def __init__(
        self,
        *,
        storage_url: str,
        cache_bytes: int = 512_000_000,
        threads: int = 1,
        cache_dir: str | None = None,
        max_image_pixels: int = 120_000_000,
        engine: EngineSetting = DEFAULT_ENGINE,
        tuning: Tuning | None = None,
        image_wait_s: float | None = None,
    ) -> None:
        keep_freed_memory()
        self._storage_url = storage_url
        self._threads = threads
        self._cache_dir = cache_dir
        self._max_image_pixels = max_image_pixels
        self._device = device()
        check_available(engine, self._device)
        self._engine, self._tuning = engine, tuning
        self._store = EmbeddingStore(storage_url, cache_dir)
        self._images: Lru[tuple[str, Window | None], NDArray[np.uint8]] = Lru(cache_bytes // 2)
        self._embeddings: Lru[tuple[str, str], _Embedding] = Lru(cache_bytes // 4)
        self._states: Lru[bytes, _Known] = Lru(cache_bytes // 4)
        self._models: Lru[tuple[str, str | None], InteractiveModel] = Lru(MAX_MODELS)
        self._fast: Lru[tuple[str, str | None, EngineName], tuple[InteractiveModel, EngineName]] = Lru(MAX_MODELS)
        self._image_wait_s = image_wait_s
        self._readers = ThreadPoolExecutor(_READERS, "read-image")
        self._reading: dict[tuple[str, Window | None], Future[NDArray[np.uint8]]] = {}
        self._making: WeakValueDictionary[Hashable, threading.Lock] = WeakValueDictionary()
        self._making_lock = threading.Lock()
        self._counts = {"requests": 0, "memo_hits": 0, "memory_hits": 0, "store_hits": 0, "steps": 0}

    def refine(self, request: RefineRequest) -> MaskReply:
        """The mask after all edits of the request.

        Costs one step when the state before the last edit is known, none when the last state is, else all of them.

        Raises:
            EmbeddingMissingError: The store has no embedding of the image: encode it, then ask again.
            CorruptDataError: The stored embedding is not the pinned one or unreadable, or the image file has changed.
            BadInputError: An edit does not fit the image, or the weights do not load.
            BusyError: The storage or the image's source does not answer, or the image is still being read.
        """
        use_threads(self._threads)
        note_click()
        timer = _Timer()
        self._counts["requests"] += 1
        names = prefix_names(request)
        done, known = self._longest_known(names)
        cache: Literal["memo", "memory", "store"] = "memo"
        steps = len(request.edits) - done
        if known is None or steps:
            pins = request.pins
            model, engine = self._run_by(pins.model_digest, pins.adapter_digest, engine_name(pins.engine))
            record = engine_record(engine, self._device)
            image = self._image_in_time(request.image)
            embedding, cache = self._embedding(request.image, pins, model)
            timer.lap("fetch")
            if known is None:
                state = start(image, None if request.initial_mask is None else rle_to_mask(request.initial_mask))
                known = self._keep(names[0], _Known(state, embedding.digest, record))
            for name, edit in zip(names[done + 1 :], request.edits[done:], strict=True):
                state = apply_edit(model, image, embedding.encoding, known.state, edit)
                known = self._keep(name, _Known(state, embedding.digest, record))
            self._counts["steps"] += steps
            timer.lap("model")
        else:
            self._counts["memo_hits"] += 1
        state = known.state
        mask = final_mask(state, (request.image.height, request.image.width))
        timer.lap("post")
        x0, y0, x1, y1 = box = mask_box_xyxy(mask)
        reply = MaskReply(
            mask_sha256=box_digest(mask, box),
            area=int(np.count_nonzero(mask[y0:y1, x0:x1])),
            box_xywh=(x0, y0, x1 - x0, y1 - y0),
            bits=pack_box(mask, box) if request.mask_format == "bits" else None,
            rle=mask_to_rle(mask) if request.mask_format == "rle" else None,
            roi=state.roi,
            scores=state.scores,
            candidate=state.candidate,
            embedding_digest=known.embedding_digest,
            engine=known.engine,
            cache=cache,
            steps=steps,
        )
        timer.lap("encode")
        reply.latency_ms.update(timer.stages)
        return reply

    def _keep(self, name: bytes, known: _Known) -> _Known:
        self._states.put(name, known, known.state.size_bytes)
        return known

    def _longest_known(self, names: list[bytes]) -> tuple[int, _Known | None]:
        for done in range(len(names) - 1, -1, -1):
            known = self._states.get(names[done])
            if known is not None:
                return done, known
        return 0, None

    def warm(self, image: ImageRef, pins: Pins) -> bool:
        """Load what a first click on the image will need.

        Returns:
            False when the embedding is missing.
        """
        note_click()  # somebody opened the image
        model = self.model(pins)
        self._image(image)
        try:
            self._embedding(image, pins, model)
        except EmbeddingMissingError:
            return False
        return True

    def load(self, model_digest: str, adapter_digest: str | None = None, engine: Engine | None = None) -> Engine:
        """Load weights and try them on a probe with an engine, so that a later click finds both working and warm.

        Args:
            engine: Of an instance; None: what new ones are to be pinned to.

        Returns:
            The engine that will be used: float32 on torch where the wanted one cannot run these weights here.

        Raises:
            NotFoundError: The storage has no such model or adapter.
            BadCheckpointError: A file is corrupt, does not fit, or gives values that are not finite.
        """
        use_threads(self._threads)
        self._probe(self._model(model_digest, adapter_digest))
        wanted = self._chosen(model_digest) if engine is None else engine_name(engine)
        return engine_record(self._run_by(model_digest, adapter_digest, wanted)[1], self._device)

    def _chosen(self, model_digest: str) -> EngineName:
        return tuned_engine(self._tuning, model_digest, self._device) if self._engine == "auto" else self._engine

    def _probe(self, model: InteractiveModel) -> None:
        h, w = model.input_size
        crops = torch.full((1, 3, h, w), 0.5, device=self._device)
        whole = torch.full((1, 3, _PROBE_SIDE, _PROBE_SIDE), 0.5, device=self._device)
        click = Click(x=w / 2, y=h / 2, is_positive=True)
        with torch.inference_mode():
            encoding = model.encode(whole if model.cut == "image" else crops)
            logits = model.refine(encoding, [[click]], torch.zeros_like(crops[:, :1]), crops).logits
        if not bool(torch.isfinite(logits).all()):
            raise BadCheckpointError("The weights give values that are not finite. Do not promote them.")

    def stats(self) -> dict[str, int]:
        """Counts since the start, and bytes kept now."""
        kept = self._images.size + self._embeddings.size + self._states.size
        return {**self._counts, "bytes": kept, "models": len(self._models)}

    def model(self, pins: Pins) -> InteractiveModel:
        """The model that the pins name, loaded when it is not held."""
        return self._run_by(pins.model_digest, pins.adapter_digest, engine_name(pins.engine))[0]

    def _run_by(
        self, model_digest: str, adapter_digest: str | None, engine: EngineName
    ) -> tuple[InteractiveModel, EngineName]:
        """The model and the engine that runs it."""
        if engine == DEFAULT_ENGINE:
            return self._model(model_digest, adapter_digest), engine
        key = (model_digest, adapter_digest, engine)
        return self._held(self._fast, key, lambda: self._tried(self._model(model_digest, adapter_digest), engine))

    def _model(self, model_digest: str, adapter_digest: str | None) -> InteractiveModel:
        key = (model_digest, adapter_digest)
        return self._held(self._models, key, lambda: self._load_model(model_digest, adapter_digest))

    def _held(self, cache: Lru[K, V], key: K, make: Callable[[], V], size: Callable[[V], int] = lambda value: 1) -> V:
        """What the cache holds; when it does not, one thread makes it while others wait for that."""
        held = cache.get(key)
        if held is not None:
            return held
        with self._making_lock:
            lock = self._making.setdefault((id(cache), key), threading.Lock())
        with lock:
            held = cache.get(key)
            if held is None:
                held = make()
                cache.put(key, held, size(held))
        return held

    def _tried(self, model: InteractiveModel, engine: EngineName) -> tuple[InteractiveModel, EngineName]:
        """The model on an engine, or as it is where the engine fails: no click is lost for speed."""
        try:
            fast = with_engine(model, engine)
            self._probe(fast)
        except Exception as error:
            logger.warning("going on with float32: model=%s engine=%s reason=%s", model.model_id, engine, error)
            return model, DEFAULT_ENGINE
        return fast, engine

    def _load_model(self, model_digest: str, adapter_digest: str | None) -> InteractiveModel:
        if adapter_digest is not None:
            base = self._model(model_digest, None)
            return with_adapter(self._storage_url, base, adapter_digest, cache_dir=self._cache_dir)
        return load_model_by_digest(self._storage_url, model_digest, cache_dir=self._cache_dir, device=self._device)

    def _image_in_time(self, ref: ImageRef) -> NDArray[np.uint8]:
        """The image, for a click: others wait behind it, and a refiner that answers nobody is taken to hang.

        Raises:
            BusyError: A large image takes its time. It is read on, for the next try.
        """
        key = (ref.sha256, ref.window)
        held = self._images.get(key)
        if held is not None:
            return held
        if self._image_wait_s is None:
            return self._image(ref)
        reading = self._reading.get(key)  # one thread at a time gets here
        if reading is None:
            reading = self._reading[key] = self._readers.submit(self._image, ref)
            reading.add_done_callback(lambda _: self._reading.pop(key, None))
        try:
            return reading.result(self._image_wait_s)
        except FutureTimeoutError:
            raise BusyError("The image is large and still being read. Try again.", retry_after_s=1) from None

    def _image(self, ref: ImageRef) -> NDArray[np.uint8]:
        def read() -> NDArray[np.uint8]:
            try:
                return read_image(ref, max_pixels=self._max_image_pixels)
            except OSError as error:
                raise BusyError(f"Image {ref.uri} cannot be read now: {error}. Try again later.") from error

        # a click right after the claim finds its image being read already
        return self._held(self._images, (ref.sha256, ref.window), read, lambda image: image.nbytes)

    def _embedding(
        self, image: ImageRef, pins: Pins, model: InteractiveModel
    ) -> tuple[_Embedding, Literal["memory", "store"]]:
        """The embedding and where it came from."""
        if model.cut == "crop":
            return NO_EMBEDDING, "memory"
        key = (pins.model_key, image.sha256)
        held = self._embeddings.get(key)
        if held is not None and pins.embedding_digest in (None, held.digest):
            self._counts["memory_hits"] += 1
            return held, "memory"
        try:
            data = self._store.get(pins.model_key, image.sha256, pins.embedding_digest)
        except OSError as error:
            raise BusyError(f"The embedding store does not answer: {error}. Try again later.") from error
        encoding = decode_bytes(data).to(self._device, torch.float32)
        held = _Embedding(embedding_digest(data), encoding)
        self._embeddings.put(key, held, sum(t.nbytes for t in encoding.tensors.values()))
        self._counts["store_hits"] += 1
        return held, "store"


def prefix_names(request: RefineRequest) -> list[bytes]:
    """Digests of the states after 0, 1, ... n edits: everything that a state depends on, chained.

    Args:
        request: Its pins, image and edits' payload hashes name the states.
    """
    pins = request.pins
    root = [
        pins.model_digest, pins.model_key, pins.adapter_digest, pins.embedding_digest, engine_name(pins.engine),
        request.image.sha256,
    ]  # fmt: skip
    if request.initial_mask is not None:
        root.append(request.initial_mask.model_dump_json())
    names = [hashlib.sha256("|".join(str(part) for part in root).encode()).digest()]
    for edit in request.edits:
        names.append(hashlib.sha256(names[-1] + f"{edit.kind}:{edit.payload_sha256}".encode()).digest())
    return names
