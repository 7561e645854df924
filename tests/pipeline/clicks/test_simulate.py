import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clicks.simulate import (
    MAX_POINTS,
    add_training_click,
    error_masks,
    next_click,
    next_training_click,
    sample_training_clicks,
)
from schemas.clicks import Click


def square(top: int, left: int, side: int, size: int = 16) -> np.ndarray:
    mask = np.zeros((size, size), np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


def test_first_click_is_the_centre_of_the_object() -> None:
    assert next_click(square(3, 5, 7), np.zeros((16, 16), np.bool_)) == Click(x=8.0, y=6.0, is_positive=True)


def test_larger_spill_gives_a_negative_click_in_it() -> None:
    gt, mask = square(1, 1, 3), square(1, 1, 3) | square(8, 8, 7)
    assert next_click(gt, mask) == Click(x=11.0, y=11.0, is_positive=False)


def test_tie_between_missed_and_spilled_is_negative_and_first_in_row_order() -> None:
    gt, mask = square(1, 1, 5), square(8, 8, 5)
    click = next_click(gt, mask)
    assert click == Click(x=10.0, y=10.0, is_positive=False)
    assert next_click(square(2, 2, 4), np.zeros((16, 16), np.bool_)) == Click(x=3.0, y=3.0, is_positive=True)


def test_ignored_pixels_are_neither_missed_nor_spilled() -> None:
    gt = square(4, 4, 6).astype(np.int8)
    gt[4:7] = -1
    missed, spilled = error_masks(gt, np.ones((16, 16), np.bool_))
    assert not missed.any()
    assert not spilled[4:7].any()
    assert spilled[0].all()


def test_probability_is_cut_at_049() -> None:
    gt = np.zeros((4, 4), np.bool_)
    probability = np.full((4, 4), 0.49, np.float32)
    assert next_click(gt, probability) is None
    probability[2, 1] = 0.495
    assert next_click(gt, probability) == Click(x=1.0, y=2.0, is_positive=False)


def test_clicked_pixels_are_not_clicked_again_and_none_is_left_at_last() -> None:
    gt, mask, clicked = square(5, 5, 2), np.zeros((16, 16), np.bool_), np.zeros((16, 16), np.bool_)
    seen = set()
    while (click := next_click(gt, mask, clicked)) is not None:
        clicked[int(click.y), int(click.x)] = True
        seen.add((click.y, click.x))
    assert seen == {(5.0, 5.0), (5.0, 6.0), (6.0, 5.0), (6.0, 6.0)}


def test_equal_masks_leave_nothing_to_click() -> None:
    assert next_click(square(2, 2, 5), square(2, 2, 5)) is None


@given(st.integers(0, 2**32 - 1))
def test_click_lies_in_an_error_of_its_sign(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gt = rng.integers(-1, 2, (13, 17)).astype(np.int8)
    mask = rng.random((13, 17)) > 0.5
    for click in (next_click(gt, mask), next_training_click(gt, mask, rng)):
        missed, spilled = error_masks(gt, mask)
        if click is None:
            assert not missed.any() and not spilled.any()
        else:
            assert (missed if click.is_positive else spilled)[int(click.y), int(click.x)]


def test_equal_depths_are_told_apart_by_place_on_every_run() -> None:
    rng = np.random.default_rng(3)
    gt = rng.random((150, 150)) > 0.97
    background = np.zeros_like(gt)
    clicks = []
    for size in range(1, 40):
        _keep = np.empty(size * 16, np.uint8)  # shifts what the allocator gives next
        clicks.append(next_click(~gt, background))
    assert len(set(clicks)) == 1


def test_training_click_stays_in_the_inner_half() -> None:
    gt, rng = square(2, 2, 12), np.random.default_rng(0)
    clicks = [next_training_click(gt, np.zeros((16, 16), np.bool_), rng) for _ in range(50)]
    assert {c.is_positive for c in clicks if c} == {True}
    assert all(c and 5 <= c.x <= 10 and 5 <= c.y <= 10 for c in clicks)
    assert len(set(clicks)) > 5


def test_training_click_overwrites_the_official_slot_when_its_sign_is_full() -> None:
    full = [Click(float(i), 0.0, True) for i in range(MAX_POINTS)]
    added = add_training_click(full, Click(99.0, 0.0, True), iteration=1)
    assert len(added) == MAX_POINTS
    assert full[MAX_POINTS - 1] not in added
    assert len(add_training_click(full, Click(9.0, 9.0, False), iteration=1)) == MAX_POINTS + 1


def test_sampled_clicks_lie_where_their_sign_says() -> None:
    rng = np.random.default_rng(0)
    parts, others = [square(1, 1, 6), square(9, 9, 6)], square(1, 9, 5)
    union = parts[0] | parts[1]
    for _ in range(100):
        clicks = sample_training_clicks(parts, others, rng)
        positives = [c for c in clicks if c.is_positive]
        assert all(union[int(c.y), int(c.x)] == c.is_positive for c in clicks)
        assert all(any(part[int(c.y), int(c.x)] for c in positives) for part in parts)
        assert 2 <= len(positives) <= MAX_POINTS
        assert len(clicks) - len(positives) <= MAX_POINTS


def test_number_of_sampled_clicks_falls_geometrically() -> None:
    rng = np.random.default_rng(1)
    draws = [sample_training_clicks([square(2, 2, 10)], None, rng) for _ in range(1500)]
    positives = np.array([sum(c.is_positive for c in clicks) for clicks in draws])
    assert np.mean(positives == 1) == pytest.approx(0.2, abs=0.04)
    assert np.mean(positives == 2) == pytest.approx(0.16, abs=0.04)
    assert np.mean([len(c) for c in draws] - positives == 0) == pytest.approx(0.2, abs=0.04)


def test_empty_target_gives_negatives_only() -> None:
    rng = np.random.default_rng(2)
    clicks = [c for _ in range(20) for c in sample_training_clicks([np.zeros((8, 8), np.bool_)], None, rng)]
    assert clicks
    assert not any(c.is_positive for c in clicks)
