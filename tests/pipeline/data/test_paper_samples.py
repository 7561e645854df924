"""The papers' samples: reproducible, of the right size, with clicks on what they claim."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.data.paper_samples import (
    PaperSampleConfig,
    PaperSamples,
    choose_parts,
    collate,
    random_crop,
    region_around,
)
from pipeline.data.training_sets import Scene
from schemas.errors import BadInputError
from tests.pipeline.scenes import ellipse_scene

CONFIG = PaperSampleConfig(crop_size=(64, 96), min_area=50)


class Ellipses:
    """Two objects per scene: an ellipse, and a corner."""

    def __init__(self, count: int = 4, has_objects: bool = True) -> None:
        self.count, self.has_objects = count, has_objects

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int, rng: np.random.Generator) -> Scene:
        image, mask = ellipse_scene(index)
        corner = np.zeros_like(mask)
        corner[:20, :20] = ~mask[:20, :20]
        return Scene(image, np.stack([mask, corner]) if self.has_objects else np.zeros((0, *mask.shape), np.bool_))


@pytest.mark.parametrize("turns", [False, True])
def test_samples_depend_on_seed_and_number_alone(turns: bool) -> None:
    config = replace(CONFIG, turns=turns)
    first, again = (PaperSamples(Ellipses(), config, 3, 20) for _ in range(2))
    for number in range(12):
        one, two = first[number], again[number]
        assert torch.equal(one.crop, two.crop) and torch.equal(one.target, two.target) and one.clicks == two.clicks
    assert not torch.equal(first[0].crop, PaperSamples(Ellipses(), config, 4, 20)[0].crop)


def test_positive_clicks_lie_on_the_object_and_negative_ones_off_it() -> None:
    samples = PaperSamples(Ellipses(), CONFIG, 0, 60)
    for number in range(60):
        sample = samples[number]
        assert sample.crop.shape == (3, 64, 96) and sample.target.shape == (64, 96)
        for click in sample.clicks:
            assert bool(sample.target[int(click.y), int(click.x)]) == click.is_positive
        assert sample.clicks or not sample.target.any()


def test_a_region_holds_the_whole_object_and_its_place_is_a_fraction_of_the_image() -> None:
    samples = PaperSamples(Ellipses(), replace(CONFIG, global_size=128, crop_size=(64, 64)), 0, 20)
    for number in range(20):
        sample = samples[number]
        assert sample.image is not None and sample.image.shape == (3, 128, 128)
        y0, x0, y1, x1 = sample.roi
        assert 0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1 and sample.target.any()
    batch = collate([samples[0], samples[1]])
    assert batch.rois is not None and batch.rois.shape == (2, 4) and len(batch.clicks) == 2


def test_regions_hold_their_object() -> None:
    rng = np.random.default_rng(1)
    mask = np.zeros((50, 80), np.bool_)
    mask[10:30, 40:70] = True
    for _ in range(50):
        y0, x0, y1, x1 = region_around(rng, mask, (0.3, 1.0))
        assert y0 <= 10 and x0 <= 40 and 30 <= y1 <= 50 and 70 <= x1 <= 80


def test_small_scenes_are_padded_and_masks_move_with_them() -> None:
    image = np.full((10, 12, 3), 9, np.uint8)
    scene = random_crop(np.random.default_rng(0), Scene(image, np.ones((1, 10, 12), np.bool_)), (20, 20))
    assert scene.image.shape == (20, 20, 3) and np.array_equal(scene.image[..., 0] == 9, scene.masks[0])


def test_two_objects_are_merged_now_and_then() -> None:
    masks = [np.eye(4, dtype=np.bool_), ~np.eye(4, dtype=np.bool_)]
    rng = np.random.default_rng(0)
    counts = [len(choose_parts(rng, masks, (4, 4))[0]) for _ in range(2000)]
    assert 0.12 < np.mean([count == 2 for count in counts]) < 0.18


def test_data_without_objects_are_refused_with_what_to_do() -> None:
    with pytest.raises(BadInputError, match="min_area"):
        PaperSamples(Ellipses(has_objects=False), replace(CONFIG, keep_background_prob=0.0), 0, 1)[0]
    with pytest.raises(BadInputError, match="no photograph"):
        PaperSamples(Ellipses(count=0), CONFIG, 0, 1)
