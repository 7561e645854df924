"""A small world that toy-color gets wrong with its shipped weights and can learn: large speckled blobs."""

import hashlib

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.adapters.scenes import AdapterImage, AdapterTarget
from pipeline.adapters.source import CachedSource
from pipeline.adapters.steps import AdapterConfig
from pipeline.masks.rle import mask_to_rle
from pipeline.models import create_model
from pipeline.models._base import InteractiveModel
from schemas.predictions import ImageRef

SIZE = (144, 160)


def speckled_image(seed: int, objects: int = 2) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    """Ellipses whose colour wanders a lot inside, on a background that wanders as well but is of another hue."""
    rng = np.random.default_rng(seed)
    height, width = SIZE

    def wander(base: NDArray[np.float64], spread: float) -> NDArray[np.float64]:
        coarse = rng.normal(0, 1, (9, 10, 1)).astype(np.float32)
        smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
        return base + spread * smooth

    image = wander(np.array([90.0, 120.0, 90.0]), 18)
    masks = []
    for index in range(objects):
        centre = (int((index + 0.5 + rng.uniform(-0.1, 0.1)) * width / objects), int(rng.uniform(0.4, 0.6) * height))
        axes = (int(rng.uniform(0.7, 0.9) * width / objects / 2), int(rng.uniform(0.25, 0.4) * height))
        drawn = np.zeros(SIZE, np.uint8)
        cv2.ellipse(drawn, centre, axes, float(rng.uniform(-20, 20)), 0, 360, 1, -1)
        masks.append(drawn.astype(bool))
        image = np.where(drawn[..., None] > 0, wander(np.array([170.0, 120.0, 90.0]), 40), image)
    return image.clip(0, 255).astype(np.uint8), masks


def world(count: int, first_seed: int = 0, objects: int = 2) -> tuple[list[AdapterImage], dict[str, NDArray[np.uint8]]]:
    """Images with their truth as accepted masks, and their pixels by content hash."""
    images, pixels = [], {}
    for seed in range(first_seed, first_seed + count):
        image, masks = speckled_image(seed, objects)
        sha256 = hashlib.sha256(image.tobytes()).hexdigest()
        targets = tuple(
            AdapterTarget(mask_id=f"{seed}-{number}", category=1 + number % 2, rle=mask_to_rle(mask))
            for number, mask in enumerate(masks)
        )
        ref = ImageRef(sha256=sha256, uri=f"memory:{seed}", width=SIZE[1], height=SIZE[0])
        images.append(AdapterImage(ref=ref, group=sha256, targets=targets))
        pixels[sha256] = image
    return images, pixels


def memory_source(model: InteractiveModel, pixels: dict[str, NDArray[np.uint8]]) -> CachedSource:
    """Scenes out of a dict."""
    return CachedSource(model, lambda image: pixels[image.ref.sha256])


def toy() -> InteractiveModel:
    """toy-color as shipped."""
    return create_model("toy-color")


def spoiled_toy() -> InteractiveModel:
    """toy-color with weights that reach too short: it needs about nine clicks where two are enough."""
    model = create_model("toy-color")
    with torch.no_grad():
        for name, value in (("colour", 4.0), ("place", 7.0), ("reach", 0.8)):
            model.get_parameter(name).fill_(value)
    return model


QUICK = AdapterConfig(
    max_steps=30,
    learning_rate=0.2,
    warmup_steps=3,
    validate_every=10,
    ema=0.8,
    objects_per_step=2,
    max_clicks=3,
    validation_objects=8,
    validation_clicks=4,
)
"""A training of a few seconds for six weights."""
