"""Masks at the size of a small picture, read straight off their runs: the cost does not grow with the image."""

import numpy as np

from pipeline.masks.packed import pack
from pipeline.masks.rle import check_size, decode_runs
from schemas.masks import PackedMask, Rle


def preview_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """(height, width) of a picture whose longest side is at most `longest` pixels; never larger than the image."""
    scale = min(1.0, longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def preview_mask(rle: Rle, box: tuple[int, int, int, int], longest: int) -> PackedMask:
    """A mask as its nearest pixels at a preview's size.

    Args:
        rle: The mask, valid as stored.
        box: (x, y, width, height) that holds it, in image pixels.
        longest: See `preview_size`.

    Returns:
        The mask in preview pixels. One too small or thin to meet any of them is drawn as its box.
    """
    height, width = check_size(rle.size)
    small = preview_size(height, width, longest)
    (x, y, w, h), (small_height, small_width) = box, small
    rows = slice(y * small_height // height, -(-(y + h) * small_height // height))
    columns = slice(x * small_width // width, -(-(x + w) * small_width // width))
    bounds = np.cumsum(decode_runs(rle.counts))
    ys = ((np.arange(small_height)[rows] + 0.5) * height / small_height).astype(np.int64)
    xs = ((np.arange(small_width)[columns] + 0.5) * width / small_width).astype(np.int64)
    places = xs[None, :] * height + ys[:, None]  # runs go down the columns
    inside = (np.searchsorted(bounds, places, side="right") & 1).astype(np.bool_)
    mask = np.zeros(small, np.bool_)
    mask[rows, columns] = inside if inside.any() else True
    return pack(mask)
