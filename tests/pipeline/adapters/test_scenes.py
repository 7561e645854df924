"""A person's record as clicks: strokes of the brush become clicks along them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.adapters.scenes import MAX_STROKE_CLICKS, AdapterTarget, Scene, stroke_clicks
from pipeline.masks.rle import mask_to_rle
from schemas.clicks import Click
from schemas.predictions import Edit

places = st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))


def edit(kind: str, **payload: object) -> Edit:
    return Edit.model_validate({"kind": kind, "payload": {"v": 1, **payload}, "payload_sha256": ""})


def target(*edits: Edit) -> AdapterTarget:
    return AdapterTarget("m", None, mask_to_rle(np.ones((20, 100), np.bool_)), edits)


def test_clicks_and_strokes_in_order() -> None:
    clicks = target(
        edit("open"),
        edit("click", x=5.0, y=6.0, is_positive=True),
        edit("brush", polyline=[(10.0, 3.0), (50.0, 3.0)], radius=5.0, is_positive=False),
        edit("mask_edit"),
        edit("brush", polyline=[], radius=5.0, is_positive=True),
        edit("click", x=7.0, y=8.0, is_positive=True),
    ).clicks
    assert [(c.x, c.y, c.is_positive) for c in clicks] == [
        (5, 6, True), (15, 3, False), (25, 3, False), (35, 3, False), (45, 3, False), (7, 8, True),
    ]  # fmt: skip


def test_a_short_stroke_is_one_click_in_its_middle() -> None:
    assert stroke_clicks([(10.0, 4.0), (14.0, 4.0)], 20.0, True) == [Click(x=12, y=4, is_positive=True)]
    assert stroke_clicks([(10.0, 4.0)], 3.0, False) == [Click(x=10, y=4, is_positive=False)]


@given(polyline=st.lists(places, min_size=1, max_size=20), radius=st.floats(0, 2000), is_positive=st.booleans())
def test_strokes_as_clicks(polyline: list[tuple[float, float]], radius: float, is_positive: bool) -> None:
    clicks = stroke_clicks(polyline, radius, is_positive)
    assert 1 <= len(clicks) <= MAX_STROKE_CLICKS
    low, high = np.min(polyline, axis=0), np.max(polyline, axis=0)
    for click in clicks:
        assert click.is_positive == is_positive
        assert np.all(low - 1e-6 <= (click.x, click.y)) and np.all((click.x, click.y) <= high + 1e-6)


@pytest.mark.parametrize("mirrored", [False, True])
def test_what_was_painted_beyond_the_border_is_placed_on_it(mirrored: bool) -> None:
    scene = Scene(np.zeros((20, 100, 3), np.uint8), None, mirrored)
    (placed,) = scene.place_clicks([Click(x=-7.0, y=31.0, is_positive=True)])
    assert (placed.x, placed.y) == (99 if mirrored else 0, 19)
