"""Training samples as the papers draw them: augment a scene, choose an object (or two), draw its clicks.

Source: the official code of SimpleClick (uncbiag/SimpleClick f33112e), which iCMFormer and AdaptiveClick share: design
facts, section 1.11. For FDRN also the whole image beside the crop (its section 3.4). A sample is a function of (seed,
number), so that a resumed run sees what an uninterrupted one would.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.clicks.simulate import sample_training_clicks
from pipeline.data.training_sets import Scene
from schemas.clicks import Click
from schemas.errors import BadInputError

_TRIES = 40
_MERGE_PROB = 0.15


class SceneSet(Protocol):
    """Photographs with instance masks."""

    def __len__(self) -> int: ...

    def scene(self, index: int, rng: np.random.Generator) -> Scene:
        """One of them; `rng` for sets whose masks depend on chance."""
        ...


@dataclass(frozen=True, kw_only=True)
class PaperSampleConfig:
    """One paper's augmentation and sampling.

    Attributes:
        crop_size: (h, w) of the network input.
        scale: Range of the isotropic resizing.
        turns: SBD's flips, quarter turns, small shifts and rotations; else horizontal flips only.
        min_area: Of an object after augmentation, in pixels.
        keep_background_prob: Chance to accept a crop without an object.
        global_size: Side of the whole image that goes with the crop (models of cut "image"); None: there is none. The
            crop is then a region that holds the object, of a side drawn from `roi_share`.
        roi_share: Range of the region's side as a share of the image's.
    """

    crop_size: tuple[int, int] = (448, 448)
    scale: tuple[float, float] = (0.75, 1.40)
    turns: bool = False
    min_area: int = 1000
    keep_background_prob: float = 0.05
    global_size: int | None = None
    roi_share: tuple[float, float] = (0.3, 1.0)


@dataclass(frozen=True)
class PaperSample:
    """One sample.

    Attributes:
        crop: (3, h, w) uint8.
        target: (h, w) int8: 1 object, 0 not.
        clicks: What the training starts with, in crop pixels.
        image: (3, S, S) uint8, the whole image, where the model encodes it.
        roi: (y0, x0, y1, x1) of the crop as fractions of it.
    """

    crop: Tensor
    target: Tensor
    clicks: list[Click]
    image: Tensor | None = None
    roi: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class PaperBatch:
    """Samples stacked; see `PaperSample`."""

    crops: Tensor
    targets: Tensor
    clicks: list[list[Click]]
    images: Tensor | None = None
    rois: Tensor | None = field(default=None)


class PaperSamples(Dataset[PaperSample]):
    """Number -> sample.

    Args:
        scenes: Where photographs come from.
        config: How samples are drawn.
        seed: With the number it decides everything.
        length: Samples in all.

    Raises:
        BadInputError: There is no photograph.
    """

    def __init__(self, scenes: SceneSet, config: PaperSampleConfig, seed: int, length: int) -> None:
        if len(scenes) == 0:
            raise BadInputError("There is no photograph to train on.")
        self.scenes, self.config, self.seed, self.length = scenes, config, seed, length

    def __len__(self) -> int:
        return self.length

    @staticmethod
    def collate(samples: list[PaperSample]) -> PaperBatch:
        """Samples to a batch."""
        return collate(samples)

    def __getitem__(self, number: int) -> PaperSample:
        cv2.setNumThreads(1)
        rng = np.random.default_rng((self.seed, number))
        for _ in range(_TRIES):
            scene = self.scenes.scene(int(rng.integers(len(self.scenes))), rng)
            made = self._sample(rng, scene)
            if made is not None:
                return made
        raise BadInputError(
            f"{_TRIES} photographs in a row gave no object of {self.config.min_area} pixels. Check the masks, or lower "
            "min_area."
        )

    def _sample(self, rng: np.random.Generator, scene: Scene) -> PaperSample | None:
        config = self.config
        if config.global_size is not None:
            return self._region(rng, scene)
        scene = random_crop(rng, augment(rng, scene, config), config.crop_size)
        masks = [mask for mask in scene.masks if mask.sum() >= config.min_area]
        if not masks and rng.random() >= config.keep_background_prob:
            return None
        parts, others = choose_parts(rng, masks, scene.image.shape[:2])
        clicks = sample_training_clicks(parts, others, rng)
        return PaperSample(_planes(scene.image), _target(parts), clicks)

    def _region(self, rng: np.random.Generator, scene: Scene) -> PaperSample | None:
        """FDRN: the whole image squeezed to a square, and a region with the object at crop size."""
        config, size = self.config, self.config.global_size
        assert size is not None, "asked for"
        scene = augment(rng, scene, config)
        masks = [mask for mask in scene.masks if mask.sum() >= config.min_area]
        if not masks:
            return None
        parts, others = choose_parts(rng, masks, scene.image.shape[:2])
        height, width = scene.image.shape[:2]
        box = region_around(rng, np.logical_or.reduce(parts), config.roi_share)
        y0, x0, y1, x1 = box

        def cut(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
            resized = cv2.resize(mask[y0:y1, x0:x1].astype(np.uint8), config.crop_size[::-1], interpolation=0)
            return np.asarray(resized > 0)

        inside = [cut(part) for part in parts]
        if not any(part.any() for part in inside):
            return None
        clicks = sample_training_clicks(inside, None if others is None else cut(others), rng)
        crop = cv2.resize(scene.image[y0:y1, x0:x1], config.crop_size[::-1], interpolation=cv2.INTER_AREA)
        whole = cv2.resize(scene.image, (size, size), interpolation=cv2.INTER_AREA)
        roi = (y0 / height, x0 / width, y1 / height, x1 / width)
        return PaperSample(
            _planes(crop.astype(np.uint8)), _target(inside), clicks, _planes(whole.astype(np.uint8)), roi
        )


def collate(samples: list[PaperSample]) -> PaperBatch:
    """Samples to a batch."""
    images = [sample.image for sample in samples if sample.image is not None]
    return PaperBatch(
        crops=torch.stack([sample.crop for sample in samples]),
        targets=torch.stack([sample.target for sample in samples]),
        clicks=[sample.clicks for sample in samples],
        images=torch.stack(images) if images else None,
        rois=torch.tensor([sample.roi for sample in samples]) if images else None,
    )


def augment(rng: np.random.Generator, scene: Scene, config: PaperSampleConfig) -> Scene:
    """Resize, flip (and turn), and change colours; masks follow by nearest neighbour."""
    factor = rng.uniform(*config.scale)
    size = (max(1, round(scene.image.shape[1] * factor)), max(1, round(scene.image.shape[0] * factor)))
    scene = _each(
        scene,
        lambda image: cv2.resize(image, size, interpolation=cv2.INTER_LINEAR),
        lambda mask: cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST),
    )
    if config.turns:
        if rng.random() < 0.5:
            axes = ((0,), (1,), (0, 1))[int(rng.integers(3))]
            scene = Scene(np.flip(scene.image, axes), np.flip(scene.masks, tuple(axis + 1 for axis in axes)))
        if rng.random() < 0.5:
            quarter = int(rng.integers(4))
            scene = Scene(np.rot90(scene.image, quarter), np.rot90(scene.masks, quarter, (1, 2)))
        if rng.random() < 0.75:
            scene = _shift_and_rotate(rng, scene)
    elif rng.random() < 0.5:
        scene = Scene(scene.image[:, ::-1], scene.masks[:, :, ::-1])
    return Scene(change_colours(rng, np.ascontiguousarray(scene.image)), np.ascontiguousarray(scene.masks))


def change_colours(rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Brightness within a quarter, contrast from -0.15 to 0.4, a shift of each channel within 10; each in 3 of 4."""
    changed = image.astype(np.float32)
    if rng.random() < 0.75:
        changed = changed * (1 + rng.uniform(-0.15, 0.4)) + 255 * rng.uniform(-0.25, 0.25)
    if rng.random() < 0.75:
        changed = changed + rng.uniform(-10, 10, 3).astype(np.float32)
    return np.asarray(changed.clip(0, 255), np.uint8)


