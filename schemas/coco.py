"""COCO record shapes that are read and written."""

from typing import Any, NotRequired, TypedDict


class CocoRle(TypedDict):
    """A mask: column-major runs; `counts` as compressed ASCII."""

    size: list[int]
    counts: str


class CocoImage(TypedDict):
    """An image; `file_name` is a relative POSIX path."""

    id: int
    file_name: str
    width: int
    height: int
    sha256: NotRequired[str]
    split: NotRequired[str]
    verified_empty: NotRequired[bool]


class CocoAnnotation(TypedDict):
    """One instance: `bbox` is (x, y, width, height) in pixels, `area` the mask's pixels, `iscrowd` 0."""

    id: int
    image_id: int
    category_id: int
    segmentation: CocoRle
    area: int
    bbox: list[int]
    iscrowd: int
    lineage: NotRequired[dict[str, Any]]


class CocoCategory(TypedDict):
    """A category; ids are stable and never used again."""

    id: int
    name: str
    supercategory: str
