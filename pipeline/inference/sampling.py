"""How crops are cut from the image and probabilities carried back: one convention per cut.

`CornerAligned` repeats the official predictor (bilinear, align_corners=True) and belongs to cut "crop" models.
`PixelEdges` is ours for cut "image" models: crops antialiased, half-pixel-correct geometry, work only inside the ROI.
Knows nothing about models or clicks.
"""

from typing import Protocol, TypeAlias, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.inference.preprocess import pixels_to_tensor
from pipeline.inference.zoom import MASK_THRESHOLD, Roi
from pipeline.masks.boxes import mask_box_xyxy

Probability: TypeAlias = NDArray[np.float32]
_T = TypeVar("_T", bound=np.generic)


class Sampling(Protocol):
    """The moves between image and crop. `size` is (h, w) of the crop, `image_size` (H, W) of the image."""

    def crop_image(self, image: NDArray[np.uint8], roi: Roi, size: tuple[int, int]) -> Tensor:
        """The ROI of an HWC uint8 image as (1, 3, h, w) float32 in [0, 1]."""

    def crop_pixels(self, image: NDArray[np.uint8], roi: Roi, size: tuple[int, int]) -> Tensor:
        """The same in the form to keep: uint8 where that loses nothing; `as_input` makes network input of it."""

    def crop_mask(self, mask: NDArray[np.bool_], roi: Roi, size: tuple[int, int]) -> Probability:
        """The ROI of a bool (H, W) mask as soft probability (h, w)."""

    def carry(
        self,
        probability: Probability,
        old: Roi,
        new: Roi,
        image_size: tuple[int, int],
        size: tuple[int, int] | None = None,
    ) -> Probability:
        """A crop probability of one ROI as crop probability of another, of `size` (by default its own size); zero
        outside the old ROI."""

    def paste(self, probability: Probability, roi: Roi, image_size: tuple[int, int]) -> Probability:
        """A crop probability as a map (H, W); zero outside the ROI."""

    def mask_box(self, probability: Probability, roi: Roi) -> Roi | None:
        """Box in image pixels of what is inside (probability > 0.5); None when nothing is."""


class CornerAligned:
    """The official predictor's resampling: bilinear with align_corners=True, no antialiasing."""

    def crop_image(self, image: NDArray[np.uint8], roi: Roi, size: tuple[int, int]) -> Tensor:
        return as_input(self.crop_pixels(image, roi, size))

    def crop_pixels(self, image: NDArray[np.uint8], roi: Roi, size: tuple[int, int]) -> Tensor:
        y0, x0, y1, x1 = roi
        return _resize_corners(pixels_to_tensor(image[y0:y1, x0:x1]), size)

    def crop_mask(self, mask: NDArray[np.bool_], roi: Roi, size: tuple[int, int]) -> Probability:
        y0, x0, y1, x1 = roi
        return _resize_map(mask[y0:y1, x0:x1].astype(np.float32), size)

    def carry(
        self,
        probability: Probability,
        old: Roi,
        new: Roi,
        image_size: tuple[int, int],
        size: tuple[int, int] | None = None,
    ) -> Probability:
        y0, x0, y1, x1 = new
        return _resize_map(
            self.paste(probability, old, image_size)[y0:y1, x0:x1], size or (probability.shape[0], probability.shape[1])
        )

    def paste(self, probability: Probability, roi: Roi, image_size: tuple[int, int]) -> Probability:
        y0, x0, y1, x1 = roi
        pasted = np.zeros(image_size, np.float32)
        pasted[y0:y1, x0:x1] = _resize_map(probability, (y1 - y0, x1 - x0))
        return pasted

    def mask_box(self, probability: Probability, roi: Roi) -> Roi | None:
        y0, x0, y1, x1 = roi
        inside = _resize_map(probability, (y1 - y0, x1 - x0)) > MASK_THRESHOLD
        return _shifted_box(inside, y0, x0) if inside.any() else None


