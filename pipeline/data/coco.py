"""Read a COCO JSON file with instance masks: everything checked before the first object is used.

Masks may be polygons, compressed or uncompressed RLE. Beyond COCO: an image may say its `split` and `sha256`, an
annotation may carry `ignore_segmentation` (pixels that don't count). Crowd regions are read, marked, and left out of
iteration. Datumaro, and CVAT with it, sets `iscrowd` of every mask that is no polygon; its `attributes` tell that it is
an object.
"""

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from pipeline.ingest.decode import decode_image
from pipeline.masks.polygons import polygons_to_rle, uncompressed_to_rle
from pipeline.masks.rle import check_size, rle_to_mask
from schemas.errors import BadAnnotationsError, BadImageError, BadInputError
from schemas.masks import Rle

_OF_SAMPLE = ("id", "image_id", "category_id", "segmentation", "ignore_segmentation", "iscrowd", "attributes", "unsure")
"""What is read of an instance: its box, its area and what tools add would stay in memory."""


@dataclass(frozen=True)
class CocoImage:
    """An image entry. Width and height are in pixels after EXIF orientation; `sha256` is of the file's bytes."""

    image_id: int
    path: Path
    width: int
    height: int
    split: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class CocoSample:
    """One instance. Masks are decoded when asked for.

    Attributes:
        annotation_id: As in the file.
        image: Its image.
        category_id: As in the file.
        category: Name of the category.
        is_crowd: A region of many objects, no single instance.
        segmentation: As in the file: polygons or an RLE object; no polygon where it has none (a box without a mask).
        ignore_segmentation: Likewise, or None.
        unsure: Whether our own export says that its annotator was.
    """

    annotation_id: int
    image: CocoImage
    category_id: int
    category: str
    is_crowd: bool
    segmentation: Any = field(repr=False)
    ignore_segmentation: Any = field(default=None, repr=False)
    unsure: bool = False

    @property
    def sample_id(self) -> str:
        """The annotation's id as text."""
        return str(self.annotation_id)

    def rle(self) -> Rle:
        """The mask as compressed RLE.

        Raises:
            BadAnnotationsError: The segmentation is malformed.
        """
        return _to_rle(self.segmentation, self.image, f"annotation {self.annotation_id}, segmentation")

    def read_gt(self) -> NDArray[np.int8]:
        """int8 (H, W): 1 object, 0 background, -1 where `ignore_segmentation` says that it doesn't count.

        Raises:
            BadAnnotationsError: A segmentation is malformed.
        """
        gt = self._mask(self.rle(), "segmentation").astype(np.int8)
        if self.ignore_segmentation is not None:
            where = f"annotation {self.annotation_id}, ignore_segmentation"
            gt[self._mask(_to_rle(self.ignore_segmentation, self.image, where), "ignore_segmentation")] = -1
        return gt

    def read_image(self) -> NDArray[np.uint8]:
        """HWC uint8 RGB, read-only; the same array while consecutive instances share their image.

        Raises:
            BadImageError: The file is missing or no image.
            BadAnnotationsError: It has another size than the annotations say.
        """
        pixels = read_image(self.image.path)
        if pixels.shape[:2] != (self.image.height, self.image.width):
            raise BadAnnotationsError(
                f"Image {self.image.path} is {pixels.shape[0]}x{pixels.shape[1]} (height x width) after orientation, "
                f"its annotations are for {self.image.height}x{self.image.width}."
            )
        return pixels

    def _mask(self, rle: Rle, name: str) -> NDArray[np.bool_]:
        try:
            return rle_to_mask(rle)
        except BadInputError as error:
            raise BadAnnotationsError(f"annotation {self.annotation_id}, {name}: {error.message}") from error


