"""The click that a careful annotator would place next, and random clicks for training. Knows nothing about models.

Sofiiuk et al., "Reviving Iterative Training with Mask Guidance for Interactive Segmentation", sec. 3.3 and 4; constants
from the official code of SimpleClick (uncbiag/SimpleClick f33112e). Deterministic for a given random generator.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from schemas.clicks import Click

PREDICTION_THRESHOLD = 0.49
"""Probability above which the papers' robot user takes a pixel as predicted."""
MAX_POINTS = 24
"""Clicks per sign that training gives the network at most."""
_PROB_GAMMA = 0.8
_STRATEGIES = ("background", "other", "border")
_STRATEGY_SHARES = (0.1, 0.4, 0.5)
_KERNEL = np.ones((3, 3), np.uint8)


def error_masks(
    gt: NDArray[np.int8] | NDArray[np.bool_], prediction: NDArray[np.bool_] | NDArray[np.float32]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Missed and spilled pixels.

    Args:
        gt: (H, W): 1 or True is the object, 0 background, -1 doesn't count.
        prediction: (H, W): a bool mask, or a probability, which is cut at 0.49.

    Returns:
        False negatives and false positives, bool (H, W).
    """
    predicted: NDArray[np.bool_] = (
        prediction.astype(np.bool_, copy=False) if prediction.dtype == np.bool_ else prediction > PREDICTION_THRESHOLD
    )
    return (gt == 1) & ~predicted, (gt == 0) & predicted


def next_click(
    gt: NDArray[np.int8] | NDArray[np.bool_],
    prediction: NDArray[np.bool_] | NDArray[np.float32],
    clicked: NDArray[np.bool_] | None = None,
) -> Click | None:
    """Place the click of the papers' robot user: the centre of the largest error.

    The centre is the pixel farthest from the border of the missed or spilled regions (Euclidean; the image border
    counts as one). Ties between missed and spilled go to spilled, ties within to the smallest row, then column.

    Args:
        gt: (H, W): 1 or True is the object, 0 background, -1 doesn't count.
        prediction: (H, W): the current mask, or a probability, which is cut at 0.49.
        clicked: bool (H, W), True where a click was placed already; such pixels are not clicked again.

    Returns:
        A positive click in a missed region or a negative one in a spilled one, at whole pixels; None when no wrong
        pixel is left (the official code then clicks at (0, 0)).
    """
    missed, spilled = (_depth(mask, cv2.DIST_MASK_PRECISE) for mask in error_masks(gt, prediction))
    if clicked is not None:
        missed[clicked] = 0
        spilled[clicked] = 0
    is_positive = bool(missed.max() > spilled.max())
    depth = missed if is_positive else spilled
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    if depth[row, column] <= 0:
        return None
    return Click(x=float(column), y=float(row), is_positive=is_positive)


def next_training_click(
    gt: NDArray[np.int8] | NDArray[np.bool_],
    prediction: NDArray[np.bool_] | NDArray[np.float32],
    rng: np.random.Generator,
) -> Click | None:
    """Place a training click: a uniformly drawn pixel of the inner half of the deepest error.

    Args:
        gt: As in `next_click`.
        prediction: As in `next_click`.
        rng: Draws the pixel.

    Returns:
        The click, or None when there is no error.
    """
    missed, spilled = (_depth(mask, cv2.DIST_MASK_5) for mask in error_masks(gt, prediction))
    is_positive = bool(missed.max() > spilled.max())
    depth = missed if is_positive else spilled
    inner = np.flatnonzero(depth > max(float(depth.max()) / 2, 0.0))
    if inner.size == 0:
        return None
    return _click_at(int(rng.choice(inner)), gt.shape[1], is_positive)


def add_training_click(clicks: Sequence[Click], click: Click, iteration: int) -> list[Click]:
    """Add an iterative training click, overwriting as the official points tensor does.

    Args:
        clicks: So far.
        click: The new one.
        iteration: 1, 2, 3, ...; it takes slot `MAX_POINTS - iteration` of its sign, or the next free one before it.
    """
    same_sign = [index for index, own in enumerate(clicks) if own.is_positive == click.is_positive]
    slot = MAX_POINTS - iteration
    dropped = same_sign[slot] if len(same_sign) > slot else None
    return [own for index, own in enumerate(clicks) if index != dropped] + [click]


def sample_training_clicks(
    parts: Sequence[NDArray[np.bool_]], others: NDArray[np.bool_] | None, rng: np.random.Generator
) -> list[Click]:
    """Draw the clicks that a training sample starts with.

    1 + k positives and k' negatives, k and k' geometric with ratio 0.8 and at most 24 of each sign. With several parts
    (merged objects) each gets a positive, the rest come from the union. Positives lie in the eroded mask in 9 of 10
    cases; a negative lies on the background (0.1), on another object (0.4) or in the border around the mask (0.5).

    Args:
        parts: bool (H, W) masks whose union is the target, at least one; empty ones give negatives only.
        others: bool (H, W), pixels of other objects of the image, or None.
        rng: Draws everything.

    Returns:
        Positives, then negatives, at whole pixels.
    """
    union = np.logical_or.reduce(list(parts))
    width = union.shape[1]
    shown = [part for part in parts if part.any()]
    positives: list[Click] = []
    if shown:
        first = (
            [] if len(shown) == 1 else [_click_at(int(rng.choice(_inner(part, rng))), width, True) for part in shown]
        )
        count = max(1 + _geometric(MAX_POINTS, rng), len(first))
        inner = _inner(union, rng)
        positives = [*first, *(_click_at(int(index), width, True) for index in rng.choice(inner, count - len(first)))]
    pools = _negative_pools(union, others)
    names = rng.choice(_STRATEGIES, size=_geometric(MAX_POINTS + 1, rng), p=_STRATEGY_SHARES)
    return positives + [_click_at(int(rng.choice(pools[name])), width, False) for name in names if pools[name].size]


def _depth(mask: NDArray[np.bool_], mask_size: int) -> NDArray[np.float32]:
    """Euclidean distance of each pixel inside to the nearest one outside; beyond the image is outside.

    OpenCV's vectorised square root is an ulp off where its scalar one is exact, and which pixels get which depends on
    the address of the result. Equal depths would then be told apart by chance, so the address is fixed: 16 bytes past
    a multiple of 64, which is what large arrays have anyway and what the official clicks were made with. With more
    than one core OpenCV takes the exact root from about 150 x 150 pixels on, so that figures made on one core differ by
    an object now and then from those made on several.
    """
    padded = np.pad(mask.astype(np.uint8), 1)
    buffer = np.empty(padded.size * 4 + 128, np.uint8)
    start = (16 - buffer.ctypes.data) % 64
    depth = buffer[start : start + padded.size * 4].view(np.float32).reshape(padded.shape)
    cv2.distanceTransform(padded, cv2.DIST_L2, mask_size, dst=depth)
    return depth[1:-1, 1:-1]


def _geometric(limit: int, rng: np.random.Generator) -> int:
    """k in 0..limit-1 with probability proportional to 0.8^k."""
    shares = _PROB_GAMMA ** np.arange(limit)
    return int(rng.choice(limit, p=shares / shares.sum()))


def _inner(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.intp]:
    """Pixels that a positive click may hit: mostly those of the mask eroded three times, if more than 10 are left."""
    if rng.random() < 0.9:
        eroded = np.flatnonzero(cv2.erode(mask.astype(np.uint8), _KERNEL, iterations=3))
        if eroded.size > 10:
            return eroded
    return np.flatnonzero(mask)


def _negative_pools(mask: NDArray[np.bool_], others: NDArray[np.bool_] | None) -> dict[str, NDArray[np.intp]]:
    background = np.flatnonzero(~mask)
    other = np.flatnonzero(others & ~mask) if others is not None else background[:0]
    border = background[:0]
    if mask.any():
        reach = int(np.ceil(0.1 * np.sqrt(mask.sum())))
        border = np.flatnonzero((cv2.dilate(mask.astype(np.uint8), _KERNEL, iterations=reach) > 0) & ~mask)
    return {"background": background, "other": other if other.size else background, "border": border}


def _click_at(index: int, width: int, is_positive: bool) -> Click:
    return Click(x=float(index % width), y=float(index // width), is_positive=is_positive)
