"""Outlines are the masks again, but for what a single polygon cannot say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from pipeline.export import polygons
from pipeline.export.polygons import PolygonLoss, fill_outline, mask_outline


def drawn(*boxes: tuple[int, int, int, int, bool]) -> NDArray[np.bool_]:
    mask = np.zeros((40, 60), np.bool_)
    for y0, x0, y1, x1, inside in boxes:
        mask[y0:y1, x0:x1] = inside
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        drawn((5, 5, 30, 50, True)),
        drawn((0, 0, 40, 60, True)),
        drawn((7, 9, 8, 10, True)),
        drawn((7, 9, 8, 30, True)),
        drawn((7, 9, 30, 11, True)),
        drawn((5, 5, 30, 50, True), (10, 10, 20, 30, False)),
        drawn((5, 5, 30, 50, True), (10, 10, 14, 14, False), (20, 30, 25, 40, False)),
    ],
    ids=["box", "image", "pixel", "line", "thin", "ring", "two holes"],
)
def test_one_part_is_kept_to_the_pixel(mask: NDArray[np.bool_]) -> None:
    outline = mask_outline(mask)
    assert len(outline) >= 3
    assert np.array_equal(fill_outline(outline, mask.shape), mask)


def test_two_parts_lose_the_bridge() -> None:
    mask = drawn((5, 5, 15, 15, True), (5, 20, 15, 30, True))
    filled = fill_outline(mask_outline(mask), mask.shape)
    assert (mask & ~filled).sum() == 0
    assert (filled & ~mask).sum() == 5  # the gap is five columns wide


def test_many_parts_take_little_more_work_than_few(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_into: list[int] = []

    def counted(corners: NDArray[np.int32]) -> cKDTree:
        looked_into.append(len(corners))
        return cKDTree(corners)

    monkeypatch.setattr(polygons, "cKDTree", counted)
    rows, columns = np.nonzero(np.ones((32, 32)))
    mask = np.zeros((32 * 10, 32 * 10), np.bool_)
    for y, x in zip(rows * 10, columns * 10, strict=True):
        mask[y + 2 : y + 7, x + 2 : x + 6] = True
        mask[y + 4, x + 4] = False
    outline = mask_outline(mask)
    parts = 2 * 32 * 32  # a border and a hole each
    assert len(outline) == 32 * 32 * (4 + 4) + 2 * (parts - 1)
    assert sum(looked_into) < len(outline) * np.log2(parts)
    filled = fill_outline(outline, mask.shape)
    assert (mask & ~filled).sum() == 0
    assert (filled & ~mask).sum() <= 32 * 32 * 6  # a gap is five or six pixels wide


@given(arrays(np.bool_, (12, 15)).filter(lambda mask: bool(mask.any())))
@settings(max_examples=100, deadline=None)
def test_no_pixel_of_a_mask_is_lost_at_its_border(mask: NDArray[np.bool_]) -> None:
    outline = mask_outline(mask)
    inside = mask[outline[:, 1], outline[:, 0]]
    assert inside.all() and len(outline) >= 3
    assert fill_outline(outline, mask.shape)[outline[:, 1], outline[:, 0]].all()


def test_loss_is_counted_by_category() -> None:
    loss = PolygonLoss()
    whole, parts = drawn((5, 5, 30, 50, True)), drawn((5, 5, 15, 15, True), (5, 20, 15, 30, True))
    for category, mask in ((2, whole), (2, parts), (1, whole)):
        loss.add(category, mask, mask_outline(mask))
    cat, dog = loss.report({1: "cat", 2: "dog"})
    assert cat == {"id": 1, "name": "cat", "masks": 1, "mean_iou": 1.0, "min_iou": 1.0}
    assert (dog["masks"], dog["min_iou"]) == (2, pytest.approx(200 / 205))
    assert dog["mean_iou"] == pytest.approx((1 + 200 / 205) / 2)
