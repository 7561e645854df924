"""Image sets that may train: a light index of COCO folders, decoded one image at a time.

Knows which sets and which split may be used; does not know samples, clicks or models. A folder of sets may have an
`index.json` that states the use of each; anything but "train" is refused, whoever asks for it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.masks.polygons import polygons_to_rle, uncompressed_to_rle
from schemas.errors import BadAnnotationsError, BadImageError, BadInputError


@dataclass(frozen=True)
class Scene:
    """A photograph and its instances.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        masks: (M, H, W) bool.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]


@dataclass(frozen=True)
class TrainingImage:
    """One image of a set, not decoded.

    Attributes:
        path: Of the photograph.
        size: (height, width).
        segmentations: Of each usable instance: polygons or COCO RLE, as in the file.
    """

    path: Path
    size: tuple[int, int]
    segmentations: tuple[Any, ...]

    def load(self, only: Sequence[int] | None = None) -> Scene:
        """Decode the photograph and its masks.

        Args:
            only: Indices of the instances to decode; None means all.

        Raises:
            BadImageError: The file is missing or is no image.
            BadAnnotationsError: A mask is malformed.
        """
        bgr = cv2.imread(str(self.path), cv2.IMREAD_COLOR)
        if bgr is None or bgr.shape[:2] != self.size:
            raise BadImageError(f"{self.path} is not a readable image of size {self.size}. Check the set's folder.")
        chosen = self.segmentations if only is None else [self.segmentations[i] for i in only]
        try:
            rles = [_rle(segmentation, self.size) for segmentation in chosen]
        except (BadInputError, ValueError, TypeError, KeyError) as error:
            raise BadAnnotationsError(f"A mask of {self.path} is malformed: {error}") from error
        masks = coco_mask.decode(rles).transpose(2, 0, 1).astype(bool)
        return Scene(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8), masks)


def allowed_sets(root: Path) -> list[str]:
    """Names of the sets under a folder whose stated use is "train"; all of them where nothing is stated.

    Raises:
        BadAnnotationsError: There is no set, or the folder's index is malformed.
    """
    index = root / "index.json"
    if index.exists():
        try:
            names = [item["path"] for item in json.loads(index.read_text())["sets"] if item["use"] == "train"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadAnnotationsError(
                f"{index} is no index of sets: {error}. It needs sets[].path and .use."
            ) from error
    else:
        names = sorted(path.parent.name for path in root.glob("*/annotations.json"))
    if not names:
        raise BadAnnotationsError(f"No image set under {root}: expected folders with annotations.json and images/.")
    return names


def read_set(folder: Path, split: Literal["train", "val"], min_area: int = 300) -> list[TrainingImage]:
    """The images of one split with their usable instances (single, with a mask, at least `min_area` px if stated).

    Raises:
        BadAnnotationsError: The COCO file is missing or malformed, or an image is not there.
    """
    path = folder / "annotations.json"
    try:
        coco = json.loads(path.read_text())
        by_image: dict[int, list[Any]] = {}
        for item in coco["annotations"]:
            mask = item.get("segmentation")
            large = item.get("area", min_area) >= min_area
            if mask and large and not item.get("iscrowd"):
                by_image.setdefault(item["image_id"], []).append(mask)
        images = [
            TrainingImage(
                folder / "images" / image["file_name"], (image["height"], image["width"]), tuple(by_image[image["id"]])
            )
            for image in coco["images"]
            if image.get("split", "train") == split and image["id"] in by_image
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadAnnotationsError(f"{path} cannot be read as COCO with masks: {error!r}.") from error
    missing = [image.path for image in images if not image.path.is_file()]
    if missing:
        raise BadAnnotationsError(f"{len(missing)} images of {path} are not there, such as {missing[0]}.")
    return images


def _rle(segmentation: Any, size: tuple[int, int]) -> Any:
    """What pycocotools decodes."""
    if isinstance(segmentation, list):
        return polygons_to_rle(segmentation, size).model_dump()
    if isinstance(segmentation["counts"], list):
        return uncompressed_to_rle(segmentation["counts"], size).model_dump()
    return segmentation
