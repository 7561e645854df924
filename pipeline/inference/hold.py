"""What a click must not change.

One that says what the mask says already must not turn it over. Networks that learned from clicks into errors alone take
every click for an error: a negative click on background, or a positive one inside the object, may flip what lies around
it. Whoever clicks so wants to keep it. Ours, no paper's.

And where a mask is nearly done, a click means the place where it is: what the network changes elsewhere makes as much
wrong as right by then. After the Progressive Merge of Chen et al., "FocalClick", CVPR 2022.
"""

# K candidates, h/w crop px

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.inference.sampling import Probability
from pipeline.inference.step import CropPrediction
from pipeline.inference.zoom import MASK_THRESHOLD, Roi, click_to_crop
from schemas.clicks import Click

RADIUS = 2
"""Half side in crop pixels of the square around a click: what touches it is at the click."""
SETTLED_CLICKS = 6
"""From this click on, a mask changes at the click alone."""


def hold_confirmed(prediction: CropPrediction, previous: Probability, click: Click) -> CropPrediction:
    """A prediction without what it turned over around a click that confirmed it.

    Where the clicked pixel was on the click's side before, each connected region that has left that side since and
    reaches the click keeps its previous probability; all else is as predicted.

    Args:
        prediction: After the click.
        previous: (h, w) probability before it, in the prediction's ROI.
        click: The last one, in image pixels.
    """
    clicked = clicked_pixel(click, prediction.roi, (previous.shape[0], previous.shape[1]))
    if (previous[clicked] > MASK_THRESHOLD) != click.is_positive:
        return prediction
    around = square_around(clicked)

    def left(new: Probability, old: Probability) -> NDArray[np.bool_]:
        """Which pixels have left the click's side."""
        found: NDArray[np.bool_] = ((old > MASK_THRESHOLD) == click.is_positive) & (
            (new > MASK_THRESHOLD) != click.is_positive
        )
        return found

    held = None
    for index, predicted in enumerate(prediction.probabilities):
        if not left(predicted[around], previous[around]).any():
            continue
        held = prediction.probabilities.copy() if held is None else held
        reached = _reaching(left(predicted, previous), around)
        held[index][reached] = previous[reached]
    if held is None:
        return prediction
    held.setflags(write=False)
    return replace(prediction, probabilities=held)


def hold_distant(prediction: CropPrediction, previous: Probability, click: Click) -> CropPrediction:
    """A prediction whose mask changes at the click alone: each connected region that changed sides and does not reach
    the click keeps its previous probability.

    Only of candidate 0, which goes on with the previous mask; the others are there to differ.

    Args:
        prediction: After the click.
        previous: (h, w) probability before it, in the prediction's ROI.
        click: The last one, in image pixels.
    """
    changed = (prediction.candidate(0) > MASK_THRESHOLD) != (previous > MASK_THRESHOLD)
    clicked = clicked_pixel(click, prediction.roi, (previous.shape[0], previous.shape[1]))
    distant = changed & ~_reaching(changed, square_around(clicked))
    if not distant.any():
        return prediction
    held = prediction.probabilities.copy()
    held[0][distant] = previous[distant]
    held.setflags(write=False)
    return replace(prediction, probabilities=held)


def clicked_pixel(click: Click, roi: Roi, size: tuple[int, int]) -> tuple[int, int]:
    """(row, column) of a click in the crop of a ROI of this (h, w); the nearest pixel when it lies outside."""
    at, (height, width) = click_to_crop(click, roi, size), size
    return min(max(int(at.y), 0), height - 1), min(max(int(at.x), 0), width - 1)


def square_around(pixel: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the square that is looked at around a (row, column) of the crop."""
    row, column = pixel
    return slice(max(0, row - RADIUS), row + RADIUS + 1), slice(max(0, column - RADIUS), column + RADIUS + 1)


def _reaching(pixels: NDArray[np.bool_], around: tuple[slice, slice]) -> NDArray[np.bool_]:
    """Those of the pixels, (h, w), whose connected region has one in the square."""
    count, regions = cv2.connectedComponents(pixels.view(np.uint8), connectivity=8)
    reaches = np.zeros(count, np.bool_)
    reaches[regions[around]] = True
    reaches[0] = False
    found: NDArray[np.bool_] = reaches[regions]
    return found