class PixelEdges:
    """Our resampling for cut "image": pixel edges map to pixel edges, and shrinking averages."""

    def crop_image(self, image: NDArray[np.uint8], roi: Roi, size: tuple[int, int]) -> Tensor:
        return as_input(self.crop_pixels(image, roi, size))

    def crop_pixels(self, image: NDArray[np.uint8], roi: Roi, size: tuple[int, int]) -> Tensor:
        y0, x0, y1, x1 = roi
        planes = np.ascontiguousarray(shrink(image[y0:y1, x0:x1], size).transpose(2, 0, 1))
        return torch.from_numpy(planes)[None]

    def crop_mask(self, mask: NDArray[np.bool_], roi: Roi, size: tuple[int, int]) -> Probability:
        y0, x0, y1, x1 = roi
        pixels = np.ascontiguousarray(mask[y0:y1, x0:x1]).view(np.uint8) * np.uint8(255)
        return shrink(pixels, size).astype(np.float32) / np.float32(255)

    def carry(
        self,
        probability: Probability,
        old: Roi,
        new: Roi,
        image_size: tuple[int, int],
        size: tuple[int, int] | None = None,
    ) -> Probability:
        if old == new:
            return probability
        h, w = size or probability.shape
        scale_y, scale_x = (new[2] - new[0]) / (old[2] - old[0]), (new[3] - new[1]) / (old[3] - old[1])
        shift_y, shift_x = (new[0] - old[0]) * h / (old[2] - old[0]), (new[1] - old[1]) * w / (old[3] - old[1])
        moved = _warp(probability, (scale_y, shift_y), (scale_x, shift_x), (h, w))
        moved[_outside((new[0], new[2]), (old[0], old[2]), h)] = 0
        moved[:, _outside((new[1], new[3]), (old[1], old[3]), w)] = 0
        return moved

    def paste(self, probability: Probability, roi: Roi, image_size: tuple[int, int]) -> Probability:
        y0, x0, y1, x1 = roi
        pasted = np.zeros(image_size, np.float32)
        pasted[y0:y1, x0:x1] = cv2.resize(probability, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
        return pasted

    def mask_box(self, probability: Probability, roi: Roi) -> Roi | None:
        """By whole crop pixels, rounded outwards: exact enough for a box that is expanded anyway, and cheap."""
        inside = probability > MASK_THRESHOLD
        if not inside.any():
            return None
        row0, column0, row1, column1 = _shifted_box(inside, 0, 0)
        h, w = probability.shape
        y0, x0, y1, x1 = roi
        height, width = y1 - y0, x1 - x0
        return (
            y0 + row0 * height // h, x0 + column0 * width // w, y0 - (-row1 * height // h), x0 - (-column1 * width // w)
        )  # fmt: skip


def as_input(crop: Tensor) -> Tensor:
    """Network input, float32 in [0, 1], of what `crop_pixels` gave."""
    return crop.float() / 255.0 if crop.dtype == torch.uint8 else crop


def shrink(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize uint8 pixels with antialiasing: axes are halved by averaging while they are at least twice too long, then
    resized bilinearly. Three times faster than OpenCV's area filter at 1080p, and geometrically exact.

    Args:
        pixels: (H, W) or (H, W, C).
        size: (h, w) of the result; an axis may also grow.
    """
    height, width = pixels.shape[:2]
    halved = pixels
    factor_y = factor_x = 1
    while True:
        rows, columns = halved.shape[:2]
        by_y, by_x = 1 + (rows >= 2 * size[0]), 1 + (columns >= 2 * size[1])
        if by_y * by_x == 1:
            break
        even = halved[: rows // by_y * by_y, : columns // by_x * by_x]
        halved = cv2.resize(even, (columns // by_x, rows // by_y), interpolation=cv2.INTER_AREA)
        factor_y, factor_x = factor_y * by_y, factor_x * by_x
    if halved.shape[0] * factor_y == height and halved.shape[1] * factor_x == width:
        return np.asarray(cv2.resize(halved, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), np.uint8)
    # An odd row or column was left out by a halving: place the rest exactly.
    scale_y, scale_x = height / factor_y / size[0], width / factor_x / size[1]
    return _warp(halved, (scale_y, 0.0), (scale_x, 0.0), size)


def _warp(pixels: NDArray[_T], y: tuple[float, float], x: tuple[float, float], size: tuple[int, int]) -> NDArray[_T]:
    """Bilinear resampling by (scale, shift) per axis, in pixel edges of the source; edges are replicated."""
    matrix = np.array([[x[0], 0.0, x[1] + 0.5 * x[0] - 0.5], [0.0, y[0], y[1] + 0.5 * y[0] - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped: NDArray[_T] = cv2.warpAffine(
        pixels, matrix, (size[1], size[0]), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return warped


def _outside(new: tuple[int, int], old: tuple[int, int], count: int) -> NDArray[np.bool_]:
    """Which of `count` cells of the new interval have their centre outside the old one."""
    centres = new[0] + (np.arange(count) + 0.5) * ((new[1] - new[0]) / count)
    return (centres < old[0]) | (centres >= old[1])


def _shifted_box(inside: NDArray[np.bool_], y: int, x: int) -> Roi:
    x0, y0, x1, y1 = mask_box_xyxy(inside)
    return y + y0, x + x0, y + y1, x + x1


def _resize_corners(values: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(values, size=size, mode="bilinear", align_corners=True)


def _resize_map(values: Probability, size: tuple[int, int]) -> Probability:
    return np.asarray(
        _resize_corners(torch.from_numpy(np.require(values, requirements=["C", "W"]))[None, None], size)[0, 0].numpy()
    )
