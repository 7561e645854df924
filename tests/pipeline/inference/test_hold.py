"""A click that confirms turns nothing over around it, a late one changes the mask nowhere else."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pipeline.data.procedural import procedural_scene
from pipeline.inference.hold import (
    SETTLED_CLICKS,
    clicked_pixel,
    hold_confirmed,
    hold_distant,
    square_around,
)
from pipeline.inference.instance import apply_edit, final_mask, start
from pipeline.inference.step import CropPrediction, encode_image
from pipeline.models import load_model
from schemas.clicks import Click
from schemas.predictions import Edit

ROI = (0, 0, 40, 60)


def prediction_of(*maps: NDArray[np.float32]) -> CropPrediction:
    return CropPrediction(np.stack(maps).astype(np.float16), ROI, (0.9,) * len(maps))


def square(y0: int, x0: int, y1: int, x1: int) -> NDArray[np.float32]:
    """0.9 inside, 0.1 outside."""
    found = np.full((40, 60), 0.1, np.float32)
    found[y0:y1, x0:x1] = 0.9
    return found


@pytest.mark.parametrize("is_positive", [True, False])
def test_what_reaches_the_click_is_held_and_the_rest_is_as_predicted(is_positive: bool) -> None:
    before = square(5, 5, 35, 55)
    after = before.copy()
    after[8:20, 10:20] = 0.1  # around the click
    after[25:30, 40:50] = 0.1  # a correction elsewhere
    expected = before.copy()
    expected[25:30, 40:50] = 0.1
    if not is_positive:
        before, after, expected = 1 - before, 1 - after, 1 - expected
    asked = prediction_of(after, after)
    held = hold_confirmed(asked, before, Click(x=14.0, y=12.0, is_positive=is_positive))
    assert np.array_equal(held.probabilities, np.stack([expected] * 2).astype(np.float16))
    assert held.probabilities.dtype == np.float16 and not held.probabilities.flags.writeable
    assert np.array_equal(asked.probabilities[0], after.astype(np.float16)), "what came in is left as it is"


def test_a_click_into_an_error_and_one_that_turns_nothing_over_leave_the_prediction() -> None:
    before, after = square(5, 5, 35, 55), square(5, 5, 20, 55)
    for click in (Click(x=10.0, y=30.0, is_positive=False), Click(x=10.0, y=10.0, is_positive=True)):
        asked = prediction_of(after)
        assert hold_confirmed(asked, before, click) is asked


maps = arrays(np.float32, (40, 60), elements=st.sampled_from([0.125, 0.5, 0.75]))


@given(maps, maps, st.integers(0, 39), st.integers(0, 59), st.booleans())
def test_only_what_was_on_the_clicks_side_is_held(
    before: NDArray[np.float32], after: NDArray[np.float32], row: int, column: int, is_positive: bool
) -> None:
    held = hold_confirmed(prediction_of(after), before, Click(x=float(column), y=float(row), is_positive=is_positive))
    found = held.candidate(0)
    changed = found != after
    assert np.array_equal(found[changed], before[changed])
    assert ((before[changed] > 0.5) == is_positive).all() and ((after[changed] > 0.5) != is_positive).all()
    if (before[row, column] > 0.5) == is_positive:
        assert (found[row, column] > 0.5) == is_positive


def test_what_changed_away_from_the_click_is_held_in_the_first_candidate() -> None:
    before = square(5, 5, 35, 55)
    after = before.copy()
    after[8:20, 10:20] = 0.1  # around the click
    after[25:30, 40:50] = 0.1  # elsewhere, as wrong as right
    expected = before.copy()
    expected[8:20, 10:20] = 0.1
    asked = prediction_of(after, after)
    held = hold_distant(asked, before, Click(x=14.0, y=12.0, is_positive=False))
    assert np.array_equal(held.probabilities, np.stack([expected, after]).astype(np.float16))
    assert held.probabilities.dtype == np.float16 and not held.probabilities.flags.writeable
    assert np.array_equal(asked.probabilities[0], after.astype(np.float16)), "what came in is left as it is"
    alone = prediction_of(expected)
    assert hold_distant(alone, before, Click(x=14.0, y=12.0, is_positive=False)) is alone


@given(maps, maps, st.integers(0, 39), st.integers(0, 59), st.booleans())
def test_a_late_click_changes_regions_that_reach_it_and_no_other(
    before: NDArray[np.float32], after: NDArray[np.float32], row: int, column: int, is_positive: bool
) -> None:
    click = Click(x=float(column), y=float(row), is_positive=is_positive)
    held = hold_distant(prediction_of(after), before, click)
    found = held.candidate(0)
    assert np.array_equal(hold_distant(held, before, click).probabilities, held.probabilities)
    assert ((found == after) | (found == before)).all()
    changed = (found > 0.5) != (before > 0.5)
    _, regions = cv2.connectedComponents(changed.astype(np.uint8), connectivity=8)
    at_click = square_around(clicked_pixel(click, ROI, (40, 60)))
    assert set(np.unique(regions)) - {0} <= set(np.unique(regions[at_click]))
    assert np.array_equal(found[at_click], after[at_click])


def test_clicks_that_confirm_keep_the_mask_of_the_shipped_weights() -> None:
    model = load_model("default")
    rows, columns = np.mgrid[:120, :160]
    disc = (rows - 60) ** 2 + (columns - 80) ** 2 < 40**2
    image = np.where(disc[..., None], np.uint8([200, 60, 40]), np.uint8([30, 60, 90])).astype(np.uint8)
    encoding, state = encode_image(model, image), start(image)

    def click(x: float, y: float, is_positive: bool) -> NDArray[np.bool_]:
        nonlocal state
        payload = {"v": 1, "x": x, "y": y, "is_positive": is_positive}
        state = apply_edit(model, image, encoding, state, Edit(kind="click", payload=payload, payload_sha256=""))
        return final_mask(state, disc.shape)

    first = click(80.0, 60.0, True)
    assert (first & disc).sum() / (first | disc).sum() > 0.8
    for x, y, is_positive in ((10.0, 10.0, False), (70.0, 50.0, True), (150.0, 110.0, False)):
        mask = click(x, y, is_positive)
        around = mask[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4]
        assert (around == is_positive).all()


def test_late_clicks_leave_the_mask_elsewhere_as_it_was() -> None:
    model = load_model("default")
    scene = procedural_scene(np.random.default_rng(3))
    size = (scene.image.shape[0], scene.image.shape[1])
    encoding, state = encode_image(model, scene.image), start(scene.image)
    rng, compared = np.random.default_rng(0), 0
    for number in range(1, SETTLED_CLICKS + 5):
        x, y = (float(rng.integers(0, side)) for side in (size[1], size[0]))
        is_positive = bool(scene.masks[0][int(y), int(x)])
        payload = {"v": 1, "x": x, "y": y, "is_positive": is_positive}
        edit = Edit(kind="click", payload=payload, payload_sha256="")
        before, state = state.prediction, apply_edit(model, scene.image, encoding, state, edit)
        assert state.prediction is not None
        if number < SETTLED_CLICKS or before is None or before.roi != state.prediction.roi:
            continue
        compared += 1
        changed = (before.candidate(0) > 0.5) != (state.prediction.candidate(0) > 0.5)
        _, regions = cv2.connectedComponents(changed.astype(np.uint8), connectivity=8)
        clicked = clicked_pixel(state.clicks[-1], before.roi, (changed.shape[0], changed.shape[1]))
        assert set(np.unique(regions)) - {0} <= set(np.unique(regions[square_around(clicked)]))
    assert compared >= 3
