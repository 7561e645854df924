"""The papers' robot user: clicks the centre of the largest error until the target is reached. One object at a time."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.clicks.misleading import Missteps, mislead
from pipeline.clicks.simulate import PREDICTION_THRESHOLD, next_click
from pipeline.evaluation.metrics import MAX_CLICKS, Truth, boundary_iou_of_bands, iou
from pipeline.inference.predictor import Predictor
from pipeline.masks.boundaries import boundary_band, boundary_width
from schemas.clicks import Click

BOUNDARY_DILATION_RATIO = 0.02


@dataclass(frozen=True)
class Curve:
    """What the robot got for one object.

    Attributes:
        ious: After click 1, 2, ....
        bious: Boundary IoUs likewise.
        scores: IoUs that the model states, in [0, 1], likewise.
        spoilt: Pixels that were right before a click and wrong after it, as a share of the object, likewise.
        clicks: In image pixels.
        seconds: Wall time, encoding (where it was needed) and click simulation included, metrics not.
        probability: (H, W) float32, the last prediction.
    """

    ious: tuple[float, ...]
    bious: tuple[float, ...]
    scores: tuple[float, ...]
    spoilt: tuple[float, ...]
    clicks: tuple[Click, ...]
    seconds: float
    probability: NDArray[np.float32]


def evaluate_sample(
    predictor: Predictor,
    image: NDArray[np.uint8],
    gt: Truth,
    target: float,
    max_clicks: int = MAX_CLICKS,
    threshold: float = PREDICTION_THRESHOLD,
    missteps: Missteps | None = None,
    sample_id: str = "",
    seed: int = 0,
) -> Curve:
    """Click one object until IoU >= target, at most `max_clicks` times.

    Args:
        predictor: Of the model; the image is set here, unless it is the one it has (several objects of one image).
        image: HWC uint8 RGB.
        gt: (H, W): 1 or True is the object, 0 background, -1 doesn't count.
        target: IoU to stop at; above 1 clicks on to the cap.
        max_clicks: The cap.
        threshold: Probability above which a pixel is in the mask.
        missteps: Clicks that mislead (see `pipeline.clicks.misleading`); None: none do.
        sample_id: With the seed it places repeated clicks.
        seed: See above.

    Returns:
        The curve; shorter than the cap when the target was reached or no wrong pixel is left to click.

    Source: Sofiiuk et al., RITM, sec. 5.1, with the rules of the official code.
    """
    width = boundary_width((gt.shape[0], gt.shape[1]), BOUNDARY_DILATION_RATIO)
    truth, counted = gt == 1, gt != -1
    area = max(1.0, float(truth.sum()))
    gt_band = boundary_band(truth, width)
    clicked = np.zeros(gt.shape, np.bool_)
    probability = np.zeros(gt.shape, np.float32)
    mask = np.zeros(gt.shape, np.bool_)
    ious: list[float] = []
    bious: list[float] = []
    scores: list[float] = []
    spoilt: list[float] = []
    began = time.perf_counter()
    if predictor.image is image:
        predictor.reset()
    else:
        predictor.set_image(image)
    seconds = time.perf_counter() - began
    for index in range(max_clicks):
        began = time.perf_counter()
        click = next_click(gt, mask, clicked)
        if click is None:
            break
        if missteps and index in missteps:
            click = mislead(click, missteps[index], mask, sample_id, index, seed)
        clicked[int(click.y), int(click.x)] = True
        probability = predictor.click(click)
        before, mask = mask, probability > threshold
        seconds += time.perf_counter() - began
        ious.append(iou(gt, mask))
        bious.append(boundary_iou_of_bands(gt, gt_band, mask, width))
        scores.append(predictor.scores[0])
        made_wrong = (before == truth) & (mask != truth) & counted
        spoilt.append(float(made_wrong.sum()) / area)
        if ious[-1] >= target:
            break
    return Curve(tuple(ious), tuple(bious), tuple(scores), tuple(spoilt), predictor.clicks, seconds, probability)
