"""Bounding boxes of masks. Boxes are half-open; says nothing about ROIs (see `pipeline.inference.zoom`)."""

import cv2
import numpy as np
from numpy.typing import NDArray


def mask_box_xywh(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(x, y, width, height) of a bool (H, W) mask in pixels, as COCO's `toBbox` gives it; zeros when empty."""
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    return int(x), int(y), int(width), int(height)


def mask_box_xyxy(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1), half-open, of a bool (H, W) mask in pixels; zeros when empty."""
    x, y, width, height = mask_box_xywh(mask)
    return x, y, x + width, y + height
