"""Early stopping's measure: mean IoU of the robot user's first clicks on a fixed few objects of the training images."""

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np

from pipeline.adapters.scenes import AdapterImage, AdapterTarget, Scene, SceneSource, Turn
from pipeline.adapters.threads import map_in_threads
from pipeline.clicks.simulate import next_click
from pipeline.evaluation.metrics import iou
from pipeline.inference.instance import apply_edit, final_mask, start
from pipeline.models._base import InteractiveModel
from schemas.clicks import Click
from schemas.predictions import Edit


def click_edit(click: Click) -> Edit:
    """A click as the edit that the live path takes."""
    payload = {"v": 1, "x": click.x, "y": click.y, "is_positive": click.is_positive}
    return Edit(kind="click", payload=payload, payload_sha256="")


def split_images(
    images: Sequence[AdapterImage], share: float, max_objects: int, seed: int
) -> tuple[list[AdapterImage], list[tuple[AdapterImage, int]]]:
    """Set some images aside for early stopping.

    Near-duplicates stay together; which groups are taken depends on their names and the seed only.

    Args:
        images: Each with at least one target.
        share: Of the groups that is set aside.
        max_objects: At most so many (image, index of target) pairs, spread evenly over the images set aside.
        seed: Changes the choice.

    Returns:
        Images to train on, and objects to validate on; none of the latter when there are fewer than 5 groups.
    """
    groups = sorted({i.group for i in images}, key=lambda g: hashlib.sha256(f"{seed}/{g}".encode()).digest())
    aside = set(groups[: max(1, round(share * len(groups)))]) if len(groups) >= 5 and share > 0 else set()
    training = [image for image in images if image.group not in aside]
    kept = [image for image in images if image.group in aside]
    most = max((len(image.targets) for image in kept), default=0)
    objects = [(image, index) for index in range(most) for image in kept if index < len(image.targets)]
    return training, objects[:max_objects]


def mean_iou(
    model: InteractiveModel,
    objects: Sequence[tuple[AdapterImage, int]],
    source: SceneSource,
    num_clicks: int,
    max_side: int,
    turn: Turn = nullcontext,
) -> float:
    """Mean over objects and over the first `num_clicks` clicks of the IoU on the live path."""
    scenes = ((source.scene(image, max_side=max_side), image.targets[index]) for image, index in objects)
    curves = map_in_threads(lambda found: _curve(model, *found, num_clicks, turn), scenes)
    return float(np.mean(list(curves)))


def _curve(model: InteractiveModel, scene: Scene, target: AdapterTarget, num_clicks: int, turn: Turn) -> list[float]:
    truth = scene.target_mask(target)
    state, mask = start(scene.image), np.zeros(scene.size, np.bool_)
    ious: list[float] = []
    for _ in range(num_clicks):
        with turn():
            click = next_click(truth, mask)
            if click is not None:  # else nothing is wrong any more and the last IoU stands
                state = apply_edit(model, scene.image, scene.encoding, state, click_edit(click))
                mask = final_mask(state, scene.size)
        ious.append(iou(truth, mask))
    return ious
