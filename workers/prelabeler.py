"""Prelabel passes beside the encoder, in its process: each image and grid once per model and adapter, kept in storage.

One niced thread, which takes its turn for every click, so that it holds up neither clicks nor encodings for long. What
was computed before is read again, so whoever asks may stop at any time and ask again. Knows the storage; does not know
SQL or who asks.
"""

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from pydantic import ValidationError

from pipeline.embeddings.codec import decode_bytes
from pipeline.embeddings.store import EmbeddingStore
from pipeline.ingest.decode import read_image
from pipeline.models._base import Encoding, InteractiveModel
from pipeline.prelabels import PASS_VERSION, find_prelabels
from pipeline.storage.files import join, open_storage, put_if_absent, read_bytes, require_free_space, write_atomic
from pipeline.storage.weights import with_adapter
from schemas.predictions import EncodeFailure, ImageRef, Pins, Prelabels
from workers.cores import be_nice, heavy_turn, use_threads
from workers.encoder import Encoder, failure_of
from workers.lru import Lru

logger = logging.getLogger(__name__)

_ADAPTED = 2


class Prelabeler:
    """Makes passes with the models of an encoder.

    Args:
        encoder: Encodes what is missing, and holds the bare models.
        storage_url: Of embeddings, adapters and finished passes.
        threads: Torch threads.
        cache_dir: Local copies of what a remote storage holds; None: none.
        max_image_pixels: Larger images are refused.
        min_free_bytes: Storing stops before the disk has less than this.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        storage_url: str,
        threads: int = 1,
        cache_dir: str | None = None,
        max_image_pixels: int = 120_000_000,
        min_free_bytes: int = 0,
    ) -> None:
        self._encoder = encoder
        self._storage_url = storage_url
        self._threads = threads
        self._cache_dir = cache_dir
        self._max_image_pixels = max_image_pixels
        self._min_free_bytes = min_free_bytes
        self._fs, self._root = open_storage(storage_url)
        self._embeddings = EmbeddingStore(storage_url, cache_dir)
        self._adapted: Lru[tuple[str, str], InteractiveModel] = Lru(_ADAPTED)
        self._thread = ThreadPoolExecutor(1, "prelabel", initializer=be_nice)

    async def run_chunk(self, images: Sequence[ImageRef], pins: Pins, grid: int) -> list[Prelabels | EncodeFailure]:
        """What the model finds on each image, in order; one that fails does not hold up the others.

        Args:
            images: To look at.
            pins: Model and adapter.
            grid: Clicks per side; 0: only the features.
        """
        answers: list[Prelabels | EncodeFailure] = []
        for image in images:
            try:
                answers.append(await self._run(image, pins, grid))
            except Exception as error:
                logger.warning("no prelabels: sha256=%s: %s", image.sha256, error)
                answers.append(failure_of(image.sha256, error))
        return answers

    async def _run(self, image: ImageRef, pins: Pins, grid: int) -> Prelabels:
        path = join(self._root, "passes", pass_key(pins, grid), image.sha256[:2], f"{image.sha256}.json")
        known = await asyncio.to_thread(self._known, path)
        if known is not None:
            return known
        model = await asyncio.to_thread(self._model, pins)
        if model.cut == "image":
            await self._encoder.encode(image, pins.model_digest, pins.model_key, "bulk")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._look, model, image, pins, grid, path)

    def _known(self, path: str) -> Prelabels | None:
        """A pass made before; None where there is none, or a damaged one."""
        try:
            return Prelabels.model_validate_json(read_bytes(self._fs, path)).model_copy(update={"is_new": False})
        except FileNotFoundError:
            return None
        except ValidationError as error:
            logger.warning("making a damaged pass again: %s: %s", path, error)
            return None

    def _look(self, model: InteractiveModel, image: ImageRef, pins: Pins, grid: int, path: str) -> Prelabels:
        use_threads(self._threads)
        require_free_space(self._fs, path, self._min_free_bytes)
        pixels = read_image(image, max_pixels=self._max_image_pixels)
        encoding: Encoding | None = None
        if model.cut == "image":
            data = self._embeddings.get(pins.model_key, image.sha256)
            encoding = decode_bytes(data, torch.float32, self._encoder.device)
        found = find_prelabels(model, pixels, encoding, grid, sha256=image.sha256, turn=heavy_turn)
        content = found.model_dump_json().encode()
        if not put_if_absent(self._fs, path, content):
            write_atomic(self._fs, path, content)  # it was damaged, or another actor was as fast
        return found

    def _model(self, pins: Pins) -> InteractiveModel:
        base = self._encoder.model(pins.model_digest)
        if pins.adapter_digest is None:
            return base
        key = (pins.model_digest, pins.adapter_digest)
        held = self._adapted.get(key)
        if held is None:
            held = with_adapter(self._storage_url, base, pins.adapter_digest, cache_dir=self._cache_dir)
            self._adapted.put(key, held)
        return held


def pass_key(pins: Pins, grid: int) -> str:
    """What the passes of a model, adapter and grid are kept under: 24 hex characters."""
    text = f"{PASS_VERSION}|{pins.model_digest}|{pins.model_key}|{pins.adapter_digest}|{grid}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]
