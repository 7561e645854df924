"""YOLO segmentation folders: a text file per image, a line per object: class x1 y1 x2 y2 ... as shares of the sides."""

import contextlib
from pathlib import PurePosixPath

import yaml

from pipeline.imports.found import NO_IMAGE, Dropped, Found, Item, Items, Names
from pipeline.imports.source import Source
from pipeline.masks.polygons import polygons_to_rle
from schemas.campaigns import ImageRecord
from schemas.errors import BadAnnotationsError, BadInputError, TooLargeError

_MAX_YAML_BYTES = 1_000_000


def read(source: Source, names: Names) -> Items:
    """The objects of all label files; categories are named by the folder's `data.yaml`, or "class N".

    Raises:
        BadAnnotationsError: `data.yaml` is malformed.
        TooLargeError: It is too large.
    """
    classes = _classes(source)
    for file in source.of_type(".txt"):
        if PurePosixPath(file).name in ("classes.txt", "train.txt", "val.txt", "test.txt", "README.txt"):
            continue
        image = names.find(file)
        if image is None:
            yield Dropped(NO_IMAGE, file)
            continue
        for number, line in enumerate(source.read(file).decode("utf-8", "replace").splitlines(), 1):
            if line.strip():
                yield _item(line.split(), image, classes, f"{file}, line {number}")


def _item(words: list[str], image: ImageRecord, classes: dict[int, str], where: str) -> Item:
    if len(words) == 5:
        return Dropped("it is a box, no mask", where)
    try:
        number, values = int(words[0]), [float(word) for word in words[1:]]
        sides = (image.width, image.height)
        polygon = [value * sides[index % 2] for index, value in enumerate(values)]
        rle = polygons_to_rle([polygon], (image.height, image.width))
    except (ValueError, BadInputError) as error:
        return Dropped("the line is malformed", f"{where}: {error}")
    return Found(image, classes.get(number, f"class {number}"), f"yolo/{where}", rle)


def _classes(source: Source) -> dict[int, str]:
    found = [name for name in source.files if PurePosixPath(name).name in ("data.yaml", "data.yml")]
    if not found:
        return {}
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
