import numpy as np
import pytest

from pipeline.masks.polygons import polygons_to_rle, uncompressed_to_rle
from pipeline.masks.rle import mask_to_rle, rle_area, rle_to_mask
from schemas.errors import BadInputError
from tests.peaks import at_most


def test_polygons_of_one_instance_are_united() -> None:
    left, right = [1, 1, 5, 1, 5, 6, 1, 6], [7, 2, 9, 2, 9, 4, 7, 4]
    mask = rle_to_mask(polygons_to_rle([left, right], (8, 10)))
    assert mask[1:6, 1:5].all()
    assert mask[2:4, 7:9].all()
    assert mask.sum() == 20 + 4


def test_three_hundred_instances_have_their_areas() -> None:
    """pycocotools' own `area` overflows for more than 255 masks with numpy 2.4; ours does not go through it."""
    rles = [polygons_to_rle([[0, 0, side, 0, side, 4, 0, 4]], (8, 400)) for side in range(1, 301)]
    assert [rle_area(rle) for rle in rles] == [4 * side for side in range(1, 301)]


@pytest.mark.parametrize(
    "polygons",
    [[], [[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [[0, 0, 1e12, 0, 5, 5]], [[0, 0, float("nan"), 0, 5, 5]]],
)
def test_malformed_polygons_are_refused(polygons: list[list[float]]) -> None:
    with pytest.raises(BadInputError, match=r"polygon"):
        polygons_to_rle(polygons, (10, 10))


def test_edges_that_cross_the_image_again_and_again_are_refused_before_they_are_drawn() -> None:
    """The rasteriser walks along each: these took half a gigabyte."""
    zigzag = [coordinate for n in range(5000) for coordinate in (1000 * (n % 2), n % 7)]
    with at_most(50), pytest.raises(BadInputError, match="polygon's 5000 edges"):
        polygons_to_rle([zigzag], (540, 540))


def test_the_outline_of_a_labyrinth_is_drawn() -> None:
    """As long as outlines get: there and back in every other row."""
    side, gap = 40, 41
    there = [(x, y) for n in range(0, side, 4) for x, y in ((0, n), (side, n), (side, n + 2), (0, n + 2))]
    back = [(x, y + 1) for x, y in reversed(there)]
    flat = [float(coordinate) for point in [*there, *back] for coordinate in point]
    assert rle_area(polygons_to_rle([flat], (gap, gap))) > side * side / 3


def test_uncompressed_counts_equal_the_mask() -> None:
    mask = np.zeros((3, 4), np.bool_)
    mask[1, 1:3] = True
    assert uncompressed_to_rle([4, 1, 2, 1, 4], (3, 4)) == mask_to_rle(mask)


@pytest.mark.parametrize("counts", [[4, 1], [-1, 13], [12.5], [[12]], ["12"], [], [2**80]])
def test_malformed_uncompressed_counts_are_refused(counts: list[int]) -> None:
    with pytest.raises(BadInputError):
        uncompressed_to_rle(counts, (3, 4))
