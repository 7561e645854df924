"""What the readers of published data sets share: one object per sample, and a clear word when files are missing."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.coco import read_image
from schemas.errors import BadAnnotationsError, BadInputError

logger = logging.getLogger(__name__)

_OF_WINDOWS = ("thumbs.db", "desktop.ini")
"""What file browsers leave in folders of images."""


@dataclass(frozen=True)
class FileSample:
    """One object of a data set whose masks are image files.

    Attributes:
        sample_id: Unique in the data set.
        image: Path of the photograph.
        mask: Path of the mask.
        object_value: Value of the object's pixels; None: every value above `ignore_value`.
        ignore_value: Value of pixels that don't count; None: there are none.
        category: Name of the category, if there is one.
    """

    sample_id: str
    image: Path
    mask: Path
    object_value: int | None = None
    ignore_value: int | None = None
    category: str | None = field(default=None)

    def read_image(self) -> NDArray[np.uint8]:
        """HWC uint8 RGB; the same array while consecutive samples share their image.

        Raises:
            BadImageError: The file is missing or no image.
        """
        return read_image(self.image)

    def read_gt(self) -> NDArray[np.int8]:
        """int8 (H, W): 1 object, 0 background, -1 where it doesn't count.

        Raises:
            BadAnnotationsError: The mask is missing, unreadable, or of another size than the image.
        """
        labels = read_labels(self.mask, has_indices=self.object_value is not None)
        require_size(self.mask, labels.shape, self.read_image().shape[:2])
        floor = 0 if self.ignore_value is None else self.ignore_value
        gt = (labels > floor if self.object_value is None else labels == self.object_value).astype(np.int8)
        if self.ignore_value is not None:
            gt[labels == self.ignore_value] = -1
        return gt


def require_size(path: Path, found: tuple[int, ...], size: tuple[int, ...]) -> None:
    """Refuse labels of another size than their image's.

    Args:
        path: Of the labels.
        found: Their (H, W).
        size: The image's.

    Raises:
        BadAnnotationsError: They differ.
    """
    if found != size:
        raise BadAnnotationsError(f"{path} has size {found}, its image {size} (height, width).")


def read_labels(path: Path, *, has_indices: bool = True) -> NDArray[np.uint8]:
    """A mask file as one uint8 plane (H, W): colours by their largest channel, of 16 bits the high byte.

    Args:
        path: Of the file.
        has_indices: Indices of a palette are the labels; else they are colours, too.

    Raises:
        BadAnnotationsError: It is missing or no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            is_plane = (
                opened.mode in ("L", "1") or opened.mode.startswith("I;16") or (opened.mode == "P" and has_indices)
            )
            plane = np.asarray(opened if is_plane else opened.convert("RGB"))
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise BadAnnotationsError(f"Mask {path} can't be read: {error}.") from error
    plane = plane.max(2) if plane.ndim == 3 else plane
    plane = plane >> 8 if plane.dtype == np.uint16 and plane.max() > 255 else plane
    return (plane.astype(np.uint8) * 255) if plane.dtype == np.bool_ else plane.astype(np.uint8)


def require(root: Path, names: Sequence[str], what: str) -> None:
    """Refuse a folder that lacks what a data set consists of.

    Raises:
        BadInputError: Something is missing; the message says what is expected where.
    """
    missing = [name for name in names if not (root / name).exists()]
    if missing:
        raise BadInputError(
            f"{root} is no {what}: {', '.join(missing)} missing. Expected {', '.join(names)} inside that folder."
        )


def pair_files(images: Path, masks: Path, **options: int | None) -> list[FileSample]:
    """One sample per mask file, with the photograph of the same stem; photographs without a mask are told of.

    Raises:
        BadInputError: A mask has no photograph, or there is no mask.
    """
    photographs = {path.stem: path for path in _files(images)}
    samples = []
    for mask in _files(masks):
        if mask.stem not in photographs:
            raise BadInputError(f"{mask} has no photograph {images / mask.stem}.*.")
        samples.append(FileSample(mask.stem, photographs[mask.stem], mask, **options))  # type: ignore[arg-type]
    if not samples:
        raise BadInputError(f"{masks} holds no mask.")
    if bare := sorted(photographs.keys() - {sample.sample_id for sample in samples}):
        logger.warning("%s: %d photographs have no mask, such as %s, and are left out", images, len(bare), bare[0])
    return samples


def _files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if not path.name.startswith(".") and path.name.lower() not in _OF_WINDOWS
    )


def split_labels(labels: NDArray[np.integer], ignore: Sequence[int] = (0,)) -> NDArray[np.bool_]:
    """(M, H, W) bool: one mask per value of a label map."""
    values = [value for value in np.unique(labels) if value not in ignore]
    return np.stack([labels == value for value in values]) if values else np.zeros((0, *labels.shape), np.bool_)


def bgr_to_rgb(path: Path) -> NDArray[np.uint8]:
    """A photograph for training: HWC uint8 RGB.

    Raises:
        BadInputError: The file is missing or no image.
    """
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise BadInputError(f"{path} is missing or no image.")
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)
