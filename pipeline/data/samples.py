"""Batches for training an interactive model with cut "image": whole images, regions of interest, targets.

A batch is a pure function of (seed, step), so that a resumed run sees what an uninterrupted one would. Knows sets,
mixing and regions; clicks beyond the synthetic previous masks are the trainer's business, as they need the model.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.data.augment import cut_window, jitter_colours, mirror, paste_instance, shrink
from pipeline.data.procedural import procedural_scene
from pipeline.data.training_sets import Scene, TrainingImage, allowed_sets, read_set
from schemas.errors import BadAnnotationsError


@dataclass(frozen=True)
class Batch:
    """Tensors of one step; region r belongs to image r // (R / B).

    Attributes:
        images: (B, 3, S, S) uint8.
        crops: (R, 3, C, C) uint8.
        rois: (R, 4) float (y0, x0, y1, x1), fractions of the image.
        targets: (R, C, C) int8: 1 object, 0 not, -1 does not count.
        previous: (R, C, C) float in [0, 1]: zeros, or a spoilt truth as if from earlier clicks.
    """

    images: Tensor
    crops: Tensor
    rois: Tensor
    targets: Tensor
    previous: Tensor


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What a batch is made of.

    Attributes:
        natural: Names of sets of varied photographs of whole objects.
        mix: Shares of (natural, copy-paste, procedural, narrow) images.
        early_mix: The same for the first `early_steps` steps.
        early_steps: See above.
        image_size: S, side of the square given to F1 (photographs are squashed to it), multiple of 32.
        crop_size: C, side of the crop given to F2, multiple of 16.
        num_images: B.
        rois_per_image: R / B.
        spoilt_previous: Share of regions that start from a spoilt truth instead of an empty mask.
        close_ups: Share of regions that see a part of the object's edge alone; they start from a spoilt truth, too.
        max_set_share: No set gives more than this share of the natural images.
    """

    natural: tuple[str, ...]
    mix: tuple[float, float, float, float] = (0.5, 0.22, 0.18, 0.1)
    early_mix: tuple[float, float, float, float] = (0.35, 0.2, 0.4, 0.05)
    early_steps: int = 0
    image_size: int = 512
    crop_size: int = 256
    num_images: int = 32
    rois_per_image: int = 4
    spoilt_previous: float = 0.25
    close_ups: float = 0.0
    max_set_share: float = 0.4

    def __post_init__(self) -> None:
        if self.image_size % 32 or self.crop_size % 16:
            raise ValueError("image_size must be a multiple of 32 and crop_size one of 16.")


