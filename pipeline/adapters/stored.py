"""Scenes out of a campaign's storage, and trained adapters into it.

Knows the layout of the storage; knows neither the catalogue nor how an adapter is trained.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.adapters.files import AdapterMeta, adapter_bytes
from pipeline.adapters.scenes import AdapterImage, Turn
from pipeline.adapters.source import CachedSource
from pipeline.embeddings.codec import decode_bytes, encode_bytes
from pipeline.embeddings.store import EmbeddingStore
from pipeline.ingest.decode import MAX_PIXELS, read_image, read_image_bytes
from pipeline.models._base import Encoding, InteractiveModel
from pipeline.storage.files import join, open_storage, put_if_absent, write_atomic
from pipeline.storage.weights import adapter_path
from schemas.errors import BadImageError, CorruptDataError, EmbeddingMissingError


def stored_source(
    model: InteractiveModel,
    storage_url: str,
    model_key: str,
    work_dir: str | Path | None = None,
    cache_dir: str | None = None,
    turn: Turn = nullcontext,
    max_image_pixels: int = MAX_PIXELS,
) -> CachedSource:
    """Scenes from the catalogue's files and the campaign's stored embeddings.

    Embeddings of mirrored images are nobody else's business: they are kept in `work_dir`, where the next training
    finds them again. What is missing or damaged is computed and stored.

    Args:
        model: Of the campaign.
        storage_url: Of the campaign.
        model_key: Of its embeddings.
        work_dir: Local folder; None: mirrored ones are computed each time.
        cache_dir: Local folder for copies of what is read from an object store.
        turn: See `scenes.Turn`.
        max_image_pixels: Larger images are refused.
    """
    stores = {False: EmbeddingStore(storage_url, cache_dir)}
    if work_dir is not None:
        stores[True] = EmbeddingStore(str(Path(work_dir).resolve() / "mirrored"))

    def find(image: AdapterImage, mirrored: bool) -> Encoding | None:
        if mirrored not in stores:
            return None
        try:
            return decode_bytes(stores[mirrored].get(model_key, image.ref.sha256), torch.float16)
        except (EmbeddingMissingError, CorruptDataError):
            return None

    def keep(image: AdapterImage, mirrored: bool, encoding: Encoding) -> Encoding:
        if mirrored not in stores:
            return encoding
        stores[mirrored].put(model_key, image.ref.sha256, encode_bytes(encoding))
        return find(image, mirrored) or encoding  # whoever stored first is right

    return CachedSource(model, lambda image: read_image(image.ref, max_image_pixels), find, keep, turn=turn)


def why_unreadable(image: AdapterImage, max_image_pixels: int = MAX_PIXELS) -> str | None:
    """What is wrong with an image, in words; None when its file is the one that was ingested. Decodes nothing.

    Raises:
        OSError: The storage cannot be reached (worth a retry).
    """
    ref = image.ref
    if ref.width * ref.height > max_image_pixels:
        return (
            f"{ref.uri} has {ref.width}x{ref.height} pixels, more than the limit of {max_image_pixels}. "
            "Raise CLICKLOOP_MAX_IMAGE_PIXELS to use it."
        )
    try:
        read_image_bytes(ref)
    except (BadImageError, CorruptDataError) as error:
        return error.message
    return None


def publish_adapter(
    storage_url: str, tensors: Mapping[str, Tensor], meta: AdapterMeta, card: Mapping[str, Any]
) -> tuple[str, str, int]:
    """Store an adapter under its digest, with a card beside it; harmless when it is there.

    Args:
        storage_url: Of the campaign.
        tensors: Name to values.
        meta: Written into the file.
        card: JSON-serialisable; how it was trained.

    Returns:
        Digest, place and bytes of the file.
    """
    data = adapter_bytes(tensors, meta)
    digest = hashlib.sha256(data).hexdigest()
    fs, root = open_storage(storage_url)
    path = adapter_path(root, digest)
    text = json.dumps({"digest": digest, **asdict(meta), **card}, indent=1, sort_keys=True)
    write_atomic(fs, join(root, "adapters", digest, "card.json"), text.encode())
    put_if_absent(fs, path, data)
    return digest, path, len(data)
