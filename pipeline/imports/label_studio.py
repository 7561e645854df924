"""Label Studio's JSON export: brush masks in its own run-length code, and polygons in percent of the sides."""

import json
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from pipeline.imports.found import NO_IMAGE, Dropped, Found, Item, Items, Names
from pipeline.masks.polygons import polygons_to_rle
from pipeline.masks.rle import check_size, mask_to_rle
from schemas.campaigns import ImageRecord
from schemas.errors import BadAnnotationsError, BadInputError
from schemas.masks import Rle

_OTHERS = (
    "rectanglelabels",
    "ellipselabels",
    "keypointlabels",
    "rectangle",
    "ellipse",
    "keypoint",
    "choices",
    "labels",
)
_CHANNELS = 4
"""The code holds RGBA pixels; the mask is the last channel."""


def read(data: bytes, names: Names) -> Items:
    """The brush masks and polygons of all tasks; of several annotations of a task, those that were not cancelled.

    Raises:
        BadAnnotationsError: It is no such export.
    """
    try:
        tasks = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadAnnotationsError(f"The file is not JSON: {error}.") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise BadAnnotationsError("The file is no Label Studio export: expected a list of tasks.")
    if tasks and not any("data" in task for task in tasks):
        raise BadAnnotationsError(
            "The file is a list, but not of Label Studio's tasks, which have `data`. Export as JSON, not as JSON-MIN; "
            "of COCO's results make a COCO file, with its images and categories."
        )
    for index, task in enumerate(tasks):
        yield from _task(task, names, f"task {task.get('id', index)}")


def _task(task: dict[str, Any], names: Names, where: str) -> Items:
    image = _image(task, names)
    annotations = task.get("annotations") or []
    if image is None:
        yield Dropped(NO_IMAGE, where)
        return
    if not annotations and task.get("predictions"):
        yield Dropped("it has predictions only, no annotation", where)
    for annotation in annotations if isinstance(annotations, list) else []:
        if not isinstance(annotation, dict):
            continue
        if annotation.get("was_cancelled"):
            yield Dropped("its annotation was cancelled", where)
            continue
        results = annotation.get("result")
        for number, result in enumerate(results if isinstance(results, list) else []):
            if isinstance(result, dict):
                yield _item(result, image, f"{where}, result {result.get('id', number)}")


def _image(task: dict[str, Any], names: Names) -> ImageRecord | None:
    values = task.get("data")
    for value in values.values() if isinstance(values, dict) else []:
        if not isinstance(value, str):
            continue
        try:
            parts = urlsplit(value)
        except ValueError:  # no URL, and no path of ours
            continue
        for path in (*parse_qs(parts.query).get("d", []), unquote(parts.path)):
            name = PurePosixPath(path).name
            # An upload is stored as <eight hex digits>-<name>.
            found = names.find(path.lstrip("/")) or names.find(name) or names.find(name.partition("-")[2])
            if found is not None:
                return found
    return None


def _item(result: dict[str, Any], image: ImageRecord, where: str) -> Item:
    kind, value = result.get("type"), result.get("value")
    if kind not in ("brushlabels", "polygonlabels", "brush", "polygon") or not isinstance(value, dict):
        return Dropped(f"a {kind} is no mask" if kind in _OTHERS else "it is no mask", where)
    stated = (result.get("original_height"), result.get("original_width"))
    if stated != (image.height, image.width):
        return Dropped("it is for an image of another size", f"{where}: {stated[0]}x{stated[1]}")
    labels = value.get("brushlabels") or value.get("polygonlabels") or ["object"]
    try:
        rle = _brush(value, image) if "rle" in value else _polygon(value, image)
        return Found(image, labels if isinstance(labels, str) else str(labels[0]), f"label-studio/{where}", rle)
    except (BadInputError, ValueError, TypeError, LookupError, OverflowError) as error:
        return Dropped("the mask is malformed", f"{where}: {error}")


def _polygon(value: dict[str, Any], image: ImageRecord) -> Rle:
    flat = [side * share / 100 for x, y in value["points"] for side, share in ((image.width, x), (image.height, y))]
    return polygons_to_rle([flat], (image.height, image.width))


def _brush(value: dict[str, Any], image: ImageRecord) -> Rle:
    size = check_size((image.height, image.width))
    pixels = decode_brush(value["rle"], size[0] * size[1] * _CHANNELS)
    return mask_to_rle(pixels.reshape(*size, _CHANNELS)[:, :, -1] > 0)


def decode_brush(code: list[int], expected: int) -> NDArray[np.uint8]:
    """Bytes of Label Studio's run-length code.

    A stream of bits: 32 for the number of bytes, 5 for the bits of a value less one, four times 4 for lengths of
    counts less one; then, until there are enough, a bit that says "repeated", two that choose the length of the count,
    the count less one, and one value or so many.

    Args:
        code: The export's list of bytes.
        expected: How many bytes the image's pixels take.

    Raises:
        BadInputError: The code says another number, or ends early.
    """
    bits = np.unpackbits(np.asarray(code, np.uint8))
    at = 0

    def take(width: int) -> int:
        nonlocal at
        if at + width > bits.size:
            raise BadInputError("The run-length code ends early.")
        number = int("".join("1" if bit else "0" for bit in bits[at : at + width]), 2)
        at += width
        return number

    total, width = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    if total != expected:
        raise BadInputError(f"The run-length code is of {total} bytes, the image's pixels take {expected}.")
    out, filled = np.zeros(total, np.uint8), 0
    while filled < total:
        repeated = take(1)
        count = take(lengths[take(2)]) + 1
        if filled + count > total:
            raise BadInputError("The run-length code goes on beyond the image.")
        if repeated:
            out[filled : filled + count] = take(width)
        else:
            out[filled : filled + count] = [take(width) for _ in range(count)]
        filled += count
    return out
