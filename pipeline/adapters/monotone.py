"""Does a click keep its promise? A positive one must not shrink the mask at its point, a negative one not grow it.

Measured on the crop probability that the live path keeps (`inference.hold` holds what a click confirmed), before it
forces the clicked pixel, and in the ROI of the new prediction: two maps of the same pixels are compared.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.inference.hold import clicked_pixel, square_around
from pipeline.inference.instance import InstanceState
from pipeline.inference.sampling import Probability
from pipeline.inference.step import sampling_of
from pipeline.models._base import InteractiveModel
from schemas.clicks import Click

TOLERANCE = 0.02
"""Change of probability that counts as none."""


def keeps_promise(
    model: InteractiveModel, size: tuple[int, int], before: InstanceState, after: InstanceState, click: Click
) -> list[bool]:
    """Check one click.

    A positive click breaks its promise if the mean probability around its point falls: below 0.5 where it was inside,
    below what it was where it was outside (a fall that stays inside changes no pixel of the mask). A negative click is
    its mirror image.

    Args:
        model: Gives the sampling convention.
        size: (H, W) of the image.
        before: The state that the click was made on.
        after: The state after it.
        click: In image pixels.

    Returns:
        [kept], or [] when there was no prediction before it to compare with.
    """
    if before.prediction is None or after.prediction is None:
        return []
    sampling = sampling_of(model)
    carried = sampling.carry(
        before.prediction.candidate(before.candidate), before.prediction.roi, after.prediction.roi, size
    )
    old = _around(carried, after, click)
    new = _around(after.prediction.candidate(0), after, click)
    if click.is_positive:
        return [new >= min(old, 0.5) - TOLERANCE]
    return [new <= max(old, 0.5) + TOLERANCE]


def probe_clicks(truth: NDArray[np.bool_], mask: NDArray[np.bool_]) -> list[Click]:
    """Clicks that confirm what is right already, one deep inside and one just outside; a sound model keeps both.

    Args:
        truth: bool (H, W).
        mask: bool (H, W), the current mask.
    """
    clicks = []
    inside = truth & mask
    if inside.any():
        clicks.append(_deepest(inside, True))
    x, y, width, height = cv2.boundingRect(truth.view(np.uint8))
    near = np.zeros_like(truth)
    near[max(0, y - height // 4) : y + height + height // 4, max(0, x - width // 4) : x + width + width // 4] = True
    outside = near & ~truth & ~mask
    if outside.any():
        clicks.append(_deepest(outside, False))
    return clicks


def _around(probability: Probability, state: InstanceState, click: Click) -> float:
    """Mean probability in the square around a click; the nearest pixels when it left the crop."""
    assert state.prediction is not None
    clicked = clicked_pixel(click, state.prediction.roi, (probability.shape[0], probability.shape[1]))
    return float(probability[square_around(clicked)].mean())


def _deepest(region: NDArray[np.bool_], is_positive: bool) -> Click:
    depth = cv2.distanceTransform(np.pad(region.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = divmod(int(depth.argmax()), region.shape[1])
    return Click(x=float(column), y=float(row), is_positive=is_positive)
