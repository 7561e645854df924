"""Masks at the size of a small picture."""

import numpy as np
import pytest

from pipeline.masks.boxes import mask_box_xywh
from pipeline.masks.packed import unpack
from pipeline.masks.previews import preview_mask, preview_size
from pipeline.masks.rle import mask_to_rle


@pytest.mark.parametrize(
    ("image", "longest", "expected"),
    [((600, 800), 320, (240, 320)), ((10, 20), 320, (10, 20)), ((3, 4000), 40, (1, 40))],
)
def test_previews_keep_the_form_and_never_grow(image: tuple[int, int], longest: int, expected: tuple[int, int]) -> None:
    assert preview_size(*image, longest) == expected


@pytest.mark.parametrize("longest", [1000, 64, 33, 7])
def test_a_preview_is_the_mask_at_the_centres_of_its_pixels(longest: int) -> None:
    rng = np.random.default_rng(3)
    mask = np.zeros((97, 130), np.bool_)
    mask[20:80, 31:120] = rng.random((60, 89)) < 0.6
    small = unpack(preview_mask(mask_to_rle(mask), mask_box_xywh(mask), longest))
    height, width = preview_size(97, 130, longest)
    ys, xs = ((np.arange(height) + 0.5) * 97 / height).astype(int), ((np.arange(width) + 0.5) * 130 / width).astype(int)
    assert np.array_equal(small, mask[np.ix_(ys, xs)])


def test_a_mask_between_the_pixels_is_drawn_as_its_box() -> None:
    mask = np.zeros((1000, 1000), np.bool_)
    mask[500, 700:740] = True
    small = unpack(preview_mask(mask_to_rle(mask), mask_box_xywh(mask), 100))
    assert np.argwhere(small).tolist() == [[50, x] for x in range(70, 74)]
