import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.inference.zoom import ZoomConfig, click_to_crop, expand, mirror_click, next_roi, roi_fractions
from schemas.clicks import Click

SIZE = (1000, 800)


def test_expanded_box_is_one_pixel_larger_than_its_nominal_side() -> None:
    y0, x0, y1, x1 = expand((500, 400, 510, 500), SIZE)
    assert (y1 - y0, x1 - x0) == (201, 201)
    assert expand((500, 400, 511, 501), SIZE) == (405, 350, 606, 551)


def test_large_box_grows_by_the_ratio_and_is_clamped() -> None:
    assert expand((0, 0, 1001, 301), (1000, 1000)) == (0, 0, 1000, 362)


def test_before_any_mask_the_whole_image_is_looked_at() -> None:
    assert next_roi(None, None, [Click(3, 3, True)], SIZE) == (0, 0, 1000, 800)
    assert next_roi((10, 10, 300, 300), None, [Click(20, 20, True)], SIZE) == (0, 0, 1000, 800)


def test_current_roi_stays_while_the_candidate_overlaps_it() -> None:
    current = (400, 300, 700, 600)
    assert next_roi(current, (450, 350, 640, 540), [Click(450, 500, True)], SIZE) == current
    assert next_roi(current, (450, 350, 480, 370), [Click(360, 460, True)], SIZE) != current


@pytest.mark.parametrize(
    ("x", "y", "stays"), [(598, 698, True), (599, 600, False), (500, 699, False), (299, 500, False)]
)
def test_positive_click_in_the_last_row_or_column_counts_as_outside(x: int, y: int, stays: bool) -> None:
    current = (400, 300, 700, 600)
    clicks = [Click(450, 500, True), Click(x, y, True)]
    assert (next_roi(current, (450, 350, 640, 540), clicks, SIZE) == current) is stays


def test_negative_clicks_do_not_move_the_roi() -> None:
    current = (400, 300, 700, 600)
    assert next_roi(current, (450, 350, 640, 540), [Click(500, 500, True), Click(5, 5, False)], SIZE) == current


def test_candidate_holds_positive_clicks_outside_the_mask() -> None:
    y0, x0, y1, x1 = next_roi(None, (500, 400, 520, 420), [Click(100, 900, True)], SIZE)
    assert y0 <= 500 and x0 <= 100 < x1 and y1 > 900


@given(
    st.tuples(st.integers(0, 98), st.integers(0, 98), st.integers(1, 100), st.integers(1, 100)),
    st.lists(st.tuples(st.floats(0, 99.9), st.floats(0, 99.9), st.booleans()), max_size=5),
)
def test_candidate_lies_in_the_image_and_holds_mask_and_positive_clicks(
    box: tuple[int, int, int, int], points: list[tuple[float, float, bool]]
) -> None:
    top, left, height, width = box
    mask_box = (top, left, min(100, top + height), min(100, left + width))
    clicks = [Click(x, y, sign) for x, y, sign in points]
    y0, x0, y1, x1 = next_roi(None, mask_box, clicks, (100, 100), ZoomConfig(min_crop_size=10))
    assert 0 <= y0 <= mask_box[0] and mask_box[2] <= y1 <= 100
    assert 0 <= x0 <= mask_box[1] and mask_box[3] <= x1 <= 100
    assert all(y0 <= int(c.y) < y1 and x0 <= int(c.x) < x1 for c in clicks if c.is_positive)


def test_click_is_scaled_without_a_half_pixel_and_mirrored_on_the_index_grid() -> None:
    click = click_to_crop(Click(30, 45, False), (20, 10, 120, 60), (200, 100))
    assert click == Click(40, 50, False)
    assert mirror_click(click, 100) == Click(59, 50, False)


def test_fractions_are_of_pixel_edges() -> None:
    assert roi_fractions((0, 200, 500, 800), SIZE) == (0.0, 0.25, 0.5, 1.0)