@dataclass(frozen=True)
class CocoDataset:
    """The instances of a file; iterating gives those that are no crowd regions, image by image.

    Attributes:
        path: The file.
        images: All image entries, also those without instances.
        categories: Id to name.
        samples: All instances, crowd regions included.
    """

    path: Path
    images: tuple[CocoImage, ...]
    categories: Mapping[int, str]
    samples: tuple[CocoSample, ...]

    def __iter__(self) -> Iterator[CocoSample]:
        return (sample for sample in self.samples if not sample.is_crowd)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def read_coco(
    annotations_json: str | Path, images_dir: str | Path | None, split: str | None = None, *, needs_masks: bool = True
) -> CocoDataset:
    """Read and check a COCO file.

    Args:
        annotations_json: The file.
        images_dir: Where its `file_name`s lie; the images are opened later. None: they are not, and are named only.
        split: Keep only images of this `split`.
        needs_masks: Refuse instances that have only a box.

    Raises:
        BadAnnotationsError: The file is no COCO JSON, or an entry is missing, duplicate, of a wrong type or refers to
            something that is not there. The message says where.
    """
    path = Path(annotations_json)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadAnnotationsError(f"{path} can't be read: {error.strerror}.") from error
    return parse_coco(data, path, images_dir, split, needs_masks=needs_masks)


def parse_coco(
    data: bytes, path: Path, images_dir: str | Path | None, split: str | None = None, *, needs_masks: bool = True
) -> CocoDataset:
    """As `read_coco`, of a file's content; `path` is what messages call it."""
    document = _load_json(data, path)
    images = _read_images(document, None if images_dir is None else Path(images_dir), path)
    categories = _read_categories(document, path)
    kept = {key: image for key, image in images.items() if split is None or image.split == split}
    samples: dict[int, CocoSample] = {}
    for index, entry in enumerate(_entries(document, "annotations", path)):
        sample = _read_sample(entry, f"{path}: annotations[{index}]", images, categories, needs_masks)
        if sample.annotation_id in samples:
            raise BadAnnotationsError(f"{path}: annotations[{index}]: id {sample.annotation_id} occurs twice.")
        samples[sample.annotation_id] = sample
    order = {key: place for place, key in enumerate(kept)}
    chosen = [sample for sample in samples.values() if sample.image.image_id in kept]
    chosen.sort(key=lambda sample: order[sample.image.image_id])
    return CocoDataset(path, tuple(kept.values()), categories, tuple(chosen))


@lru_cache(maxsize=1)
def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode an image file as ingest does: HWC uint8 RGB, read-only. The last one is remembered.

    Raises:
        BadImageError: The file is missing or no image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadImageError(f"Image {path} can't be read: {error.strerror}.") from error
    try:
        pixels, _ = decode_image(data)
    except BadImageError as error:
        raise BadImageError(f"{path}: {error.message}") from error
    pixels = np.ascontiguousarray(pixels)
    pixels.setflags(write=False)
    return pixels