class TrainingBatches(Dataset[Batch]):
    """Step number -> batch.

    Args:
        root: Folder of sets (see `training_sets.allowed_sets`); None means procedural scenes only.
        config: What to mix.
        seed: With the step it decides everything.

    Raises:
        BadAnnotationsError: There is a root, and nothing under it to train on.
    """

    def __init__(self, root: Path | None, config: SampleConfig, seed: int, num_steps: int) -> None:
        self.config, self.seed, self.num_steps = config, seed, num_steps
        self.sets: dict[str, list[TrainingImage]] = {}
        if root is not None:
            for name in allowed_sets(root):
                images = read_set(root / name, "train")
                if images:
                    self.sets[name] = images
            if not self.sets:
                raise BadAnnotationsError(f"No set under {root} has an image with a usable mask in its train split.")
        self._natural = [n for n in self.sets if n in config.natural]
        self._narrow = [n for n in self.sets if n not in config.natural]
        self._natural_shares = _shares([len(self.sets[n]) for n in self._natural], config.max_set_share)
        self._narrow_shares = _shares([len(self.sets[n]) for n in self._narrow], 0.3)

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Batch:
        cv2.setNumThreads(1)
        rng = np.random.default_rng((self.seed, step))
        scenes = [self._scene(rng, step) for _ in range(self.config.num_images)]
        size, crop = self.config.image_size, self.config.crop_size
        images, crops, rois, targets, previous = [], [], [], [], []
        for scene in scenes:
            images.append(_resize(scene.image, size, size))
            for _ in range(self.config.rois_per_image):
                target = _choose_target(rng, scene)
                close_up = rng.random() < self.config.close_ups if self.config.close_ups else False
                roi = close_up_roi(rng, target) if close_up else sample_roi(rng, target)
                y0, x0, y1, x1 = roi
                crops.append(_resize(scene.image[y0:y1, x0:x1], crop, crop))
                truth = cv2.resize(target[y0:y1, x0:x1].astype(np.float32), (crop, crop), interpolation=cv2.INTER_AREA)
                label = (truth > 0.5).astype(np.int8)
                targets.append(label)
                spoil = close_up or rng.random() < self.config.spoilt_previous
                previous.append(spoil_mask(rng, label > 0) if spoil else np.zeros((crop, crop), np.float32))
                height, width = target.shape
                rois.append([y0 / height, x0 / width, y1 / height, x1 / width])
        return Batch(
            images=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
            crops=torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2),
            rois=torch.tensor(rois, dtype=torch.float32),
            targets=torch.from_numpy(np.stack(targets)),
            previous=torch.from_numpy(np.stack(previous)),
        )

    def _drawn(self, rng: np.random.Generator) -> Scene:
        side = min(320, self.config.image_size)
        return procedural_scene(rng, (side, side))

    def _photo(self, rng: np.random.Generator, narrow: bool = False) -> Scene:
        names, shares = (self._narrow, self._narrow_shares) if narrow else (self._natural, self._natural_shares)
        if not names:
            return self._drawn(rng)
        images = self.sets[names[int(rng.choice(len(names), p=shares))]]
        image = images[int(rng.integers(len(images)))]
        count = len(image.segmentations)
        only = None if count <= 8 else rng.choice(count, 8, replace=False).tolist()
        scene = shrink(image.load(only), self.config.image_size * 3 // 2)
        scene = Scene(scene.image, scene.masks[scene.masks.any((1, 2))])
        if rng.random() < 0.5:
            scene = mirror(scene)
        return cut_window(rng, scene) if rng.random() < 0.6 else scene

    def _scene(self, rng: np.random.Generator, step: int) -> Scene:
        mix = self.config.early_mix if step < self.config.early_steps else self.config.mix
        kind = int(rng.choice(4, p=mix))
        if kind == 2:
            return self._drawn(rng)
        scene = self._photo(rng, narrow=kind == 3)
        if kind == 1:
            for _ in range(int(rng.integers(1, 4))):
                scene = paste_instance(rng, scene, self._photo(rng))
        if rng.random() < 0.75:
            scene = Scene(jitter_colours(rng, scene.image), scene.masks)
        return scene


def _shares(counts: list[int], cap: float) -> NDArray[np.float64]:
    """Square-root-of-size shares, none above `cap` where that is possible."""
    if not counts:
        return np.zeros(0)
    shares = np.sqrt(np.array(counts, float))
    shares = np.minimum(shares / shares.sum(), max(cap, 1 / len(counts)))
    result: NDArray[np.float64] = shares / shares.sum()
    return result


def _resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    shrinks = image.shape[0] > height and image.shape[1] > width
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8)


def _choose_target(rng: np.random.Generator, scene: Scene) -> NDArray[np.bool_]:
    """One instance, or in 15 % of the cases the union of 2 or 3 near ones."""
    first = int(rng.integers(len(scene.masks)))
    target: NDArray[np.bool_] = scene.masks[first]
    if len(scene.masks) > 1 and rng.random() < 0.15:
        near = cv2.dilate(target.astype(np.uint8), np.ones((15, 15), np.uint8)).astype(bool)
        touching = [i for i, mask in enumerate(scene.masks) if i != first and (mask & near).any()]
        for index in touching[: int(rng.integers(1, 3))]:
            target = target | scene.masks[index]
    return target


