"""What is refused before it is stored: points, boxes, runs and categories that do not fit."""

from typing import Any

import numpy as np
import pytest

from pipeline.masks.rle import mask_to_rle
from pipeline.sessions.checks import check_event
from schemas.errors import BadInputError, ClickOutsideImageError, TooLargeError

SIZE = (8, 10)
RLE = mask_to_rle(np.eye(4, 5, dtype=bool)).model_dump(mode="json")
BOX = [1, 2, 6, 6]


def check(kind: str, **payload: Any) -> None:
    check_event(kind, payload, SIZE, {1, 2})


@pytest.mark.parametrize(("x", "y"), [(0, 0), (9.99, 7.99), (9, 7)])
def test_click_on_a_pixel_passes(x: float, y: float) -> None:
    check("click", x=x, y=y, is_positive=False)


@pytest.mark.parametrize(("x", "y"), [(-0.01, 0), (10, 0), (0, 8), (9, 8.5), (1e5, 1)])
def test_click_off_the_image_is_refused_by_name(x: float, y: float) -> None:
    with pytest.raises(ClickOutsideImageError, match="8x10"):
        check("click", x=x, y=y, is_positive=True)


@pytest.mark.parametrize(
    "payload",
    [
        {"x": float("nan"), "y": 1, "is_positive": True},
        {"x": float("inf"), "y": 1, "is_positive": True},
        {"x": "a", "y": 1, "is_positive": True},
        {"x": 1, "is_positive": True},
        {"x": 1, "y": 1, "is_positive": "perhaps"},
        {"x": 1, "y": 1, "is_positive": True, "z": 2},
        {"x": None, "y": 1, "is_positive": True},
    ],
)
def test_malformed_click_is_bad_input(payload: dict[str, Any]) -> None:
    with pytest.raises(BadInputError):
        check("click", **payload)


@pytest.mark.parametrize("box", [[0, 0, 10, 8], [1.5, 1, 2.5, 2]])
def test_box_inside_passes(box: list[float]) -> None:
    check("box", **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)))


@pytest.mark.parametrize("box", [[0, 0, 11, 8], [-1, 0, 4, 4], [3, 3, 3, 5], [5, 5, 2, 7], [1, 1, 1.5, 4]])
def test_box_outside_or_empty_is_refused(box: list[float]) -> None:
    with pytest.raises(BadInputError):
        check("box", **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)))


def test_strokes_must_fit_their_box() -> None:
    check("brush", is_positive=True, box=BOX, rle=RLE)
    check("mask_edit", tool="fill_holes", box=BOX, added=RLE, erased=RLE)
    with pytest.raises(BadInputError):
        check("brush", is_positive=True, box=[0, 0, 4, 4], rle=RLE)
    with pytest.raises(BadInputError):
        check("brush", is_positive=True, box=[6, 2, 11, 6], rle=RLE)


@pytest.mark.parametrize("counts", ["", "\x00", "zzzz", "0", "P", RLE["counts"][:-1], "é"])
def test_malformed_runs_are_refused_before_they_are_stored(counts: str) -> None:
    with pytest.raises(BadInputError):
        check("brush", is_positive=True, box=BOX, rle={"size": [4, 5], "counts": counts})


def test_oversized_runs_are_too_large() -> None:
    with pytest.raises(TooLargeError):
        check("brush", is_positive=True, box=BOX, rle={"size": [4, 5], "counts": "0" * 70_000})


def test_unknown_category_is_refused() -> None:
    check("category", category=None)
    check("category", category=2)
    for kind, payload in (
        ("category", {"category": 3}),
        ("accept", {"seq": 1, "mask_sha256": "0" * 64, "category": 9}),
    ):
        with pytest.raises(BadInputError, match="Known numbers: 1, 2"):
            check(kind, **payload)
