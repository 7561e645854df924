"""The band of a mask along its boundary, for boundary IoU."""

import cv2
import numpy as np
from numpy.typing import NDArray


def boundary_width(size: tuple[int, int], dilation_ratio: float = 0.02) -> int:
    """Width of the band in pixels: a share of the image diagonal, at least 1.

    Args:
        size: (H, W) of the image.
        dilation_ratio: The share; 0.02 as in the source.

    Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", sec. 4.
    """
    return max(1, round(dilation_ratio * float(np.hypot(*size))))


def boundary_band(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Pixels of the mask within `width` (chessboard distance) of its boundary; the image border is a boundary.

    Args:
        mask: bool (H, W).
        width: In pixels, at least 1.

    Returns:
        bool (H, W), part of the mask: the mask without its erosion by a (2 width + 1)² square.
    """
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    pixels = np.ascontiguousarray(mask).view(np.uint8)
    eroded = cv2.erode(pixels, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    band: NDArray[np.bool_] = mask & (eroded == 0)
    return band
