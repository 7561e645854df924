"""A storage with a published model, and images with a bright disc, for tests of actors."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.embeddings.key import key_of_model
from pipeline.models import load_model
from pipeline.storage.weights import publish_model
from schemas.events import normalise_payload
from schemas.predictions import Edit, ImageRef, Pins, RefineRequest


@dataclass(frozen=True)
class StoredCampaign:
    """A storage URL, the pins of its model, and images beside it."""

    storage_url: str
    pins: Pins
    images: tuple[ImageRef, ...]


def make_campaign(folder: Path, images: int = 3, size: tuple[int, int] = (120, 160)) -> StoredCampaign:
    """Publish toy-color into `folder`/storage and write PNG images of this (height, width)."""
    storage_url = str(folder / "storage")
    digest, _ = publish_model(storage_url, "toy-color")
    pins = Pins(model_digest=digest, model_key=key_of_model(load_model("toy-color")))
    return StoredCampaign(storage_url, pins, tuple(write_image(folder, seed, size) for seed in range(images)))


def write_image(folder: Path, seed: int, size: tuple[int, int] = (120, 160)) -> ImageRef:
    """A noisy dark picture with a bright disc in the middle."""
    height, width = size
    image = np.random.default_rng(seed).integers(0, 60, (height, width, 3), np.uint8)
    cv2.circle(image, (width // 2, height // 2), min(size) // 4, (40, 220, 240), -1)
    path = folder / f"{seed}.png"
    assert cv2.imwrite(str(path), image)
    return ImageRef(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), uri=str(path), width=width, height=height)


def edit(kind: str, **payload: object) -> Edit:
    """An edit as the gateway makes it from a stored event."""
    stored, digest = normalise_payload(kind, payload)
    return Edit.model_validate({"kind": kind, "payload": stored, "payload_sha256": digest})


def click(x: float, y: float, is_positive: bool = True) -> Edit:
    """A click edit."""
    return edit("click", x=x, y=y, is_positive=is_positive)


def request(campaign: StoredCampaign, *edits: Edit, image: int = 0, **options: object) -> RefineRequest:
    """A refine request for an image of the campaign; the edits follow an `open`."""
    values = {"image": campaign.images[image], "pins": campaign.pins, "edits": (edit("open"), *edits), **options}
    return RefineRequest.model_validate(values)
