"""ZoomIn: which part of the image a click looks at, and where clicks fall in it. Knows nothing about pixels' values.

Sofiiuk et al., "Reviving Iterative Training with Mask Guidance for Interactive Segmentation", sec. 3.4, with the rules
of the official code of SimpleClick (uncbiag/SimpleClick f33112e), so that ROIs are equal to its ROIs. A ROI is
(y0, x0, y1, x1), half-open, in whole image pixels; the inclusive bounds of the official code appear only inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from schemas.clicks import Click

Roi: TypeAlias = tuple[int, int, int, int]
MASK_THRESHOLD = 0.5
"""Strictly greater is inside."""


@dataclass(frozen=True, kw_only=True)
class ZoomConfig:
    """How ZoomIn follows the mask; defaults are those of the papers' evaluation."""

    expansion_ratio: float = 1.4
    """ROI side as a multiple of the mask box's side."""
    min_crop_size: int = 200
    """Smallest nominal ROI side in image pixels."""
    recompute_iou: float = 0.5
    """Below this overlap of the new candidate with the current ROI, the candidate replaces it."""


DEFAULT_ZOOM = ZoomConfig()


def next_roi(
    current: Roi | None,
    mask_box: Roi | None,
    clicks: Sequence[Click],
    size: tuple[int, int],
    config: ZoomConfig = DEFAULT_ZOOM,
) -> Roi:
    """Choose the ROI of the next prediction.

    Args:
        current: ROI of the previous prediction, None before the first.
        mask_box: Box of the previous mask (probability > 0.5) in image pixels, None when it is empty or there is none.
        clicks: All clicks so far, in image pixels.
        size: (H, W) of the image.
        config: The constants.

    Returns:
        The current ROI while it still fits: it holds all positive clicks and overlaps the candidate (the expanded box
        of mask and positive clicks; the whole image when the mask is empty) well enough. Else the candidate.
    """
    candidate = expand(_with_positive_clicks(mask_box, clicks), size, config) if mask_box else (0, 0, *size)
    if current is None or not _holds_positive_clicks(current, clicks):
        return candidate
    return candidate if _interval_iou_product(candidate, current) < config.recompute_iou else current


def expand(box: Roi, size: tuple[int, int], config: ZoomConfig = DEFAULT_ZOOM) -> Roi:
    """Enlarge a box about its centre and clamp it to the image; both bounds round half to even.

    Args:
        box: (y0, x0, y1, x1), half-open, in pixels.
        size: (H, W) of the image.
        config: The constants.
    """
    bounds = []
    for low, high, limit in ((box[0], box[2] - 1, size[0]), (box[1], box[3] - 1, size[1])):
        centre = 0.5 * (low + high)
        side = max(config.expansion_ratio * (high - low + 1), config.min_crop_size)
        bounds.append((max(0, round(centre - 0.5 * side)), min(limit - 1, round(centre + 0.5 * side)) + 1))
    (y0, y1), (x0, x1) = bounds
    return y0, x0, y1, x1


def click_to_crop(click: Click, roi: Roi, size: tuple[int, int]) -> Click:
    """Map a click from image pixels to crop pixels, by a plain scale as the official code does.

    Args:
        click: In image pixels.
        roi: The crop's place.
        size: (h, w) of the crop. The result may lie outside of it for negative clicks.
    """
    y0, x0, y1, x1 = roi
    return Click(
        x=size[1] * (click.x - x0) / (x1 - x0), y=size[0] * (click.y - y0) / (y1 - y0), is_positive=click.is_positive
    )


def mirror_click(click: Click, width: int) -> Click:
    """The click in the horizontally mirrored crop of that width: x' = width - x - 1."""
    return Click(x=width - click.x - 1, y=click.y, is_positive=click.is_positive)


def roi_fractions(roi: Roi, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The ROI as fractions of the image, pixel edges, (y0, x0, y1, x1)."""
    return roi[0] / size[0], roi[1] / size[1], roi[2] / size[0], roi[3] / size[1]


def _with_positive_clicks(box: Roi, clicks: Sequence[Click]) -> Roi:
    rows = [int(c.y) for c in clicks if c.is_positive]
    columns = [int(c.x) for c in clicks if c.is_positive]
    y0, x0, y1, x1 = box
    return min([y0, *rows]), min([x0, *columns]), max([y1 - 1, *rows]) + 1, max([x1 - 1, *columns]) + 1


def _holds_positive_clicks(roi: Roi, clicks: Sequence[Click]) -> bool:
    """Whether all positive clicks lie inside; the last row and column count as outside, as in the official code."""
    y0, x0, y1, x1 = roi
    return all(y0 <= c.y < y1 - 1 and x0 <= c.x < x1 - 1 for c in clicks if c.is_positive)


def _interval_iou_product(a: Roi, b: Roi) -> float:
    """Product of the IoUs of the row and column intervals, each by its hull (not the usual box IoU)."""
    product = 1.0
    for low, high in ((0, 2), (1, 3)):
        overlap = max(0, min(a[high], b[high]) - max(a[low], b[low]))
        product *= overlap / (max(a[high], b[high]) - min(a[low], b[low]))
    return product
