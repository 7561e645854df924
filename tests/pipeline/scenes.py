"""Small synthetic pictures with their truth, for tests of whatever takes an image. Knows no product code."""

import cv2
import numpy as np
from numpy.typing import NDArray


def ellipse_scene(seed: int, height: int = 120, width: int = 160) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A coloured ellipse on a two-tone background with noise: HWC uint8 RGB and the bool (H, W) mask."""
    rng = np.random.default_rng(seed)
    image = np.empty((height, width, 3), np.uint8)
    image[:] = (40, 60, 90)
    image[:, width // 2 :] = (60, 90, 120)
    centre = (int(rng.integers(width // 3, 2 * width // 3)), int(rng.integers(height // 3, 2 * height // 3)))
    axes = (int(rng.integers(15, 40)), int(rng.integers(12, 30)))
    angle = float(rng.uniform(0, 180))
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, centre, axes, angle, 0, 360, 1, -1)
    image[mask == 1] = (200, 70, 40)
    noisy = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    return noisy, mask.astype(np.bool_)
