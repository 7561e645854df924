"""One polygon per mask, for formats that know no more, and what that loses.

Parts and holes are joined into one outline by bridges that run there and back, as converters of the formats do: filled
by parity with its border, as OpenCV fills, such an outline is the mask again but for the bridges' pixels.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree


def mask_outline(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The outline of a mask that is not empty.

    Args:
        mask: bool (H, W).

    Returns:
        (N, 2) border pixels as (x, y), N >= 3; thin masks repeat pixels.
    """
    found, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outline = _joined([ring.reshape(-1, 2) for ring in found])
    missing = max(0, 3 - len(outline))
    return np.concatenate([outline, np.repeat(outline[-1:], missing, 0)]).astype(np.int32)


def fill_outline(outline: NDArray[np.int32], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The bool (H, W) mask that OpenCV, and with it Ultralytics, makes of an outline of border pixels."""
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [outline], 1)
    return mask.view(np.bool_)


@dataclass
class _Kept:
    masks: int = 0
    total: float = 0.0
    least: float = 1.0


class PolygonLoss:
    """How much of their masks polygons keep, by category."""

    def __init__(self) -> None:
        self._kept: defaultdict[int, _Kept] = defaultdict(_Kept)

    def add(self, category: int, mask: NDArray[np.bool_], outline: NDArray[np.int32]) -> None:
        """Count a mask and its outline."""
        (x0, y0), (x1, y1) = outline.min(0), outline.max(0) + 1
        inside = mask[y0:y1, x0:x1]  # all of the mask: the outline runs along its border
        filled = fill_outline(outline - [x0, y0], (y1 - y0, x1 - x0))
        iou = float((inside & filled).sum() / (inside | filled).sum())
        kept = self._kept[category]
        kept.masks, kept.total, kept.least = kept.masks + 1, kept.total + iou, min(kept.least, iou)

    def report(self, names: Mapping[int, str]) -> list[dict[str, Any]]:
        """By category: `id`, `name`, `masks`, mean and lowest IoU of polygon and mask."""
        return [
            {"id": number, "name": names[number], "masks": kept.masks, "mean_iou": kept.total / kept.masks,
             "min_iou": kept.least}
            for number, kept in sorted(self._kept.items())
        ]  # fmt: skip


def _joined(rings: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    """One outline of closed rings: each is put into what the rings before it make where their corners are nearest."""
    corners, starts = np.concatenate(rings), np.cumsum([0, *map(len, rings)])
    distances, nearest = _nearest_before(corners, starts)
    following = list(range(1, len(corners) + 1))  # the outline as a linked list of visits to corners
    for first, end in pairwise(starts.tolist()):
        following[end - 1] = first
    visited = list(range(len(corners)))
    for first, end in pairwise(starts[1:].tolist()):
        here = first + int(distances[first:end].argmin())
        there = int(nearest[here])
        back = len(visited)
        visited += [here, there]
        following[here - 1 if here > first else end - 1] = back
        following += [back + 1, following[there]]
        following[there] = here
    walk, visit = [], 0
    for _ in visited:
        walk.append(visited[visit])
        visit = following[visit]
    return corners[walk]


def _nearest_before(corners: NDArray[np.int32], starts: NDArray[np.intp]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Distance and place of the corner of earlier rings that is nearest to each corner; none has the first ring.

    Each half of the rings looks into the half before it, then both are halved: every corner looks into as many trees
    as the number of rings can be halved.
    """
    distances, nearest = np.full(len(corners), np.inf), np.zeros(len(corners), np.intp)
    waiting = [(0, len(starts) - 1)]
    while waiting:
        first, end = waiting.pop()
        if end - first < 2:
            continue
        middle = (first + end) // 2
        waiting += [(first, middle), (middle, end)]
        earlier, later = slice(starts[first], starts[middle]), slice(starts[middle], starts[end])
        found, place = cKDTree(corners[earlier]).query(corners[later])
        nearer = found < distances[later]
        distances[later] = np.where(nearer, found, distances[later])
        nearest[later] = np.where(nearer, place + earlier.start, nearest[later])
    return distances, nearest
