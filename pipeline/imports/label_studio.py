"""Label Studio's JSON export: brush masks in its own run-length code, and polygons in percent of the sides."""

import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from pipeline.imports.found import Dropped, Found, Item, Items
from pipeline.imports.names import Names
from pipeline.imports.source import parse_json
from pipeline.ingest.sources import OTHER_IMAGES, SUFFIXES
from pipeline.masks.polygons import polygons_to_rle
from pipeline.masks.rle import check_size, mask_to_rle
from schemas.campaigns import ImageRecord
from schemas.errors import BadAnnotationsError, BadInputError
from schemas.masks import Rle

_MASKS = ("brushlabels", "polygonlabels", "brush", "polygon")
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
_ENDINGS = SUFFIXES | OTHER_IMAGES
_UPLOADED = re.compile(r"(?:.*/upload/(?:\d+/)?)?[0-9a-f]{8}-([^/]+)")
"""An upload is stored as <eight hex digits>-<name>, with the project's number or none."""
_SEVERAL = "its data names several images of the campaign"
_CHANNELS = 4
"""The code holds RGBA pixels; the mask is the last channel."""


def read(data: bytes, names: Names) -> Items:
    """The brush masks and polygons of all tasks; of several annotations of a task, those that were not cancelled.

    Raises:
        BadAnnotationsError: It is no such export.
    """
    tasks = parse_json(data)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise BadAnnotationsError("The file is no Label Studio export: expected a list of tasks.")
    if tasks and not any("data" in task for task in tasks):
        raise BadAnnotationsError(
            "The file is a list, but not of Label Studio's tasks, which have `data`. Export as JSON, not as JSON-MIN; "
            "of COCO's results, whose ids are those of an export of this campaign, give --format coco-results."
        )
    paths = [_path(task, names) for task in tasks]
    images = names.find_all({path: _names(path) for path in paths if path is not None})
    for index, (task, path) in enumerate(zip(tasks, paths, strict=True)):
        image = _SEVERAL if path is None else images[path]
        yield from _task(task, image, f"task {task.get('id', index)}")


def _task(task: dict[str, Any], image: ImageRecord | str, where: str) -> Items:
    """Of the campaign's image, or left out for the reason why there is none."""
    annotations = _annotations(task)
    if not annotations and task.get("predictions"):
        yield Dropped("it has predictions only, no annotation", where)
    for annotation in annotations:
        if annotation.get("was_cancelled"):
            yield Dropped("its annotation was cancelled", where)
        elif isinstance(image, str):
            yield Dropped(image, where)
        else:
            yield from _annotation(annotation, image, where)


def _annotation(annotation: dict[str, Any], image: ImageRecord, where: str) -> Items:
    results = _results(annotation)
    masks = {str(result.get("id")) for result in results if result.get("type") in _MASKS}
    labels = {str(result.get("id")): result.get("value") for result in results if result.get("type") == "labels"}
    for number, result in enumerate(results):
        own = str(result.get("id", number))
        if own not in masks or result.get("type") != "labels":
            yield _item(result, labels.get(own), image, f"{where}, result {own}")


def _annotations(task: dict[str, Any]) -> list[dict[str, Any]]:
    return _dicts(task.get("annotations"))


def _results(annotation: dict[str, Any]) -> list[dict[str, Any]]:
    return _dicts(annotation.get("result"))


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _path(task: dict[str, Any], names: Names) -> str | None:
    """What a task's data calls its image, "" where the campaign has none of its names; None: it names several."""
    data, valid = task.get("data"), [found for found in _annotations(task) if not found.get("was_cancelled")]
    if not isinstance(data, dict) or not valid:  # without an annotation it must not contest another task's image
        return ""
    # A result's `to_name` is what the labelled object is called, as a rule like the column that it is from.
    labelled = [result.get("to_name") for annotation in valid for result in _results(annotation)]
    values = [data[name] for name in labelled if isinstance(name, str) and name in data]
    values = [value for value in values or filter(_has_ending, data.values()) if isinstance(value, str)]
    found = {value: image for value in values if (image := names.find(*_names(value))) is not None}
    return None if len({image.id for image in found.values()}) > 1 else next(iter(found), "")


def _has_ending(value: Any) -> bool:
    """Of an image: text of another column may well be an image's name without it."""
    return isinstance(value, str) and any(PurePosixPath(name).suffix.lower() in _ENDINGS for name in _names(value))


def _names(value: str) -> tuple[str, ...]:
    """What the image of a task may be called in the campaign."""
    try:
        parts = urlsplit(value)
    except ValueError:  # no URL, and no path of ours
        return ()
    path = unquote(parts.path)
    uploaded = _UPLOADED.fullmatch(path)
    rest = path, *(uploaded.groups() if uploaded else ())
    # Read as a path, a URL with a query has other folders than the file that the query names.
    return (*parse_qs(parts.query).get("d", []), *rest, value) if parts.query else (value, *rest)


def _item(result: dict[str, Any], labels: Any, image: ImageRecord, where: str) -> Item:
    """A result; `labels` is the value of the one of type `labels` that has its id, if any."""
    kind, value = result.get("type"), result.get("value")
    if kind not in _MASKS or not isinstance(value, dict):
        return Dropped(f"a {kind} is no mask" if kind in _OTHERS else "it is no mask", where)
    stated = (result.get("original_height"), result.get("original_width"))
    if stated != (image.height, image.width):
        return Dropped("it is for an image of another size", f"{where}: {stated[0]}x{stated[1]}")
    apart = labels.get("labels") if isinstance(labels, dict) else None
    own = value.get("brushlabels") or value.get("polygonlabels") or apart or ["object"]
    try:
        rle = _brush(value, image) if "rle" in value else _polygon(value, image)
        return Found(image, own if isinstance(own, str) else str(own[0]), f"label-studio/{where}", rle)
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
