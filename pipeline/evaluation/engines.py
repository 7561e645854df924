"""Time engines and hold their masks against those of float32, click by click. Knows nothing about files.

All engines get the same clicks, those that the robot user makes at float32's masks; each refines its own masks, so that
small differences grow as they would for an annotator.
"""

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.clicks.simulate import next_click
from pipeline.evaluation.metrics import iou
from pipeline.inference.step import CropPrediction, encode_image, predict, sampling_of, zoom_and_carry
from pipeline.inference.zoom import MASK_THRESHOLD
from pipeline.models._base import Encoding, InteractiveModel
from schemas.clicks import Click
from schemas.engines import DEFAULT_ENGINE, EngineFigures, EngineName
from schemas.errors import BadInputError

CLICKS = 5
"""Per object."""


class Bar(NamedTuple):
    """What an engine's IoUs with float32 must reach."""

    mean: float
    p5: float


PHOTOGRAPHS = Bar(0.99, 0.95)
DRAWN = Bar(0.999, 0.999)
"""Drawn scenes have clear edges and forgive what photographs do not: there, only the same masks will do."""
MIN_GAIN = 0.05
"""An engine that is not faster than the default by this share is not worth its differences."""

Target = tuple[NDArray[np.uint8], NDArray[np.bool_]]
"""An image (HWC uint8 RGB) and an object on it (bool, H x W)."""


def compare_engines(
    models: Mapping[EngineName, InteractiveModel], targets: Iterable[Target], bar: Bar, clicks: int = CLICKS
) -> tuple[list[EngineFigures], int]:
    """Click the targets with every engine, in turn, so that all see the same load.

    Args:
        models: The same weights by engine, the default among them.
        targets: At least one.
        bar: For these targets.
        clicks: Per target; fewer where float32 leaves no wrong pixel.

    Returns:
        The engines' figures, and how many masks each was compared on.

    Raises:
        BadInputError: There is nothing to click.
    """
    seconds: dict[EngineName, list[float]] = {engine: [] for engine in models}
    ious: dict[EngineName, list[float]] = {engine: [] for engine in models}
    is_warm = False
    for image, truth in targets:
        encoding = encode_image(models[DEFAULT_ENGINE], image)
        before: dict[EngineName, CropPrediction] = {}
        masks = {engine: np.zeros(truth.shape, np.bool_) for engine in models}
        made: list[Click] = []
        for index in range(clicks):
            click = next_click(truth, masks[DEFAULT_ENGINE])
            if click is None:
                break
            made.append(click)
            if not is_warm:
                for model in models.values():
                    _step(model, image, encoding, made, None)
                is_warm = True
            for engine in _rotated(list(models), index):
                began = time.perf_counter()
                step = _step(models[engine], image, encoding, made, before.get(engine))
                seconds[engine].append(time.perf_counter() - began)
                size = (truth.shape[0], truth.shape[1])
                pasted = sampling_of(models[engine]).paste(step.candidate(0), step.roi, size)
                before[engine], masks[engine] = step, pasted > MASK_THRESHOLD
            for engine in models:
                ious[engine].append(iou(masks[DEFAULT_ENGINE], masks[engine]))
    compared = len(ious[DEFAULT_ENGINE])
    if not compared:
        raise BadInputError("There is no object to click.")
    return [_figures(engine, seconds[engine], ious[engine], bar) for engine in models], compared


def fastest(figures: Sequence[EngineFigures]) -> EngineName:
    """The fastest engine that agrees, as long as it is worth it; else the default."""
    by_name = {own.engine: own for own in figures}
    best = min((own for own in figures if own.agrees), key=lambda own: own.step_ms)
    is_worth_it = best.step_ms <= (1 - MIN_GAIN) * by_name[DEFAULT_ENGINE].step_ms
    return best.engine if is_worth_it else DEFAULT_ENGINE


def _step(
    model: InteractiveModel,
    image: NDArray[np.uint8],
    encoding: Encoding | None,
    clicks: Sequence[Click],
    before: CropPrediction | None,
) -> CropPrediction:
    roi, previous = zoom_and_carry(model, (image.shape[0], image.shape[1]), before, 0, None, clicks)
    return predict(model, image, encoding, clicks, roi, previous, before=before)


def _rotated(engines: list[EngineName], by: int) -> list[EngineName]:
    """Another one is first each time: who follows a slow one finds other caches."""
    by %= len(engines)
    return engines[by:] + engines[:by]


def _figures(engine: EngineName, seconds: Sequence[float], ious: Sequence[float], bar: Bar) -> EngineFigures:
    mean, low = statistics.fmean(ious), float(np.percentile(ious, 5))
    return EngineFigures(
        engine=engine,
        step_ms=round(1000 * statistics.median(seconds), 2),
        agreement=round(mean, 4),
        agreement_p5=round(low, 4),
        agrees=mean >= bar.mean and low >= bar.p5,
    )
