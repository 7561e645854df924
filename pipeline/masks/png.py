"""Masks as PNG files for people and other programs: 255 inside, 0 outside."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


def write_mask(path: str | Path, mask: NDArray[np.bool_]) -> int:
    """Write a bool (H, W) mask as an 8-bit grey PNG.

    Returns:
        The mask's area in pixels.
    """
    encoded = cv2.imencode(".png", mask.astype(np.uint8) * np.uint8(255))[1]
    Path(path).write_bytes(encoded.tobytes())
    return int(np.count_nonzero(mask))