def sample_roi(rng: np.random.Generator, target: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The whole image (35 %), or around the object's box: sides log-uniform up to the image's, centre jittered.

    Each side is drawn about one common factor, as ZoomIn keeps the box's own shape. The object may be cut, but at least
    30 px of it stay inside. Half-open (y0, x0, y1, x1).
    """
    height, width = target.shape
    whole = (0, 0, height, width)
    if rng.random() < 0.35:
        return whole
    rows, cols = np.flatnonzero(target.any(1)), np.flatnonzero(target.any(0))
    box_h, box_w = rows[-1] - rows[0] + 1, cols[-1] - cols[0] + 1
    largest = max(1.2, min(height / box_h, width / box_w) * 1.5)
    factor = np.exp(rng.uniform(np.log(1.1), np.log(min(largest, 6.0)))) if rng.random() < 0.6 else 1.4
    wrong = rng.random() < 0.25  # the box of a wrong mask: shifted and of another size
    spread = 0.35 if wrong else 0.08
    sides = [
        min(limit, max(box * factor * np.exp(rng.normal(0, spread)), 0.25 * limit, 32.0))
        for box, limit in ((box_h, height), (box_w, width))
    ]
    centre = (
        (rows[0] + rows[-1]) / 2 + rng.normal(0, spread) * box_h,
        (cols[0] + cols[-1]) / 2 + rng.normal(0, spread) * box_w,
    )
    y0 = int(np.clip(centre[0] - sides[0] / 2, 0, height - sides[0]))
    x0 = int(np.clip(centre[1] - sides[1] / 2, 0, width - sides[1]))
    roi = (y0, x0, min(height, y0 + int(sides[0])), min(width, x0 + int(sides[1])))
    inside = target[roi[0] : roi[2], roi[1] : roi[3]]
    return roi if inside.sum() >= 30 else whole


def close_up_roi(rng: np.random.Generator, target: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """A part of the object's edge: 0.35 to 0.8 of the box's longer side, at least 48 px, about a pixel of the edge.

    Half-open (y0, x0, y1, x1).
    """
    height, width = target.shape
    rows, cols = np.flatnonzero(target.any(1)), np.flatnonzero(target.any(0))
    longest = max(rows[-1] - rows[0], cols[-1] - cols[0]) + 1
    side = max(longest * rng.uniform(0.35, 0.8), 48.0)
    edge = np.argwhere(cv2.morphologyEx(target.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0)
    y, x = edge[int(rng.integers(len(edge)))] if len(edge) else (height // 2, width // 2)
    y, x = y + rng.uniform(-0.25, 0.25) * side, x + rng.uniform(-0.25, 0.25) * side
    y0, x0 = int(np.clip(y - side / 2, 0, max(0, height - side))), int(np.clip(x - side / 2, 0, max(0, width - side)))
    return y0, x0, min(height, y0 + int(side)), min(width, x0 + int(side))


def spoil_mask(rng: np.random.Generator, truth: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A plausible wrong previous mask in [0, 1]: the truth with pieces missing and added, its edge moved and soft."""
    mask = truth.astype(np.uint8)
    side = truth.shape[0]
    for _ in range(int(rng.integers(1, 4))):
        edge = np.argwhere(cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0)
        centre = edge[int(rng.integers(len(edge)))] if len(edge) else rng.integers(0, side, 2)
        axes = (rng.uniform(0.03, 0.25, 2) * side).astype(int) + 1
        at = (int(centre[1]), int(centre[0]))
        cv2.ellipse(mask, at, (int(axes[0]), int(axes[1])), rng.uniform(0, 180), 0, 360, int(rng.random() < 0.5), -1)
    kernel = np.ones((int(rng.integers(1, 6)),) * 2, np.uint8)
    mask = cv2.dilate(mask, kernel) if rng.random() < 0.5 else cv2.erode(mask, kernel)
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), rng.uniform(0.5, 4))
    low, high = rng.uniform(0, 0.1), rng.uniform(0.85, 1)
    return np.asarray(low + soft * (high - low), np.float32)
