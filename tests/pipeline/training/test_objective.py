"""Losses on masks whose answers are known."""

import torch

from pipeline.training.objective import (
    ObjectiveConfig,
    boundary_weights,
    mask_iou,
    objective,
    soft_iou_loss,
)


def test_boundary_band_is_three_pixels_on_each_side() -> None:
    target = torch.zeros(1, 1, 1, 20)
    target[..., 10:] = 1
    weights = boundary_weights(target, 2.0, 3)
    assert weights[0, 0, 0].tolist() == [1.0] * 7 + [2.0] * 6 + [1.0] * 7


def test_soft_iou_is_near_zero_for_the_truth_and_near_one_for_its_opposite() -> None:
    target = torch.zeros(1, 1, 8, 8)
    target[..., :4] = 1
    sure = (target * 2 - 1) * 20
    assert soft_iou_loss(sure, target, torch.ones_like(target)) < 0.01
    assert soft_iou_loss(-sure, target, torch.ones_like(target)) > 0.99


def test_pixels_that_do_not_count_change_nothing() -> None:
    logits, coarse, score = torch.randn(1, 1, 32, 32), torch.zeros(1, 1, 2, 2), torch.zeros(1, 1)
    target = torch.zeros(1, 32, 32, dtype=torch.int8)
    target[:, :16] = 1
    target[:, 28:] = -1
    changed = logits.clone()
    changed[:, :, 28:] = 50.0
    first, _ = objective(logits, coarse, score, target, ObjectiveConfig())
    second, _ = objective(changed, coarse, score, target, ObjectiveConfig())
    assert torch.equal(first, second)


def test_iou_counts_known_pixels_only() -> None:
    logits = torch.full((1, 1, 2, 2), 5.0)
    target = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    assert mask_iou(logits, target, torch.ones_like(target)).item() == 0.5
    assert mask_iou(logits, target, torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]])).item() == torch.tensor(2 / 3).item()
    assert mask_iou(-logits, target * 0, torch.ones_like(target)).item() == 1.0