def random_crop(rng: np.random.Generator, scene: Scene, size: tuple[int, int]) -> Scene:
    """A window of that size, padded with zeros all round where the scene is smaller."""
    height, width = scene.image.shape[:2]
    rows, columns = max(0, size[0] - height), max(0, size[1] - width)
    pads = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2))
    image, masks = np.pad(scene.image, (*pads, (0, 0))), np.pad(scene.masks, ((0, 0), *pads))
    y = int(rng.integers(image.shape[0] - size[0] + 1))
    x = int(rng.integers(image.shape[1] - size[1] + 1))
    return Scene(image[y : y + size[0], x : x + size[1]], masks[:, y : y + size[0], x : x + size[1]])


def choose_parts(
    rng: np.random.Generator, masks: list[NDArray[np.bool_]], size: tuple[int, ...]
) -> tuple[list[NDArray[np.bool_]], NDArray[np.bool_] | None]:
    """The object to segment, in 15 of 100 cases two of them, and the union of the others (None without any)."""
    if not masks:
        return [np.zeros(size, np.bool_)], None
    count = 2 if len(masks) > 1 and rng.random() < _MERGE_PROB else 1
    chosen = set(rng.choice(len(masks), count, replace=False).tolist())
    rest = [mask for index, mask in enumerate(masks) if index not in chosen]
    return [masks[index] for index in sorted(chosen)], np.logical_or.reduce(rest) if rest else None


def region_around(
    rng: np.random.Generator, mask: NDArray[np.bool_], share: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(y0, x0, y1, x1), half-open: a region of a random share of each side, at least as large as the object's box and
    placed at random around it (FDRN, section 3.4)."""
    bounds = []
    factor = rng.uniform(*share)
    for axis in (1, 0):
        places = np.flatnonzero(mask.any(axis))
        length = mask.shape[1 - axis]
        low, high = int(places[0]), int(places[-1]) + 1
        side = min(length, max(high - low, round(factor * length)))
        start = int(rng.integers(max(0, high - side), min(low, length - side) + 1))
        bounds.append((start, start + side))
    (y0, y1), (x0, x1) = bounds
    return y0, x0, y1, x1


def _shift_and_rotate(rng: np.random.Generator, scene: Scene) -> Scene:
    height, width = scene.image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-3, 3), 1.0)
    matrix[:, 2] += rng.uniform(-0.03, 0.03, 2) * (width, height)
    return _each(
        scene,
        lambda image: cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR),
        lambda mask: cv2.warpAffine(mask, matrix, (width, height), flags=cv2.INTER_NEAREST),
    )


def _each(
    scene: Scene, image: Callable[[NDArray[np.uint8]], object], mask: Callable[[NDArray[np.uint8]], object]
) -> Scene:
    moved = np.asarray(image(np.ascontiguousarray(scene.image)), np.uint8)
    masks = [np.asarray(mask(np.ascontiguousarray(own).view(np.uint8)), np.uint8) > 0 for own in scene.masks]
    return Scene(moved, np.stack(masks) if masks else np.zeros((0, *moved.shape[:2]), np.bool_))


def _planes(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _target(parts: list[NDArray[np.bool_]]) -> Tensor:
    return torch.from_numpy(np.logical_or.reduce(parts).astype(np.int8))
