"""Which format a source has, and its reader."""

from collections.abc import Mapping
from typing import Literal

from pipeline.imports import coco_json, coco_results, cvat, label_maps, label_studio, yolo
from pipeline.imports.found import Items
from pipeline.imports.names import Names
from pipeline.imports.source import Source
from schemas.errors import BadAnnotationsError, BadInputError
from schemas.requests import IMPORT_FORMATS, ImportFormat

_SingleFile = Literal["coco", "coco-results", "label-studio", "cvat"]
_ENDINGS = {"coco": ".json", "coco-results": ".json", "label-studio": ".json", "cvat": ".xml"}


def read_source(
    url: str,
    names: Names,
    given: ImportFormat | None = None,
    category: str = "object",
    *,
    categories: Mapping[int, str] | None = None,
    min_score: float | None = None,
) -> Items:
    """What a file or folder holds.

    Args:
        url: A path, or a URL of any storage.
        names: The campaign's images.
        given: The format; None: by what is there.
        category: Of the instances of instance maps, which name none.
        categories: The campaign's, by number; of COCO's results, which have no others.
        min_score: Leave out what has a lower score, which only COCO's results have.

    Raises:
        BadInputError: A score is asked for that the format has not.
        BadAnnotationsError: There is nothing, or not of this format; or no format can be told.
        TooLargeError: A file is too large.
    """
    source = Source(url)
    format_ = given or guess(source)
    if min_score is not None and format_ != "coco-results":
        raise BadInputError(
            f"Masks of {format_} have no score: leave --min-score out. Where the file is a list of COCO's results, by "
            "the ids of an export of this campaign, give --format coco-results."
        )
    if format_ == "yolo-seg":
        return yolo.read(source, names)
    if format_ == "label-map":
        return label_maps.read_classes(source, names)
    if format_ == "instance-map":
        return label_maps.read_instances(source, names, category)
    data = source.read(_only_file(source, format_))
    if format_ == "coco-results":
        return coco_results.read(data, names, categories or {}, min_score or 0.0)
    return {"coco": coco_json.read, "label-studio": label_studio.read, "cvat": cvat.read}[format_](data, names)


def categories_of(url: str) -> list[str]:
    """The categories that a COCO file lists, in its order; other formats name them only with their masks.

    Raises:
        BadAnnotationsError: There is nothing, it is malformed, or its format cannot be told.
    """
    source = Source(url)
    if guess(source) != "coco":
        return []
    return list(coco_json.read_coco_bytes(source.read(_only_file(source, "coco"))).categories.values())


def guess(source: Source) -> ImportFormat:
    """The format of a source.

    Raises:
        BadAnnotationsError: None of them, or it could be several.
    """
    if source.of_type(".xml"):
        return "cvat"
    if source.of_type(".json"):
        is_list = source.begins_with(_only_file(source, "coco")).startswith(b"[")
        return "label-studio" if is_list else "coco"
    if any(name.endswith(("data.yaml", "data.yml")) for name in source.files):
        return "yolo-seg"
    raise BadAnnotationsError(
        f"The format of {source.url!r} cannot be told. Name it with --format: {', '.join(IMPORT_FORMATS)}."
    )


def _only_file(source: Source, format_: _SingleFile) -> str:
    found = source.of_type(_ENDINGS[format_]) if source.is_folder else source.files
    if len(found) != 1:
        raise BadAnnotationsError(
            f"{source.url!r} has {len(found)} {_ENDINGS[format_]} files; {format_} is one. Name the file."
        )
    return found[0]
