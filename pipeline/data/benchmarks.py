"""The papers' evaluation sets as they are distributed: GrabCut, Berkeley, DAVIS, COCO_MVal, SBD and Pascal VOC.

Rules of the official code (MODELS 1.8): GrabCut's and Berkeley's value 128 doesn't count; DAVIS takes the largest
channel; each instance of SBD and Pascal VOC is a sample.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.data.coco import CocoDataset, CocoSample, read_coco
from pipeline.data.files import FileSample, pair_files, read_labels, require
from pipeline.data.sbd import SbdInstances, SbdSample
from schemas.errors import BadInputError

logger = logging.getLogger(__name__)

_VOC_BORDER = 255
PublishedSample = FileSample | SbdSample


@dataclass(frozen=True)
class _Reopened:
    """Objects that are found anew, in files of labels, each time somebody asks for them."""

    find: Callable[[], Iterator[PublishedSample]]

    def __iter__(self) -> Iterator[PublishedSample]:
        return self.find()


def read_grabcut(root: Path) -> Iterable[PublishedSample]:
    """data_GT/ with photographs, boundary_GT/ with masks: 0 background, 128 doesn't count, 255 object.

    Raises:
        BadInputError: The folder is not laid out so.
    """
    require(root, ("data_GT", "boundary_GT"), "GrabCut set")
    return pair_files(root / "data_GT", root / "boundary_GT", ignore_value=128)


def read_berkeley(root: Path) -> Iterable[PublishedSample]:
    """images/ and masks/, with GrabCut's values.

    Raises:
        BadInputError: The folder is not laid out so.
    """
    require(root, ("images", "masks"), "Berkeley set")
    return pair_files(root / "images", root / "masks", ignore_value=128)


def read_davis(root: Path, what: str = "DAVIS set (the papers' 345 frames)") -> Iterable[PublishedSample]:
    """img/ and gt/, of DAVIS the 345 frames: whatever is not black is the object. COCO_MVal has this layout, too.

    Raises:
        BadInputError: The folder is not laid out so.
    """
    require(root, ("img", "gt"), what)
    return pair_files(root / "img", root / "gt")


def read_sbd(root: Path) -> Iterable[PublishedSample]:
    """img/, inst/*.mat, val.txt: every instance of the validation split.

    Raises:
        BadInputError: The folder is not laid out so.
    """
    return _Reopened(SbdInstances(root, "val").samples)


def read_pascal_voc(root: Path) -> Iterable[PublishedSample]:
    """JPEGImages/, SegmentationObject/, ImageSets/Segmentation/val.txt: every instance; borders don't count.

    Raises:
        BadInputError: The folder is not laid out so.
    """
    require(root, ("JPEGImages", "SegmentationObject", "ImageSets/Segmentation/val.txt"), "Pascal VOC 2012 folder")
    return _Reopened(functools.partial(_voc_instances, root))


def _voc_instances(root: Path) -> Iterator[FileSample]:
    for stem in (root / "ImageSets/Segmentation/val.txt").read_text().split():
        image, mask = root / "JPEGImages" / f"{stem}.jpg", root / "SegmentationObject" / f"{stem}.png"
        for value in np.unique(read_labels(mask)):
            if value not in (0, _VOC_BORDER):
                yield FileSample(f"{stem}_{value}", image, mask, int(value), _VOC_BORDER)


READERS: dict[str, Callable[[Path], Iterable[PublishedSample]]] = {
    "grabcut": read_grabcut,
    "berkeley": read_berkeley,
    "davis": read_davis,
    "coco_mval": functools.partial(read_davis, what="COCO_MVal set"),
    "sbd": read_sbd,
    "pascal_voc": read_pascal_voc,
}


def open_samples(data: str, images: str | None) -> Iterable[PublishedSample | CocoSample]:
    """The objects that a command line names; instances of a COCO file that have only a box are none.

    Args:
        data: A COCO file, or `NAME:DIR` with a name of `READERS`.
        images: Folder of the COCO file's images; not wanted for the others.

    Raises:
        BadInputError: Something is missing, or the folder is not laid out as that data set is.
        BadAnnotationsError: The COCO file is malformed.
    """
    name, _, folder = data.partition(":")
    if name in READERS and folder:
        if not Path(folder).is_dir():
            raise BadInputError(f"{data}: there is no folder {folder}.")
        return READERS[name](Path(folder))
    if not Path(data).is_file():
        raise BadInputError(f"Ground truth {data} is neither a COCO file nor one of {', '.join(READERS)} with :DIR.")
    if not images or not Path(images).is_dir():  # "" is no folder: a variable that is not set
        raise BadInputError(f"--images {images}: the folder of the images of {data} is needed.")
    dataset = read_coco(data, images, needs_masks=False)
    masks = tuple(sample for sample in dataset.samples if sample.segmentation != [])
    if len(masks) < len(dataset.samples):
        boxes = len(dataset.samples) - len(masks)
        logger.warning("%s: %d objects have a box and no mask, and are left out", data, boxes)
    return replace(dataset, samples=masks)


def state_of(data: str) -> str:
    """Tells a COCO file that was written anew; nothing of folders."""
    path = Path(data)
    return f"{path.stat().st_size} {path.stat().st_mtime_ns}" if path.is_file() else ""


def check_samples(samples: Iterable[PublishedSample | CocoSample], limit: int | None = None) -> None:
    """Look at objects before hours of clicks on them: each has its image file, and in COCO files a mask that is one.

    Args:
        samples: Of `open_samples`.
        limit: The first objects only.

    Raises:
        BadInputError: An image file is not there.
        BadAnnotationsError: A mask is malformed; of the papers' sets, a file that says which objects there are.
    """
    missing: dict[Path, None] = {}
    for sample in itertools.islice(samples, limit):
        path = sample.image.path if isinstance(sample, CocoSample) else sample.image
        if not path.is_file():
            missing[path] = None
        if isinstance(sample, CocoSample):
            sample.read_gt()
    if missing:
        what = samples.path if isinstance(samples, CocoDataset) else "the data set"
        raise BadInputError(f"{len(missing)} images of {what} are not there, such as {next(iter(missing))}.")
