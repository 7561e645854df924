"""PNG label maps: the pixel's value is a class, or the number of an instance."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.imports.found import NO_IMAGE, Dropped, Found, Items, Names
from pipeline.imports.source import Source
from pipeline.ingest.decode import MAX_PIXELS
from pipeline.masks.rle import mask_to_rle
from schemas.errors import BadAnnotationsError

VOID = 255
"""Class that says nothing, by PASCAL VOC's custom."""
CLASSES = "classes.txt"
"""Beside the maps: the name of class n in line n + 1, that of the background first."""


def read_classes(source: Source, names: Names) -> Items:
    """One mask per class and image. Class 0 is background, 255 is void."""
    listed = source.read(CLASSES).decode("utf-8", "replace").splitlines() if CLASSES in source.files else []
    for name, image, labels in _maps(source, names):
        if isinstance(labels, Dropped):
            yield labels
            continue
        for value in np.unique(labels):
            if value in (0, VOID):
                continue
            text = listed[value].strip() if value < len(listed) else ""
            yield Found(image, text or f"class {value}", f"map/{name}/{value}", mask_to_rle(labels == value))


def read_instances(source: Source, names: Names, category: str) -> Items:
    """One mask per value that is not 0."""
    for name, image, labels in _maps(source, names):
        if isinstance(labels, Dropped):
            yield labels
            continue
        for value in np.unique(labels):
            if value:
                yield Found(image, category, f"map/{name}/{value}", mask_to_rle(labels == value))


def _maps(source: Source, names: Names) -> Any:
    """(file, image, map or Dropped) of every PNG; bounded by the size of the campaign's image."""
    for name in source.of_type(".png"):
        image = names.find(name)
        if image is None:
            yield name, None, Dropped(NO_IMAGE, name)
            continue
        labels = _decode(source.read(name), name)
        if labels.shape != (image.height, image.width):
            stated = f"{labels.shape[0]}x{labels.shape[1]}, the image has {image.height}x{image.width} (height x width)"
            yield name, None, Dropped("it is for an image of another size", f"{name}: {stated}")
            continue
        yield name, image, labels


def _decode(data: bytes, name: str) -> NDArray[Any]:
    header = data[16:24]
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")
    if data[:8] != b"\x89PNG\r\n\x1a\n" or not 0 < width * height <= MAX_PIXELS:
        raise BadAnnotationsError(f"{name} is no PNG of at most {MAX_PIXELS} pixels.")
    indices = _palette_indices(data)
    labels = indices if indices is not None else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if labels is None:
        raise BadAnnotationsError(f"{name} is damaged: it cannot be decoded.")
    if labels.ndim == 3:
        raise BadAnnotationsError(f"{name} has {labels.shape[2]} channels. A label map has one, or a palette.")
    return np.asarray(labels)


def _palette_indices(data: bytes) -> NDArray[Any] | None:
    """Of a PNG with a palette, whose colours mean nothing here; None for another."""
    import io

    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture) if picture.mode in ("P", "1") else None
