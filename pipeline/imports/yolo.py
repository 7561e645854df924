"""YOLO segmentation folders: a text file per image, a line per object: class x1 y1 x2 y2 ... as shares of the sides."""

import contextlib
import json
from pathlib import PurePosixPath

import numpy as np
import yaml

from pipeline.export.polygons import fill_outline
from pipeline.imports.found import NO_OBJECT, Dropped, Found, Item, Items
from pipeline.imports.names import Names
from pipeline.imports.source import Source
from pipeline.masks.polygons import polygons_to_rle
from pipeline.masks.rle import mask_to_rle
from schemas.arrow import UNLABELLED
from schemas.campaigns import ImageRecord
from schemas.errors import BadAnnotationsError, BadInputError, TooLargeError
from schemas.masks import Rle

SOURCES = "sources.jsonl"
"""In our own exports: which image each label file, named by number, is of. Their polygons are the border's pixels."""
_LISTED = "classes.txt"
_NO_LABELS = (_LISTED, "train.txt", "val.txt", "test.txt", "README.txt", "README.dataset.txt", "README.roboflow.txt")
_MAX_YAML_BYTES = 1_000_000


def read(source: Source, names: Names) -> Items:
    """The objects of all label files; categories are named by the folder's `data.yaml`, else by the lines of its
    `classes.txt`, as Label Studio writes it, else "class N".

    Raises:
        BadAnnotationsError: There is no label file; `data.yaml` or `sources.jsonl` is malformed.
        TooLargeError: `data.yaml` is too large.
    """
    exported, classes = _exported(source), dict[int, str | None](_classes(source))
    last = max(classes, default=0)
    if exported and (classes.get(last) or "").rstrip("_") == UNLABELLED:
        classes[last] = None  # as our exports call masks without a category, behind all categories
    files = [file for file in source.some_of_type(".txt") if PurePosixPath(file).name not in _NO_LABELS]
    images = names.find_all({file: exported.get(file, ()) if exported else (file,) for file in files})
    for file, image in images.items():
        if isinstance(image, str):
            yield Dropped(image, file)
            continue
        lines = source.read(file).decode("utf-8-sig", "replace").splitlines()
        objects = [(number, words) for number, line in enumerate(lines, 1) if (words := line.split())]
        if not objects:
            yield Dropped(NO_OBJECT, file)
        for number, words in objects:
            yield _item(words, image, classes, f"{file}, line {number}", file in exported)


def _item(words: list[str], image: ImageRecord, classes: dict[int, str | None], where: str, is_exported: bool) -> Item:
    if len(words) == 5:
        return Dropped("it is a box, no mask", where)
    try:
        number, values = int(words[0]), [float(word) for word in words[1:]]
        sides = (image.width, image.height)
        polygon = [value * sides[index % 2] for index, value in enumerate(values)]
        size = (image.height, image.width)
        rle = _of_border(polygon, size) if is_exported else polygons_to_rle([polygon], size)
    except (ValueError, BadInputError) as error:
        return Dropped("the line is malformed", f"{where}: {error}")
    return Found(image, classes.get(number, f"class {number}"), f"yolo/{where}", rle)


def _of_border(polygon: list[float], size: tuple[int, int]) -> Rle:
    """The mask whose border's pixels have their centres at these x, y, x, y, ..."""
    centres = np.array(polygon)
    if centres.size < 6 or centres.size % 2:
        raise BadInputError(f"A polygon has {centres.size} numbers. Expected x, y of three points or more.")
    centres = centres.reshape(-1, 2)
    if not ((centres >= 0) & (centres < [size[1], size[0]])).all():
        raise BadInputError("A point lies outside of the image.")
    return mask_to_rle(fill_outline(centres.astype(np.int32), size))


def _exported(source: Source) -> dict[str, tuple[str, ...]]:
    """The names of the image that each label file of our own export is of; {}: it is none."""
    found: dict[str, tuple[str, ...]] = {}
    for listing in (name for name in source.files if PurePosixPath(name).name == SOURCES):
        folder = PurePosixPath(listing).parent
        for number, line in enumerate(source.read(listing).splitlines(), 1):
            try:
                entry = json.loads(line)
                labels, names = str(folder / entry["labels"]), (str(entry["file_name"]), str(entry.get("uri", "")))
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
                raise BadAnnotationsError(
                    f"{listing}, line {number}: expected an object with `labels` and `file_name`, as exports of "
                    "YOLO write it. If it is something else, remove or rename it."
                ) from error
            found[labels] = names
    return found


def _classes(source: Source) -> dict[int, str]:
    found = [name for name in source.files if PurePosixPath(name).name in ("data.yaml", "data.yml")]
    if not found:
        listed = [name for name in source.files if PurePosixPath(name).name == _LISTED]
        lines = source.read(listed[0]).decode("utf-8-sig", "replace").splitlines() if listed else []
        return {number: line.strip() for number, line in enumerate(lines) if line.strip()}
    data = source.read(found[0])
    if len(data) > _MAX_YAML_BYTES:
        raise TooLargeError(f"{found[0]} has {len(data)} bytes, at most {_MAX_YAML_BYTES} are read.")
    try:
        document = yaml.load(data, yaml.BaseLoader)  # every value stays text: no dates, no numbers, no objects
    except (yaml.YAMLError, RecursionError) as error:
        raise BadAnnotationsError(f"{found[0]} is not YAML, or nested too deep: {error}.") from error
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    # A name that is a list may hold others many times over: as text it would grow without bound.
    if isinstance(names, dict) and all(isinstance(name, str) for name in names.values()):
        with contextlib.suppress(ValueError, TypeError):
            return {int(key): name for key, name in names.items()}
    raise BadAnnotationsError(f"{found[0]}: expected `names`, a list or a mapping from numbers to names.")
