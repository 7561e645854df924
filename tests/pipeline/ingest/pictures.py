"""Small pictures for tests: smooth random scenes, so that different seeds are no near-duplicates."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def scene(seed: int, height: int = 60, width: int = 80) -> NDArray[np.uint8]:
    """HWC uint8 RGB: a few random blobs of colour."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def encoded(pixels: NDArray[Any], format: str = "PNG", **options: Any) -> bytes:
    """An image file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=format, **options)
    return buffer.getvalue()


def write_scenes(folder: Path, seeds: range) -> None:
    """scene-000.png, scene-001.jpg, ...: PNG for even seeds, JPEG for odd ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        name, format = (f"scene-{seed:03d}.png", "PNG") if seed % 2 == 0 else (f"scene-{seed:03d}.jpg", "JPEG")
        (folder / name).write_bytes(encoded(scene(seed), format))
