"""PNG label maps: the pixel's value is a class, or the number of an instance."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.imports.found import Dropped, Found, Items
from pipeline.imports.names import Names
from pipeline.imports.source import Source
from pipeline.ingest.decode import BROKEN
from pipeline.masks.rle import labels_to_rles
from schemas.campaigns import ImageRecord
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
        for value, rle in labels_to_rles(labels):
            if value in (0, VOID):
                continue
            text = listed[value].strip() if value < len(listed) else ""
            yield Found(image, text or f"class {value}", f"map/{name}/{value}", rle)


def read_instances(source: Source, names: Names, category: str) -> Items:
    """One mask per value that is not 0."""
    for name, image, labels in _maps(source, names):
        if isinstance(labels, Dropped):
            yield labels
            continue
        for value, rle in labels_to_rles(labels):
            if value:
                yield Found(image, category, f"map/{name}/{value}", rle)


def _maps(source: Source, names: Names) -> Any:
    """(file, image, map or Dropped) of every PNG; bounded by the size of the campaign's image."""
    for name, image in names.find_all({name: [name] for name in source.some_of_type(".png")}).items():
        if isinstance(image, str):
            yield name, None, Dropped(image, name)
            continue
        yield name, image, _labels(source.read(name), name, image)


def _labels(data: bytes, name: str, image: ImageRecord) -> NDArray[Any] | Dropped:
    """The map; its size is compared before memory is taken for its pixels.

    By Pillow: OpenCV takes as much memory as a damaged PNG says that a chunk is long.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            width, height = picture.size
            if (height, width) != (image.height, image.width):
                stated = f"{height}x{width}, the image has {image.height}x{image.width} (height x width)"
                return Dropped("it is for an image of another size", f"{name}: {stated}")
            labels = np.asarray(picture)  # of a palette the indices; its colours mean nothing here
            depth, is_grey = data[24], data[25] == 0  # of the header, which a PNG begins with
    except UnidentifiedImageError as error:
        raise BadAnnotationsError(f"{name} is no PNG, or its header is broken.") from error
    except BROKEN as error:
        raise BadAnnotationsError(f"{name} is damaged: {error}.") from error
    if labels.shape[:2] != (height, width):
        raise BadAnnotationsError(f"{name} is damaged: it cannot be decoded.")
    if labels.ndim == 3:
        raise BadAnnotationsError(f"{name} has {labels.shape[2]} channels. A label map has one, or a palette.")
    if is_grey and depth in (2, 4):  # Pillow spreads the values over 0 to 255
        labels = labels // (255 // (2**depth - 1))
    return labels.astype(np.uint8) if labels.dtype == np.bool_ else labels
