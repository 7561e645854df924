"""Batches depend on seed and step only; regions, masks and scenes are what they say."""

import numpy as np
import pytest
import torch

from pipeline.configs.fdrn_compact import NATURAL_SETS
from pipeline.data.augment import cut_window, jitter_colours, mirror, paste_instance, shrink
from pipeline.data.procedural import procedural_scene
from pipeline.data.samples import SampleConfig, TrainingBatches, close_up_roi, sample_roi, spoil_mask
from pipeline.data.training_sets import Scene

CONFIG = SampleConfig(natural=NATURAL_SETS, image_size=96, crop_size=48, num_images=2, rois_per_image=2)


def scene(seed: int) -> Scene:
    return procedural_scene(np.random.default_rng(seed), (96, 128))


def test_batch_depends_on_seed_and_step_only() -> None:
    first, again = TrainingBatches(None, CONFIG, 5, 10)[3], TrainingBatches(None, CONFIG, 5, 99)[3]
    other_step, other_seed = TrainingBatches(None, CONFIG, 5, 10)[4], TrainingBatches(None, CONFIG, 6, 10)[3]
    assert torch.equal(first.crops, again.crops) and torch.equal(first.previous, again.previous)
    assert not torch.equal(first.crops, other_step.crops) and not torch.equal(first.crops, other_seed.crops)


def test_batch_has_its_shapes_and_ranges() -> None:
    batch = TrainingBatches(None, CONFIG, 1, 1)[0]
    assert batch.images.shape == (2, 3, 96, 96) and batch.crops.shape == (4, 3, 48, 48)
    assert batch.images.dtype == batch.crops.dtype == torch.uint8
    assert batch.targets.shape == batch.previous.shape == (4, 48, 48)
    assert set(batch.targets.unique().tolist()) <= {-1, 0, 1} and (batch.targets == 1).any()
    assert batch.previous.min() >= 0 and batch.previous.max() <= 1
    y0, x0, y1, x1 = batch.rois.unbind(1)
    assert (y0 >= 0).all() and (x0 >= 0).all() and (y1 <= 1).all() and (x1 <= 1).all()
    assert (y1 > y0).all() and (x1 > x0).all()


@pytest.mark.parametrize("seed", range(8))
def test_procedural_masks_are_visible_and_disjoint(seed: int) -> None:
    drawn = scene(seed)
    assert drawn.image.dtype == np.uint8 and drawn.image.shape == (96, 128, 3)
    assert drawn.masks.sum(0).max() <= 1 and (drawn.masks.sum((1, 2)) >= 300).all()


@pytest.mark.parametrize("seed", range(8))
def test_pasted_instance_is_in_front(seed: int) -> None:
    rng = np.random.default_rng(seed)
    below, source = scene(seed), scene(seed + 100)
    result = paste_instance(rng, below, source)
    assert result.masks.sum(0).max() <= 1
    if len(result.masks) and result is not below:
        untouched = ~result.masks[0]
        far = untouched & (np.abs(result.image.astype(int) - below.image).sum(2) > 0)
        assert far.mean() < 0.2


def test_mirror_window_shrink_and_colour_keep_masks_true() -> None:
    original = scene(1)
    assert np.array_equal(mirror(mirror(original)).image, original.image)
    window = cut_window(np.random.default_rng(0), original)
    assert window.masks.shape[1:] == window.image.shape[:2] and window.masks.any((1, 2)).all()
    small = shrink(original, 64)
    assert small.image.shape == (48, 64, 3) and small.masks.shape[1:] == (48, 64)
    coloured = jitter_colours(np.random.default_rng(0), original.image)
    assert coloured.shape == original.image.shape and coloured.dtype == np.uint8


@pytest.mark.parametrize("seed", range(30))
def test_region_is_inside_and_shows_the_object(seed: int) -> None:
    target = np.zeros((90, 120), bool)
    target[30:60, 50:95] = True
    y0, x0, y1, x1 = sample_roi(np.random.default_rng(seed), target)
    assert 0 <= y0 < y1 <= 90 and 0 <= x0 < x1 <= 120
    assert target[y0:y1, x0:x1].sum() >= 30


@pytest.mark.parametrize("seed", range(20))
def test_close_up_shows_the_edge_and_cuts_the_object(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = np.zeros((200, 260), np.bool_)
    target[40:160, 60:220] = True
    y0, x0, y1, x1 = close_up_roi(rng, target)
    assert 0 <= y0 < y1 <= 200 and 0 <= x0 < x1 <= 260
    assert 48 <= y1 - y0 <= 0.8 * 160 and 48 <= x1 - x0 <= 0.8 * 160
    inside = target[y0:y1, x0:x1]
    assert inside.any() and not inside.all() and inside.sum() < target.sum()


def test_close_ups_begin_with_a_mask() -> None:
    config = SampleConfig(natural=(), image_size=64, crop_size=32, num_images=2, spoilt_previous=0, close_ups=1)
    batch = TrainingBatches(None, config, seed=3, num_steps=1)[0]
    assert bool((batch.previous.flatten(1) > 0).any(1).all())


def test_spoilt_mask_is_wrong_but_related() -> None:
    truth = np.zeros((64, 64), bool)
    truth[16:48, 16:48] = True
    ious = []
    for seed in range(20):
        spoilt = spoil_mask(np.random.default_rng(seed), truth)
        assert spoilt.min() >= 0 and spoilt.max() <= 1
        mask = spoilt > 0.5
        ious.append((mask & truth).sum() / (mask | truth).sum())
    assert 0.4 < np.mean(ious) < 0.98


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="multiple"):
        SampleConfig(natural=(), image_size=100)
