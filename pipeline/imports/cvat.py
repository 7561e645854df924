"""CVAT's XML for images: polygons, and masks in its own run-length code (rows of their box, background first).

Shapes of one label that somebody put into a group are the parts of one object, as in CVAT's own COCO; of several labels
they are objects that belong together.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Hashable
from functools import reduce
from typing import Any

import numpy as np

from pipeline.imports.found import Dropped, Found, Item, Items
from pipeline.imports.names import Names
from pipeline.masks.polygons import polygons_to_rle
from pipeline.masks.rle import mask_to_rle, rle_to_mask
from schemas.campaigns import ImageRecord
from schemas.errors import BadAnnotationsError, BadInputError
from schemas.masks import Rle

_SHAPES = ("polygon", "mask", "box", "polyline", "points", "ellipse", "cuboid", "skeleton")


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a document type when the parser meets it, whatever the encoding, before entities are declared."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Called by the parser."""
        raise BadAnnotationsError("The XML declares a document type or entities; CVAT's does not. It is not read.")


def read(data: bytes, names: Names) -> Items:
    """The objects of all images that have polygons or masks.

    Raises:
        BadAnnotationsError: It is no such file, or declares entities (which may blow up when they are expanded).
    """
    try:
        root = ElementTree.fromstring(data, ElementTree.XMLParser(target=_NoDoctype()))
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: its encoding
        raise BadAnnotationsError(f"The file is not XML: {error}.") from error
    if root.tag != "annotations":
        raise BadAnnotationsError("The file is no CVAT export: expected <annotations>. Export as 'CVAT for images'.")
    if root.find("track") is not None:
        raise BadAnnotationsError("The file is of 'CVAT for video', whose tracks are not read. Use 'CVAT for images'.")
    elements = {element: element.get("name", "") for element in root.iter("image")}
    images = names.find_all({name: [name] for name in elements.values()})
    for element, name in elements.items():
        shapes = [shape for shape in element if shape.tag in _SHAPES]
        image = images[name]
        if isinstance(image, str):
            yield from (Dropped(image, name) for _ in shapes)
            continue
        stated = (element.get("height"), element.get("width"))
        objects: dict[Hashable, list[tuple[str, Any]]] = {}
        for number, shape in enumerate(shapes):
            where = f"{name}, {shape.tag} {number}"
            group = shape.get("group_id", "0")
            if stated != (str(image.height), str(image.width)):
                yield Dropped("it is for an image of another size", f"{where}: {stated[0]}x{stated[1]}")
            elif shape.tag not in ("polygon", "mask"):
                yield Dropped(f"a {shape.tag} is no mask", where)
            else:
                key = number if group == "0" else (group, shape.get("label"))
                objects.setdefault(key, []).append((where, shape))
        yield from (_object(parts, image) for parts in objects.values())


def _object(parts: list[tuple[str, Any]], image: ImageRecord) -> Item:
    """One mask of all parts; it is called as the first of them is."""
    where, shape = parts[0]
    try:
        rles = [_rle(part, image) for _, part in parts]
        rle = rles[0] if len(rles) == 1 else mask_to_rle(reduce(np.logical_or, map(rle_to_mask, rles)))
    except (BadInputError, ValueError, OverflowError) as error:
        return Dropped("the mask is malformed", f"{where}: {error}")
    return Found(image, shape.get("label") or "object", f"cvat/{where}", rle)


def _rle(shape: Any, image: ImageRecord) -> Rle:
    return _polygon(shape, image) if shape.tag == "polygon" else _mask(shape, image)


def _polygon(shape: Any, image: ImageRecord) -> Rle:
    flat = [float(number) for point in shape.get("points", "").split(";") for number in point.split(",")]
    return polygons_to_rle([flat], (image.height, image.width))


def _mask(shape: Any, image: ImageRecord) -> Rle:
    left, top, width, height = (int(shape.get(name, "-1")) for name in ("left", "top", "width", "height"))
    inside = min(left, top) >= 0 and left + width <= image.width and top + height <= image.height
    if not inside or width < 1 or height < 1:
        raise BadInputError("its box leaves the image.")
    runs = np.array([int(run) for run in shape.get("rle", "").split(",")], np.int64)
    if runs.min() < 0 or runs.max() > width * height or runs.sum() != width * height:
        raise BadInputError("its runs do not fill its box.")
    values = np.arange(runs.size) % 2 == 1
    mask = np.zeros((image.height, image.width), np.bool_)
    mask[top : top + height, left : left + width] = np.repeat(values, runs).reshape(height, width)
    return mask_to_rle(mask)
