"""Figures of interactive segmentation: IoU, boundary IoU, NoC, NoF, mIoU@k, SPC. numpy only; knows no models.

A curve is the list of IoUs after click 1, 2, ... of one object; it ends early once the largest target was reached.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.masks.boundaries import boundary_band, boundary_width

MAX_CLICKS = 20
Truth = NDArray[np.int8] | NDArray[np.bool_]


def iou(gt: Truth, mask: NDArray[np.bool_]) -> float:
    """Intersection over union over the pixels that count.

    Args:
        gt: (H, W): 1 or True is the object, 0 background, -1 doesn't count.
        mask: bool (H, W).

    Returns:
        In [0, 1]; 1 if both are empty (the official code divides by zero there).
    """
    inside, counted = gt == 1, mask & (gt != -1)
    union = np.count_nonzero(inside | counted)
    return float(np.count_nonzero(inside & counted) / union) if union else 1.0


def boundary_iou(gt: Truth, mask: NDArray[np.bool_], dilation_ratio: float = 0.02) -> float:
    """IoU of the two boundary bands, over the pixels that count.

    Args:
        gt: As in `iou`.
        mask: bool (H, W).
        dilation_ratio: Width of the bands as a share of the image diagonal.

    Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", eq. 3.
    """
    width = boundary_width((mask.shape[0], mask.shape[1]), dilation_ratio)
    return boundary_iou_of_bands(gt, boundary_band(gt == 1, width), mask, width)


def boundary_iou_of_bands(gt: Truth, gt_band: NDArray[np.bool_], mask: NDArray[np.bool_], width: int) -> float:
    """As `boundary_iou`, with the truth's band computed once for many masks."""
    counts = gt != -1
    return iou(gt_band & counts, boundary_band(mask & counts, width) & counts)


def clicks_to_reach(ious: Sequence[float], iou_threshold: float, max_clicks: int = MAX_CLICKS) -> int:
    """Number of clicks until IoU >= threshold, counting the cap when it is never reached.

    Source: Sofiiuk et al., RITM, sec. 5.1, and the official code.
    """
    reached = (index + 1 for index, value in enumerate(ious[:max_clicks]) if value >= iou_threshold)
    return next(reached, max_clicks)


def fails(ious: Sequence[float], iou_threshold: float, max_clicks: int = MAX_CLICKS) -> bool:
    """Whether the threshold is never reached within the cap."""
    return not any(value >= iou_threshold for value in ious[:max_clicks])


def noc(curves: Sequence[Sequence[float]], iou_threshold: float, max_clicks: int = MAX_CLICKS) -> float:
    """NoC@threshold: mean number of clicks to reach it, capped; NaN without objects."""
    return _mean([clicks_to_reach(curve, iou_threshold, max_clicks) for curve in curves])


def nof(curves: Sequence[Sequence[float]], iou_threshold: float, max_clicks: int = MAX_CLICKS) -> int:
    """NoF@threshold: number of objects that never reach it within the cap."""
    return sum(fails(curve, iou_threshold, max_clicks) for curve in curves)


def at_cap(curves: Sequence[Sequence[float]], iou_threshold: float, max_clicks: int = MAX_CLICKS) -> int:
    """The official ">= 20" count: objects whose clicks equal the cap, also those that succeed exactly there."""
    return sum(clicks_to_reach(curve, iou_threshold, max_clicks) == max_clicks for curve in curves)


def mean_at(curves: Sequence[Sequence[float]], num_clicks: int) -> float:
    """Mean of the curves after that many clicks; a curve that ended early keeps its last value; NaN without objects."""
    return _mean([curve[min(num_clicks, len(curve)) - 1] for curve in curves if curve])


def seconds_per_click(seconds: Sequence[float], clicks: Sequence[int]) -> float:
    """SPC: wall time of all objects (click simulation included, encoding too) over all clicks; NaN without clicks."""
    return sum(seconds) / sum(clicks) if sum(clicks) else float("nan")


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
