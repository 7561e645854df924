"""COCO polygons and lists of run lengths to RLE, and IoU of RLE. The only masks module that needs pycocotools."""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.masks.rle import check_runs, check_size, encode_runs
from schemas.errors import BadInputError
from schemas.masks import Rle

_MAX_OUTLINE = 10_000_000
"""Pixels along the edges of a polygon; the rasteriser takes 45 bytes for each."""


def polygons_to_rle(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Rle:
    """Rasterise the polygons of one instance, united, as COCO does.

    Args:
        polygons: Each [x1, y1, x2, y2, ...] in pixels, at least three points.
        size: (height, width) of the image.

    Raises:
        BadInputError: A polygon is short, odd, not finite, far outside the image or far longer than the outline of any
            mask; or there is none.
    """
    height, width = check_size(size)
    if not polygons:
        raise BadInputError("An instance has no polygon. Expected at least one list of [x1, y1, x2, y2, ...].")
    for polygon in polygons:
        points = np.asarray(polygon, np.float64)
        if points.ndim != 1 or points.size < 6 or points.size % 2:
            raise BadInputError(f"A polygon has {points.size} numbers. Expected x, y of three points or more.")
        # The rasteriser walks every edge in fifths of pixels: far points would cost memory without bound.
        limits = np.array([width, height])
        if not np.isfinite(points).all():
            raise BadInputError("A polygon has a number that is not finite (NaN or infinite).")
        if (np.abs(points.reshape(-1, 2)) > 2 * limits + 2).any():
            raise BadInputError(f"A polygon leaves its image of size {height}x{width} (height x width) by far.")
        corners = points.reshape(-1, 2)
        length = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum()
        if length > min(4 * (height + 4) * (width + 4), _MAX_OUTLINE):  # more than around every pixel
            raise BadInputError(
                f"A polygon's {len(corners)} edges are {length:.0f} pixels long together: no mask of size "
                f"{height}x{width} (height x width) has such an outline."
            )
    parts = coco_mask.frPyObjects([list(map(float, polygon)) for polygon in polygons], height, width)
    merged = coco_mask.merge(parts)
    return Rle(size=size, counts=merged["counts"].decode("ascii"))


def uncompressed_to_rle(counts: Sequence[int], size: tuple[int, int]) -> Rle:
    """Compress COCO's list form of run lengths.

    Raises:
        BadInputError: The runs are no whole numbers or don't fill the size.
    """
    runs = np.asarray(counts)
    if runs.ndim != 1 or runs.dtype.kind not in "iu":
        raise BadInputError("Uncompressed RLE counts must be a flat list of whole numbers.")
    check_runs(runs.astype(np.int64), size)
    return Rle(size=size, counts=encode_runs(runs.astype(np.int64)))


def rle_iou(first: Rle, second: Rle) -> float:
    """IoU of two masks of the same size, not both empty, whose counts were checked."""
    pair = ({"size": list(rle.size), "counts": rle.counts.encode("ascii")} for rle in (first, second))
    return float(coco_mask.iou([next(pair)], [next(pair)], [0])[0, 0])
