"""Training states are those of the live path: same clicks, same ROIs, same masks."""

import numpy as np
import pytest
import torch

from pipeline.adapters.trajectories import crop_target, trajectory
from pipeline.adapters.validation import click_edit
from pipeline.inference.instance import apply_edit, start
from schemas.clicks import Click
from tests.pipeline.adapters.worlds import memory_source, toy, world

CLICKS = [
    Click(x=40, y=70, is_positive=True), Click(x=120, y=75, is_positive=False), Click(x=45, y=90, is_positive=True)
]  # fmt: skip


def test_recorded_clicks_give_the_states_of_serving() -> None:
    images, pixels = world(1)
    model = toy()
    scene = memory_source(model, pixels).scene(images[0])
    target, rng = scene.target_mask(images[0].targets[0]), np.random.default_rng(0)
    state = start(scene.image)
    for number, step in enumerate(trajectory(model, scene, target, rng, 3, CLICKS, jitter=0.0)):
        state = apply_edit(model, scene.image, scene.encoding, state, click_edit(CLICKS[number]))
        assert state.prediction is not None
        assert step.clicks == tuple(CLICKS[: number + 1])
        assert step.roi == state.roi
        assert step.prediction.logits.requires_grad
        probabilities = step.prediction.logits[0].detach().sigmoid().half().numpy()
        assert np.array_equal(probabilities, state.prediction.probabilities)


def test_skipped_clicks_lead_to_the_same_state() -> None:
    images, pixels = world(1)
    model = toy()
    scene = memory_source(model, pixels).scene(images[0])
    target = scene.target_mask(images[0].targets[0])
    whole = list(trajectory(model, scene, target, np.random.default_rng(0), 3, CLICKS, jitter=0.0))
    last = list(trajectory(model, scene, target, np.random.default_rng(0), 1, CLICKS, jitter=0.0, skip=2))
    assert len(last) == 1
    assert torch.equal(last[0].prediction.logits, whole[2].prediction.logits)
    assert np.array_equal(last[0].previous, whole[2].previous)


@pytest.mark.parametrize("seed", range(5))
def test_simulated_clicks_fall_into_errors_and_jittered_rois_hold_them(seed: int) -> None:
    images, pixels = world(1, first_seed=seed)
    model = toy()
    scene = memory_source(model, pixels).scene(images[0])
    target = scene.target_mask(images[0].targets[0])
    height, width = scene.size
    for step in trajectory(model, scene, target, np.random.default_rng(seed), 4, jitter=0.4):
        newest = step.clicks[-1]
        assert target[int(newest.y), int(newest.x)] == newest.is_positive
        y0, x0, y1, x1 = step.roi
        assert 0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width
        assert all(y0 <= c.y < y1 and x0 <= c.x < x1 for c in step.clicks if c.is_positive)
        assert step.previous.shape == model.input_size


def test_the_target_is_cut_as_the_crop_is() -> None:
    images, pixels = world(1)
    model = toy()
    scene = memory_source(model, pixels).scene(images[0])
    target = scene.target_mask(images[0].targets[0])
    roi = (20, 10, 120, 100)
    cut = crop_target(model, scene, target, roi)
    assert cut.shape == (1, 1, *model.input_size)
    assert set(cut.unique().tolist()) == {0.0, 1.0}
    share = target[20:120, 10:100].mean()
    assert abs(float(cut.mean()) - share) < 0.01
