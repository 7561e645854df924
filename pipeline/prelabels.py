"""Masks that a model finds by itself: one positive click at each point of a grid, the poor and the doubled left out.

Pure: works on a model, an image and its encoding. A click here gives the mask that it would give as the first click of
a person. Knows nothing about campaigns; what becomes of the masks is `pipeline.storage.prelabels`'s business.
"""

# N points per side, h/w crop px, H/W image px

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.inference.instance import InstanceState, final_mask
from pipeline.inference.preprocess import check_image
from pipeline.inference.step import CropPrediction, predict, zoom_and_carry
from pipeline.inference.zoom import MASK_THRESHOLD
from pipeline.masks.boxes import mask_box_xywh
from pipeline.masks.digest import mask_digest
from pipeline.masks.rle import mask_to_rle
from pipeline.models._base import Encoding, InteractiveModel
from schemas.clicks import Click
from schemas.errors import BadInputError
from schemas.predictions import Prelabel, Prelabels
from schemas.requests import MAX_GRID

PASS_VERSION = 1
"""Of what `find_prelabels` computes: another version is another pass, which nothing that is stored stands for."""
SAME_IOU = 0.7
"""Masks that agree so well are one."""
LEVELS = (0.4, 0.6)
"""Stability is the IoU of the masks at these probabilities."""
MIN_STABILITY = 0.3
MIN_AREA_PX = 16
MAX_AREA = 0.9
"""A larger share of the image is the background, not an object."""
Turn = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, eq=False)
class _Candidate:
    click: Click
    prediction: CropPrediction
    index: int
    mask: NDArray[np.bool_]
    score: float
    stability: float


def grid_clicks(size: tuple[int, int], grid: int) -> list[Click]:
    """Positive clicks in the middle of grid x grid equal cells of an image (H, W), row by row.

    Raises:
        BadInputError: The grid is not from 1 to `MAX_GRID`.
    """
    if not 1 <= grid <= MAX_GRID:
        raise BadInputError(f"A grid of {grid} x {grid} clicks: choose 1 to {MAX_GRID} a side.")
    height, width = size
    middles = (np.arange(grid) + 0.5) / grid
    return [Click(x=float(width * x), y=float(height * y), is_positive=True) for y in middles for x in middles]


def find_prelabels(
    model: InteractiveModel,
    image: NDArray[np.uint8],
    encoding: Encoding | None,
    grid: int,
    *,
    sha256: str = "",
    turn: Turn = nullcontext,
) -> Prelabels:
    """Click a grid and keep what looks like objects.

    Every candidate mask of every click is taken, except: less than `MIN_AREA_PX` pixels, more than `MAX_AREA` of the
    image, or a stability below `MIN_STABILITY`. Of masks whose IoU is at least `SAME_IOU` the one with the best score
    stays (then the most stable, then the first). Both are measured on the crop, which shows the whole image.

    Args:
        model: In eval mode.
        image: HWC uint8 RGB.
        encoding: The image's encoding for cut "image", None for cut "crop".
        grid: Clicks per side; 0: none, only the feature.
        sha256: Of the image, passed on.
        turn: Held around every click.

    Returns:
        Masks by falling score. The uncertainty is 1 - the mean over the clicks of score times stability of the mask
        that a person would be shown: models that estimate no quality of their own (score 1) rank, too.
    """
    check_image(image)
    size = (image.shape[0], image.shape[1])
    found: list[_Candidate] = []
    quality: list[float] = []
    before: CropPrediction | None = None
    for click in grid_clicks(size, grid) if grid else []:
        with turn():
            roi, previous = zoom_and_carry(model, size, None, 0, None, (click,))
            before = predict(model, image, encoding, (click,), roi, previous, before=before)
        candidates = [_candidate(click, before, index) for index in range(len(before.scores))]
        quality.append(candidates[0].score * candidates[0].stability)
        found += [own for own in candidates if _is_plausible(own, size)]
    kept = _distinct(found)
    return Prelabels(
        sha256=sha256,
        masks=tuple(_prelabel(own, size) for own in kept),
        uncertainty=round(1.0 - float(np.mean(quality)), 6) if quality else 0.0,
        feature=() if encoding is None else mean_pooled(encoding),
    )


def mean_pooled(encoding: Encoding) -> tuple[float, ...]:
    """What an image is like as one vector: the mean over its places of each channel of each tensor, by name."""
    parts = []
    for _, tensor in sorted(encoding.tensors.items()):
        places = (2, 3) if tensor.ndim == 4 else (1,)  # (1, C, h, w) maps or (1, places, C) tokens
        parts.append(tensor[:1].float().mean(places).flatten())
    return tuple(round(float(value), 6) for value in torch.cat(parts))


def _candidate(click: Click, prediction: CropPrediction, index: int) -> _Candidate:
    probability = prediction.candidate(index)
    low, high = (int(np.count_nonzero(probability > level)) for level in LEVELS)
    mask = probability > MASK_THRESHOLD
    return _Candidate(click, prediction, index, mask, prediction.scores[index], high / low if low else 0.0)


def _is_plausible(own: _Candidate, size: tuple[int, int]) -> bool:
    area = float(np.count_nonzero(own.mask)) / own.mask.size
    return area * size[0] * size[1] >= MIN_AREA_PX and area <= MAX_AREA and own.stability >= MIN_STABILITY


def _distinct(found: list[_Candidate]) -> list[_Candidate]:
    kept: list[_Candidate] = []
    flat: list[NDArray[np.float32]] = []
    for own in sorted(found, key=lambda one: (-one.score, -one.stability)):
        mask = own.mask.ravel().astype(np.float32)
        both = np.array([other @ mask for other in flat])
        either = np.array([other.sum() for other in flat]) + mask.sum() - both
        if not (both >= SAME_IOU * either).any():
            kept.append(own)
            flat.append(mask)
    return kept


def _prelabel(own: _Candidate, size: tuple[int, int]) -> Prelabel:
    clicks = (own.click,)
    state = InstanceState(clicks=clicks, prompts=clicks, prediction=own.prediction, candidate=own.index)
    mask = final_mask(state, size)
    return Prelabel(
        rle=mask_to_rle(mask),
        mask_sha256=mask_digest(mask),
        area=int(np.count_nonzero(mask)),
        box_xywh=mask_box_xywh(mask),
        score=own.score,
        stability=round(own.stability, 6),
        click=(own.click.x, own.click.y),
    )
