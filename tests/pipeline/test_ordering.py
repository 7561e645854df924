"""Orders are permutations that depend on nothing but what is said about the images and the seed."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.ordering import SECONDS_PER_IMAGE, Look, expected_gain, k_centre_greedy, order_images
from schemas.errors import BadInputError
from schemas.requests import OrderBy

COORDINATES = st.floats(-100, 100).map(lambda value: round(value, 3))
POINTS = st.integers(1, 25).flatmap(lambda n: arrays(np.float64, (n, 2), elements=COORDINATES))
CENTRES = st.integers(0, 4).flatmap(lambda m: arrays(np.float64, (m, 2), elements=COORDINATES))
LOOKS = st.lists(st.builds(Look, st.floats(0, 1), st.integers(0, 9), st.tuples(COORDINATES, COORDINATES)), max_size=15)


@given(POINTS, CENTRES, st.integers(0, 9), st.integers(1, 30))
def test_k_centre_takes_the_farthest_next(points: np.ndarray, centres: np.ndarray, seed: int, max_centres: int) -> None:
    order = k_centre_greedy(points, centres, seed=seed, max_centres=max_centres)
    assert sorted(order) == list(range(len(points)))
    assert order == k_centre_greedy(points, centres, seed=seed, max_centres=max_centres)

    def distance(index: int, chosen: list[int]) -> float:
        return min(float(np.square(points[index] - other).sum()) for other in [*centres, *points[chosen]])

    radii = []
    for place in range(0 if len(centres) else 1, min(max_centres, len(order))):
        left = [distance(index, order[:place]) for index in order[place:]]
        assert left[0] == max(left)
        radii.append(left[0])
    assert radii == sorted(radii, reverse=True)
    rest = [distance(index, order[:max_centres]) for index in order[max_centres:]]
    assert rest == sorted(rest, reverse=True)


@given(POINTS, st.integers(1, 10))
def test_greedy_centres_are_within_twice_the_best_radius(points: np.ndarray, k: int) -> None:
    k = min(k, len(points) - 1)
    order = k_centre_greedy(points, np.empty((0, 2)))
    far = [min((float(np.linalg.norm(p - points[c])) for c in order[:k]), default=0.0) for p in points]
    chosen = points[order[: k + 1]]  # k + 1 points, two of which share a centre of any choice of k (Gonzalez 1985)
    apart = [float(np.linalg.norm(a - b)) for i, a in enumerate(chosen) for b in chosen[:i]]
    assert not k or max(far) <= min(apart) + 1e-9


@given(LOOKS, LOOKS, st.integers(0, 9))
def test_every_order_is_a_permutation_and_the_same_again(looks: list[Look], labeled: list[Look], seed: int) -> None:
    for by in get_args(OrderBy):
        order = order_images(by, looks, labeled=labeled, seed=seed)
        assert sorted(order) == list(range(len(looks)))
        assert order == order_images(by, looks, labeled=labeled, seed=seed)


def test_uncertain_images_come_first_and_ties_keep_their_order() -> None:
    looks = [Look(0.2, 1), Look(0.7, 9), Look(0.2, 1), Look(0.6, 1)]
    assert order_images("uncertainty", looks) == [1, 3, 0, 2]
    assert order_images("plain", looks) == [0, 1, 2, 3]


def test_gain_is_uncertainty_for_the_expected_time() -> None:
    gain = expected_gain(np.array([0.5, 0.5, 0.4]), np.array([0, 1, 4]), 10.0)
    assert gain.tolist() == [0.5 / (SECONDS_PER_IMAGE + 10), 0.5 / (SECONDS_PER_IMAGE + 10), 1.6 / 45]
    assert order_images("gain", [Look(0.5, 1), Look(0.45, 9)], seconds_per_mask=10.0) == [1, 0]


def test_diversity_keeps_away_from_what_is_labeled() -> None:
    looks = [Look(0, 0, (value, 0.0)) for value in (0.0, 1.0, 10.0, 11.0)]
    assert order_images("diversity", looks, labeled=[Look(0, 0, (10.5, 0.0))]) == [0, 1, 2, 3]
    firsts = {order_images("diversity", looks, seed=seed)[0] for seed in range(20)}
    assert len(firsts) > 1  # nothing labeled: the seed draws the first
    assert {index // 2 for index in order_images("diversity", looks, seed=3)[:2]} == {0, 1}


def test_mixed_is_between_both() -> None:
    labeled = [Look(0, 0, (0.0,))]
    looks = [Look(0.9, 1, (5.0,)), Look(0.8, 1, (9.0,)), Look(0.1, 1, (1.0,))]
    assert order_images("uncertainty", looks) == [0, 1, 2]
    assert order_images("diversity", looks, labeled=labeled)[0] == 1
    assert order_images("mixed", looks, labeled=labeled) == [0, 1, 2]  # ranks 0.5, 0.5 and 2


def test_diversity_needs_features() -> None:
    for looks in ([Look(0.5, 1)], [Look(0.5, 1, (1.0,)), Look(0.5, 1)]):
        with pytest.raises(BadInputError, match="uncertainty or gain"):
            order_images("diversity", looks)
