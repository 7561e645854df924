"""Changes to whole scenes that keep masks true: colour, flip, cut-out, copy-paste. Knows no clicks and no regions."""

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.training_sets import Scene


def jitter_colours(rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Brightness, contrast, saturation, gamma, a shift per channel; now and then grey, blur or noise."""
    x = image
    if rng.random() < 0.3:
        gamma = rng.uniform(0.6, 1.6)
        x = cv2.LUT(x, (255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)).astype(np.uint8)
    saturation = 0.0 if rng.random() < 0.05 else rng.uniform(0.5, 1.5)
    contrast = rng.uniform(0.7, 1.4)
    mix = contrast * (saturation * np.eye(3) + (1 - saturation) / 3)
    shift = 255 * (0.5 - 0.5 * contrast + rng.uniform(-0.2, 0.2) + rng.uniform(-0.06, 0.06, 3))
    x = cv2.transform(x, np.concatenate([mix, shift[:, None]], 1)).astype(np.uint8)
    if rng.random() < 0.1:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.5, 1.5)).astype(np.uint8)
    if rng.random() < 0.1:
        noise = rng.standard_normal(x.shape, np.float32) * np.float32(255 * rng.uniform(0.01, 0.05))
        x = (x + noise).clip(0, 255).astype(np.uint8)
    return np.asarray(x, np.uint8)


def shrink(scene: Scene, longest: int) -> Scene:
    """Scaled so that the longest side is at most `longest` px."""
    height, width = scene.image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return scene
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = cv2.resize(scene.image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    masks = [cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0 for mask in scene.masks]
    return Scene(image, np.stack(masks))


def mirror(scene: Scene) -> Scene:
    """Left and right swapped."""
    return Scene(np.ascontiguousarray(scene.image[:, ::-1]), np.ascontiguousarray(scene.masks[:, :, ::-1]))


def cut_window(rng: np.random.Generator, scene: Scene, min_area: int = 300) -> Scene:
    """A random window of at least 45 % of each side that still shows some instance; the scene itself if none does."""
    height, width = scene.image.shape[:2]
    for _ in range(4):
        h, w = int(height * rng.uniform(0.45, 1)), int(width * rng.uniform(0.45, 1))
        y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        masks = scene.masks[:, y : y + h, x : x + w]
        shown = masks.sum((1, 2)) >= np.maximum(min_area, 0.3 * scene.masks.sum((1, 2)))
        if shown.any():
            return Scene(np.ascontiguousarray(scene.image[y : y + h, x : x + w]), masks[shown])
    return scene


def paste_instance(rng: np.random.Generator, onto: Scene, source: Scene, min_area: int = 300) -> Scene:
    """Put one instance of `source`, scaled and recoloured, in front of `onto`; what it hides shrinks or goes."""
    mask = source.masks[int(rng.integers(len(source.masks)))]
    ys, xs = np.nonzero(mask)
    y0, y1, x0, x1 = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    patch, alpha = source.image[y0:y1, x0:x1], mask[y0:y1, x0:x1].astype(np.float32)
    height, width = onto.image.shape[:2]
    side = np.exp(rng.uniform(np.log(0.12), np.log(0.8))) * min(height, width)
    scale = side / max(alpha.shape)
    size = (max(8, int(alpha.shape[1] * scale)), max(8, int(alpha.shape[0] * scale)))
    patch = jitter_colours(rng, cv2.resize(patch, size, interpolation=cv2.INTER_AREA).astype(np.uint8))
    alpha = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        patch, alpha = patch[:, ::-1], alpha[:, ::-1]
    top = int(rng.uniform(-0.2, 1.2) * height - size[1] / 2)
    left = int(rng.uniform(-0.2, 1.2) * width - size[0] / 2)
    ya, yb = max(0, top), min(height, top + size[1])
    xa, xb = max(0, left), min(width, left + size[0])
    if yb - ya < 8 or xb - xa < 8:
        return onto
    part = alpha[ya - top : yb - top, xa - left : xb - left]
    new = np.zeros((height, width), bool)
    new[ya:yb, xa:xb] = part > 0.5
    if new.sum() < min_area:
        return onto
    image = onto.image.copy()
    soft = cv2.GaussianBlur(np.ascontiguousarray(part), (0, 0), 0.7)[..., None]
    below = image[ya:yb, xa:xb]
    image[ya:yb, xa:xb] = (below * (1 - soft) + patch[ya - top : yb - top, xa - left : xb - left] * soft).astype(
        np.uint8
    )
    left_over = onto.masks & ~new
    kept = left_over[left_over.sum((1, 2)) >= min_area]
    return Scene(image, np.concatenate([new[None], kept]))
