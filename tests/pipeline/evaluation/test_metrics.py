import math

import numpy as np
import pytest

from pipeline.evaluation import metrics


def square(top: int, left: int, side: int, size: int = 8) -> np.ndarray:
    mask = np.zeros((size, size), np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


def test_iou_of_shifted_squares() -> None:
    assert metrics.iou(square(0, 0, 4), square(0, 2, 4)) == pytest.approx(8 / 24)


def test_ignored_pixels_do_not_count() -> None:
    gt = square(0, 0, 4).astype(np.int8)
    gt[:, 4:] = -1
    assert metrics.iou(gt, square(0, 0, 4) | square(0, 4, 4)) == 1.0
    assert metrics.iou(gt, square(0, 0, 2)) == pytest.approx(4 / 16)


def test_two_empty_masks_agree() -> None:
    empty = np.zeros((8, 8), np.bool_)
    assert metrics.iou(empty, empty) == 1.0
    assert metrics.iou(np.full((8, 8), -1, np.int8), ~empty) == 1.0


def test_boundary_iou_looks_at_the_rim_only() -> None:
    gt, holed = square(10, 10, 60, 100), square(10, 10, 60, 100)
    assert metrics.boundary_iou(gt, gt) == 1.0
    shifted = square(12, 12, 60, 100)
    assert metrics.boundary_iou(gt, shifted) < metrics.iou(gt, shifted)
    width = 3  # 2 % of the diagonal of 100x100
    holed[20:60, 20:60] = False
    rim = metrics.boundary_band(gt, width).sum()
    hole_rim = metrics.boundary_band(holed, width).sum() - rim
    assert metrics.boundary_iou(gt, holed) == pytest.approx(rim / (rim + hole_rim))


def test_boundary_iou_ignores_what_does_not_count() -> None:
    gt = square(10, 10, 40, 100).astype(np.int8)
    gt[70:] = -1
    assert metrics.boundary_iou(gt, square(10, 10, 40, 100) | square(72, 10, 20, 100)) == 1.0


def test_noc_counts_the_first_click_that_reaches_the_threshold() -> None:
    assert metrics.clicks_to_reach([0.5, 0.9, 0.7], 0.9) == 2
    assert metrics.clicks_to_reach([0.9], 0.9) == 1


def test_noc_counts_cap_when_threshold_never_reached() -> None:
    never = [0.5] * 20
    assert metrics.clicks_to_reach(never, 0.9) == 20
    assert metrics.noc([never, [0.95]], 0.9) == 10.5
    assert metrics.noc([never, [0.95]], 0.9, max_clicks=10) == 5.5
    assert metrics.clicks_to_reach([0.5], 0.9) == 20


def test_success_exactly_at_the_cap_is_no_failure_but_counts_as_capped() -> None:
    at_twenty, never = [0.1] * 19 + [0.95], [0.1] * 20
    assert metrics.nof([at_twenty, never], 0.9) == 1
    assert metrics.at_cap([at_twenty, never, [0.95]], 0.9) == 2


def test_curves_that_ended_early_keep_their_last_value() -> None:
    assert metrics.mean_at([[0.5, 0.9], [0.2, 0.3, 0.7]], 1) == pytest.approx(0.35)
    assert metrics.mean_at([[0.5, 0.9], [0.2, 0.3, 0.7]], 3) == pytest.approx(0.8)


def test_seconds_are_shared_by_all_clicks() -> None:
    assert metrics.seconds_per_click([1.0, 3.0], [1, 7]) == 0.5


def test_without_objects_there_is_no_number() -> None:
    assert math.isnan(metrics.noc([], 0.9))
    assert math.isnan(metrics.mean_at([], 1))
    assert math.isnan(metrics.seconds_per_click([], []))
    assert metrics.nof([], 0.9) == 0
