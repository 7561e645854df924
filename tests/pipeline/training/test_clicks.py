"""Training clicks land where they should."""

import numpy as np

from pipeline.training.clicks import error_click, inner_point, later_click, opening_clicks, rows_to_array


def square() -> np.ndarray:
    target = np.zeros((32, 32), np.int8)
    target[4:28, 4:28] = 1
    return target


def test_inner_point_is_deep_and_the_centre_when_asked() -> None:
    region = square() == 1
    assert inner_point(np.random.default_rng(0), region, centre_share=1.0) in {(15, 15), (15, 16), (16, 15), (16, 16)}
    for seed in range(20):
        point = inner_point(np.random.default_rng(seed), region, centre_share=0.0)
        assert point is not None and 9 <= point[0] < 23 and 9 <= point[1] < 23
    assert inner_point(np.random.default_rng(0), np.zeros((4, 4), bool)) is None


def test_error_click_goes_to_the_deeper_error_with_its_sign() -> None:
    target = square()
    missed = np.zeros((32, 32), bool)
    row, col, sign = error_click(np.random.default_rng(0), target, missed, false_share=0) or (0, 0, 0)
    assert sign == 1 and target[int(row), int(col)] == 1
    spilt = target == 1
    spilt[:, 28:] = True
    row, col, sign = error_click(np.random.default_rng(0), target, spilt, false_share=0) or (0, 0, 1)
    assert sign == 0 and col >= 28
    assert error_click(np.random.default_rng(0), target, target == 1) is None


def test_some_later_clicks_confirm_what_is_right_and_the_others_go_into_errors() -> None:
    target = square()
    mask = target == 1
    mask[4:16] = False
    signs = set()
    for seed in range(20):
        row, col, sign = later_click(np.random.default_rng(seed), target, mask, confirming_share=1.0) or (0, 0, 0.5)
        assert target[int(row), int(col)] == mask[int(row), int(col)] == sign
        signs.add(sign)
    assert signs == {0.0, 1.0}
    row, col, _ = later_click(np.random.default_rng(0), target, mask, confirming_share=0.0) or (0, 0, 0)
    assert target[int(row), int(col)] == 1 and not mask[int(row), int(col)]
    whole = np.ones_like(target)
    assert later_click(np.random.default_rng(0), whole, whole == 1, confirming_share=0.0) is None


def test_pixels_that_do_not_count_are_never_clicked() -> None:
    target = square()
    target[target == 0] = -1
    assert error_click(np.random.default_rng(0), target, np.ones((32, 32), bool)) is None


def test_opening_is_one_positive_click_or_a_history_that_ends_in_an_error() -> None:
    target = square()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        rows = opening_clicks(rng, target, np.zeros((32, 32), np.float32))
        assert 1 <= len(rows) <= 2 and rows[0][2] == 1.0
        spoilt = (target == 1).astype(np.float32)
        spoilt[4:16] = 0
        rows = opening_clicks(rng, target, spoilt)
        assert len(rows) >= 1


def test_rows_are_padded_in_front() -> None:
    points = rows_to_array([[(1.0, 2.0, 1.0)], [(3.0, 4.0, 0.0), (5.0, 6.0, 1.0)]])
    assert points[0].tolist() == [[-1, -1, -1], [1, 2, 1]]
    assert points[1, -1].tolist() == [5, 6, 1]