def _load_json(data: bytes, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(data, object_hook=_compact)
    except (ValueError, RecursionError) as error:
        raise BadAnnotationsError(f"{path} is not JSON: {error}.") from error
    if not isinstance(document, dict):
        raise BadAnnotationsError(f"{path} is no COCO file: expected an object with images, annotations, categories.")
    return document


def _compact(entry: dict[str, Any]) -> dict[str, Any]:
    """An instance without what nobody reads, and its polygons as arrays, which take a quarter of the memory."""
    if "segmentation" not in entry:
        return entry
    polygons = entry["segmentation"]
    if isinstance(polygons, list):
        with suppress(TypeError, ValueError, OverflowError):  # malformed, as whoever reads it will say
            entry["segmentation"] = [array("d", polygon) for polygon in polygons]
    return {key: entry[key] for key in _OF_SAMPLE if key in entry}


def _entries(document: dict[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    entries = document.get(name)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BadAnnotationsError(f"{path} is no COCO file: expected a list of objects under {name!r}.")
    return entries


def _read_images(document: dict[str, Any], folder: Path | None, path: Path) -> dict[int, CocoImage]:
    images: dict[int, CocoImage] = {}
    for index, entry in enumerate(_entries(document, "images", path)):
        where = f"{path}: images[{index}]"
        image_id, width, height = (_whole(entry, key, where) for key in ("id", "width", "height"))
        name = entry.get("file_name", _name_in_url(entry.get("coco_url")))  # LVIS has only the latter
        if not isinstance(name, str) or not name:
            raise BadAnnotationsError(f"{where}: file_name {name!r:.100} must be a path.")
        if folder is not None and (".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute()):
            raise BadAnnotationsError(f"{where}: file_name {name!r} must be a relative path inside the image folder.")
        if image_id in images:
            raise BadAnnotationsError(f"{where}: id {image_id} occurs twice.")
        try:
            check_size((height, width))
        except BadInputError as error:
            raise BadAnnotationsError(f"{where}: {error.message}") from error
        more = {key: text for key in ("split", "sha256") if isinstance(text := entry.get(key), str)}
        images[image_id] = CocoImage(image_id, (folder or Path()) / name, width, height, **more)
    return images


def _name_in_url(url: object) -> str | None:
    return PurePosixPath(url).name if isinstance(url, str) else None


def _read_categories(document: dict[str, Any], path: Path) -> dict[int, str]:
    categories: dict[int, str] = {}
    for index, entry in enumerate(_entries(document, "categories", path)):
        where = f"{path}: categories[{index}]"
        category_id, name = _whole(entry, "id", where), entry.get("name")
        if not isinstance(name, str) or category_id in categories:
            raise BadAnnotationsError(f"{where}: expected a name, and an id that occurs once.")
        categories[category_id] = name
    return categories


def _read_sample(
    entry: dict[str, Any], where: str, images: Mapping[int, CocoImage], categories: Mapping[int, str], needs_mask: bool
) -> CocoSample:
    annotation_id, image_id, category_id = (_whole(entry, key, where) for key in ("id", "image_id", "category_id"))
    if image_id not in images:
        raise BadAnnotationsError(f"{where}: there is no image with id {image_id}.")
    if category_id not in categories:
        raise BadAnnotationsError(f"{where}: there is no category with id {category_id}.")
    mask, ignore = entry.get("segmentation"), entry.get("ignore_segmentation")
    if mask is None and not needs_mask:
        mask = []
    for name, segmentation in (("segmentation", mask), ("ignore_segmentation", ignore)):
        if not isinstance(segmentation, list | dict) and not (name == "ignore_segmentation" and segmentation is None):
            raise BadAnnotationsError(f"{where}: {name} must be a list of polygons or an RLE object.")
    is_crowd = entry.get("iscrowd") not in (None, 0, "0") and not isinstance(entry.get("attributes"), dict)
    of_ids = annotation_id, images[image_id], category_id, categories[category_id]
    return CocoSample(*of_ids, is_crowd, mask, ignore, unsure=entry.get("unsure") is True)


def _to_rle(segmentation: Any, image: CocoImage, where: str) -> Rle:
    size = (image.height, image.width)
    try:
        if isinstance(segmentation, list):
            return polygons_to_rle(segmentation, size)
        own, counts = segmentation.get("size"), segmentation.get("counts")
        if not isinstance(own, Sequence) or list(own) != list(size):
            raise BadInputError(f"its size is {own!s:.100}, the image's {list(size)} (height, width).")
        if isinstance(counts, list):
            return uncompressed_to_rle(counts, size)
        if not isinstance(counts, str):
            raise BadInputError("counts must be text or a list of whole numbers.")
        return Rle(size=size, counts=counts)
    except (BadInputError, ValueError, TypeError, OverflowError) as error:
        raise BadAnnotationsError(f"{where}: {error}") from error


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value of a JSON file is a whole number; to Python, true is one, too."""
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(entry: dict[str, Any], key: str, where: str) -> int:
    value = entry.get(key)
    if not is_whole(value):
        raise BadAnnotationsError(f"{where}: {key} is {value!r:.100}; expected a whole number.")
    return value
