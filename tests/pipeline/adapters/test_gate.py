"""The gate promotes what is clearly better and nothing else."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.adapters.gate import GateConfig, ObjectResult, decide, paired_bootstrap

CONFIG = GateConfig(num_resamples=1000)


def results(noc: list[float], categories: list[int | None] | None = None, per_image: int = 1) -> list[ObjectResult]:
    return [
        ObjectResult(str(i), str(i // per_image), categories[i] if categories else 1, n, clicks=int(n), violations=0)
        for i, n in enumerate(noc)
    ]


nocs = st.lists(st.integers(1, 20).map(float), min_size=30, max_size=120)


@given(nocs)
def test_identical_is_not_promoted(noc: list[float]) -> None:
    decision = decide(results(noc), results(noc), CONFIG)
    assert not decision.promote
    assert decision.figures["improvement"]["mean"] == 0


@given(nocs, st.integers(0, 2**32 - 1), st.floats(0.0, 5.0))
def test_worse_on_average_is_never_promoted(noc: list[float], seed: int, worse: float) -> None:
    rng = np.random.default_rng(seed)
    candidate = np.array(noc) + rng.normal(0, 3, len(noc))
    candidate += max(0.0, np.mean(noc) - candidate.mean()) + worse  # any shape of difference, mean not better
    decision = decide(results(noc), results(candidate.tolist()), CONFIG)
    assert not decision.promote
    assert decision.reasons


@given(nocs, st.integers(0, 2**32 - 1))
def test_poisoned_is_never_promoted(noc: list[float], seed: int) -> None:
    """A candidate that never finishes a third of the objects and saves a tenth of the clicks on the rest."""
    live = np.array(noc).clip(1, 15)
    broken = np.random.default_rng(seed).permutation(len(live)) % 3 == 0
    candidate = np.where(broken, 20.0, 0.9 * live)
    assert not decide(results(live.tolist()), results(candidate.tolist()), CONFIG).promote


@given(nocs, st.integers(0, 2**32 - 1))
def test_clear_improvement_is_promoted(noc: list[float], seed: int) -> None:
    live = np.array(noc) + 3
    rng = np.random.default_rng(seed)
    candidate = live - rng.integers(1, 4, len(live))
    decision = decide(results(live.tolist()), results(candidate.tolist()), CONFIG)
    assert decision.promote
    assert decision.reasons == ()


@given(st.integers(0, 29), st.integers(0, 5))
def test_too_few_masks(count: int, better: int) -> None:
    decision = decide(results([10.0] * count), results([10.0 - better] * count), CONFIG)
    assert not decision.promote
    assert "not enough data, not promoted" in decision.reasons[0]


@given(st.integers(10, 40), st.integers(2, 8))
def test_one_category_clearly_worse_blocks(size: int, worse: int) -> None:
    categories: list[int | None] = [1] * 100 + [2] * size
    live = [10.0] * (100 + size)
    candidate = [4.0] * 100 + [10.0 + worse] * size
    decision = decide(results(live, categories), results(candidate, categories), CONFIG)
    assert decision.figures["improvement"]["low"] > 0, "the whole is better, only the category is not"
    assert not decision.promote
    assert [r for r in decision.reasons if r.startswith("category 2 got worse")] == list(decision.reasons)


def test_a_category_with_few_masks_does_not_block() -> None:
    categories: list[int | None] = [1] * 100 + [2] * 9
    live, candidate = [10.0] * 109, [4.0] * 100 + [18.0] * 9
    assert decide(results(live, categories), results(candidate, categories), CONFIG).promote


def test_a_category_on_one_image_does_not_block() -> None:
    categories: list[int | None] = [1] * 60 + [2] * 12
    live = results([10.0] * 72, categories)
    candidate = results([6.0] * 60 + [11.0] * 12, categories)
    on_one = [dataclasses.replace(r, group="same") if r.category == 2 else r for r in live]
    assert decide(on_one, candidate, CONFIG).promote


@pytest.mark.parametrize("sizes", [[5] * 6, [25, 1, 1, 1, 1, 1], [3] * 10])
def test_what_is_no_better_is_seldom_promoted_however_few_the_images(sizes: list[int]) -> None:
    """One in forty, says the interval."""
    rng, promoted = np.random.default_rng(5), 0
    groups = [str(image) for image, size in enumerate(sizes) for _ in range(size)]
    for _ in range(400):
        saved = np.concatenate([rng.normal(0, 1) + rng.normal(0, 1.5, size) for size in sizes])
        live = [dataclasses.replace(r, group=g) for r, g in zip(results([10.0] * len(saved)), groups, strict=True)]
        candidate = [dataclasses.replace(r, noc=10.0 - one) for r, one in zip(live, saved, strict=True)]
        promoted += decide(live, candidate, dataclasses.replace(CONFIG, num_resamples=400)).promote
    assert promoted <= 24


def test_noise_in_a_category_does_not_block() -> None:
    categories: list[int | None] = [1] * 100 + [2] * 20
    live = [10.0] * 120
    candidate = [4.0] * 100 + [9.0, 11.5] * 10
    assert decide(results(live, categories), results(candidate, categories), CONFIG).promote


def test_a_gain_below_the_margin_is_not_promoted() -> None:
    decision = decide(results([10.0] * 200), results([9.96] * 200), CONFIG)
    assert not decision.promote
    assert len(decision.reasons) == 1 and "less than the margin" in decision.reasons[0]


def test_broken_clicks_block() -> None:
    live = results([10.0] * 50)
    candidate = [dataclasses.replace(r, noc=5.0, violations=1) for r in live]
    decision = decide(live, candidate, CONFIG)
    assert not decision.promote and "not monotone" in decision.reasons[0]
    inherited = [dataclasses.replace(r, violations=2) for r in live]
    assert decide(inherited, candidate, CONFIG).promote


def test_objects_of_one_image_count_as_one_draw() -> None:
    """Objects on four images, one of which got much better: no certainty, although a hundred look like many."""
    live, candidate = [10.0] * 100, [5.0] * 25 + [10.5] * 75
    assert decide(results(live), results(candidate), CONFIG).promote
    assert not decide(results(live, per_image=25), results(candidate, per_image=25), CONFIG).promote


def test_too_few_images() -> None:
    decision = decide(results([10.0] * 90, per_image=30), results([5.0] * 90, per_image=30), CONFIG)
    assert not decision.promote
    assert "not enough data, not promoted: 90 held-out masks on 3 images" in decision.reasons[0]


@given(nocs, st.permutations(range(30)))
def test_order_of_the_candidate_does_not_matter(noc: list[float], order: list[int]) -> None:
    live, candidate = results(noc[:30]), results([max(1.0, n - 1) for n in noc[:30]])
    assert decide(live, candidate, CONFIG) == decide(live, [candidate[i] for i in order], CONFIG)


def test_different_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="same masks"):
        decide(results([1.0] * 40), results([1.0] * 41), CONFIG)
    with pytest.raises(ValueError, match="same masks"):
        decide(results([1.0] * 2), results([1.0] * 1) * 2, CONFIG)


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        saved = rng.normal(0.4, 2.0, 60)
        found = paired_bootstrap(saved, [str(i) for i in range(60)], CONFIG, rng)
        hits += found.low <= 0.4 <= found.high
    assert 0.88 <= hits / 200 <= 0.99
