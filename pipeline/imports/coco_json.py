"""COCO and LVIS files: polygons, RLE compressed or not; crowd regions are left out."""

from pathlib import Path

from pipeline.data.coco import CocoDataset, CocoImage, CocoSample, parse_coco
from pipeline.imports.found import NO_OBJECT, Dropped, Found, Item, Items
from pipeline.imports.names import Names
from schemas.arrow import UNLABELLED
from schemas.campaigns import ImageRecord
from schemas.errors import BadAnnotationsError


def read_coco_bytes(data: bytes) -> CocoDataset:
    """A COCO file's content; its images' paths are their file names.

    Raises:
        BadAnnotationsError: It is malformed.
    """
    return parse_coco(data, Path("The file"), None, needs_masks=False)


def read(data: bytes, names: Names) -> Items:
    """The instances of a file.

    Raises:
        BadAnnotationsError: It is no COCO file, or its images, categories or ids are malformed.
    """
    dataset = read_coco_bytes(data)
    del data  # else it stays until the last mask is stored: half a gigabyte with a million polygons
    images = names.find_all({_names(image): _names(image) for image in dataset.images})
    for sample in dataset.samples:
        yield _item(sample, images[_names(sample.image)])
    pictured = {sample.image.image_id for sample in dataset.samples}
    for image in dataset.images:
        if image.image_id not in pictured and not isinstance(images[_names(image)], str):
            yield Dropped(NO_OBJECT, f"image {image.image_id}, {image.path}")


def _names(image: CocoImage) -> tuple[str, ...]:
    """The surest first."""
    return tuple(name for name in (image.sha256, str(image.path)) if name is not None)


def _item(sample: CocoSample, image: ImageRecord | str) -> Item:
    """Of the campaign's image, or left out for the reason why there is none."""
    where = f"annotation {sample.annotation_id}"
    if sample.is_crowd:
        return Dropped("it is a crowd region, no single object", where)
    if not sample.segmentation:
        return Dropped("it has no mask, a box at most", where)
    if isinstance(image, str):
        return Dropped(image, f"{where}, {sample.image.path}")
    size = (sample.image.height, sample.image.width)
    if size != (image.height, image.width):
        stated = f"{size[0]}x{size[1]}, the image has {image.height}x{image.width} (height x width)"
        return Dropped("it is for an image of another size", f"{where}, {sample.image.path}: {stated}")
    # as our exports write it; COCO's own categories begin at 1
    has_none = sample.category_id == 0 and sample.category.rstrip("_") == UNLABELLED
    category = None if has_none else sample.category
    try:
        return Found(image, category, f"coco/{sample.annotation_id}", sample.rle(), unsure=sample.unsure)
    except BadAnnotationsError as error:
        return Dropped("the segmentation is malformed", error.message)
