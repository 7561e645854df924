"""Scenes drawn by rule: textured shapes over textured ground. No photograph needed; the truth is exact."""

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.training_sets import Scene


def noise_texture(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float32]:
    """(H, W, 3) in [0, 1]: two colours mixed by noise of several scales, sometimes stripes or a gradient on top."""
    height, width = size
    mix = np.zeros(size, np.float32)
    for octave in range(int(rng.integers(1, 5))):
        cells = 2 ** (octave + int(rng.integers(1, 4)))
        coarse = rng.random((cells, cells), dtype=np.float32)
        mix += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * 0.6**octave
    kind = rng.random()
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    along = xs * np.float32(np.cos(angle)) + ys * np.float32(np.sin(angle))
    if kind < 0.25:
        mix += np.sin(along * np.float32(rng.uniform(0.05, 0.8))) * np.float32(rng.uniform(0.1, 0.8))
    elif kind < 0.5:
        mix += along / max(size) * np.float32(rng.uniform(0.3, 1.5))
    mix = (mix - mix.min()) / (np.ptp(mix) + 1e-6)
    first = rng.random(3)
    second = np.clip(first + rng.normal(0, rng.choice([0.05, 0.15, 0.4]), 3), 0, 1)
    texture = first.astype(np.float32) + (second - first).astype(np.float32) * mix[..., None]
    grain = rng.standard_normal((*size, 1), np.float32) * np.float32(rng.uniform(0, 0.05))
    return np.asarray((texture + grain).clip(0, 1), np.float32)


def random_shape(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) a blob, ellipse, polygon, thin curve or ring, possibly cut by the border."""
    height, width = size
    canvas = np.zeros(size, np.uint8)
    centre = np.array([rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height])
    radius = min(size) * np.exp(rng.uniform(np.log(0.05), np.log(0.45)))
    kind = rng.choice(["blob", "ellipse", "polygon", "curve", "ring"], p=[0.4, 0.15, 0.2, 0.15, 0.1])
    if kind in ("ellipse", "ring"):
        axes = (int(radius) + 2, int(radius * rng.uniform(0.3, 1)) + 2)
        thickness = -1 if kind == "ellipse" else max(3, int(radius * rng.uniform(0.1, 0.5)))
        at = (int(centre[0]), int(centre[1]))
        cv2.ellipse(canvas, at, axes, rng.uniform(0, 180), 0, 360, 1, thickness)
    elif kind == "curve":
        steps = np.cumsum(rng.normal(0, radius * 0.5, (6, 2)), 0)
        ts = np.linspace(0, 5, 40)
        points = np.stack([np.interp(ts, range(6), steps[:, i]) for i in range(2)], 1) + centre
        thickness = max(3, int(radius * rng.uniform(0.05, 0.25)))
        cv2.polylines(canvas, [points.astype(np.int32)], False, 1, thickness)
    else:
        count = int(rng.integers(3, 8)) if kind == "polygon" else 72
        angles = np.sort(rng.uniform(0, 2 * np.pi, count)) if kind == "polygon" else np.linspace(0, 2 * np.pi, count)
        radii = np.full(count, radius)
        if kind == "polygon":
            radii = radii * rng.uniform(0.4, 1.2, count)
        else:
            for harmonic in range(1, 6):
                radii += radius * rng.normal(0, 0.35) / harmonic * np.cos(harmonic * angles + rng.uniform(0, 6.3))
        around = np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.4, 1)], 1) * np.abs(radii)[:, None]
        cv2.fillPoly(canvas, [(around + centre).astype(np.int32)], 1)
    return canvas.astype(bool)


def procedural_scene(rng: np.random.Generator, size: tuple[int, int] = (320, 320), min_area: int = 300) -> Scene:
    """A scene of 2 to 8 shapes, later ones in front; shapes that are hidden below `min_area` px are left out."""
    image = noise_texture(rng, size)
    owner = np.zeros(size, np.int32)
    for index in range(1, int(rng.integers(2, 9)) + 1):
        shape = random_shape(rng, size)
        fill = noise_texture(rng, size)
        if rng.random() < 0.3:  # a shape of two parts: one object, two looks
            inner = random_shape(rng, size)
            fill = np.where(inner[..., None], noise_texture(rng, size), fill)
        if rng.random() < 0.3:  # shadow
            shadow = cv2.GaussianBlur(np.roll(shape, (6, 6), (0, 1)).astype(np.float32), (0, 0), 5)
            image = image * (1 - 0.5 * shadow[..., None])
        alpha = cv2.GaussianBlur(shape.astype(np.float32), (0, 0), rng.uniform(0.4, 1.2))[..., None]
        image = image * (1 - alpha) + fill * alpha
        owner[shape] = index
    masks = np.stack([owner == index for index in range(1, owner.max() + 1)])
    large = masks.sum((1, 2)) >= min_area
    if not large.any():
        return procedural_scene(rng, size, min_area)
    return Scene((image * 255).astype(np.uint8), masks[large])
