"""Whether the IoU that a model states is the IoU that it has."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bin:
    """Predictions whose stated IoU lies in [low, high).

    Attributes:
        low: In [0, 1].
        high: In [0, 1]; the last bin holds 1 as well.
        count: Of predictions.
        stated: Mean IoU that the model states.
        real: Mean IoU that it has.
    """

    low: float
    high: float
    count: int
    stated: float
    real: float


def reliability(stated: Sequence[float], real: Sequence[float], bins: int = 10) -> list[Bin]:
    """The points of a reliability plot; bins without a prediction are left out.

    Args:
        stated: IoUs that the model states, in [0, 1].
        real: IoUs that it has, likewise long.
        bins: Equally wide ones.
    """
    scores, ious = np.asarray(stated, float), np.asarray(real, float)
    place = np.minimum((scores * bins).astype(int), bins - 1)
    found = []
    for index in np.unique(place):
        own = place == index
        low, high = float(index / bins), float((index + 1) / bins)
        found.append(Bin(low, high, int(own.sum()), float(scores[own].mean()), float(ious[own].mean())))
    return found


def calibration_error(stated: Sequence[float], real: Sequence[float], bins: int = 10) -> float:
    """Expected calibration error: mean of |stated - real| of the bins, weighted by their counts."""
    points = reliability(stated, real, bins)
    total = sum(point.count for point in points)
    return sum(point.count * abs(point.stated - point.real) for point in points) / max(1, total)
