"""Training clicks for batches of crops: a first click inside the object, then clicks into the model's errors.

Works on crop-sized arrays; rows are (y, x, sign) as `models.layers.guidance` wants them.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

Row = tuple[float, float, float]


def inner_point(
    rng: np.random.Generator, region: NDArray[np.bool_], centre_share: float = 0.5
) -> tuple[int, int] | None:
    """(row, col) deep in a region: its centre, or a place at least half as far from the border. None if empty."""
    padded = cv2.copyMakeBorder(region.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
    deepest = float(depth.max())
    if deepest <= 0:
        return None
    if rng.random() < centre_share:
        row, col = divmod(int(depth.argmax()), depth.shape[1])
        return row, col
    rows, cols = np.nonzero(depth > deepest / 2)
    pick = int(rng.integers(len(rows)))
    return int(rows[pick]), int(cols[pick])


def later_click(
    rng: np.random.Generator, target: NDArray[np.int8], mask: NDArray[np.bool_], confirming_share: float = 0.1
) -> Row | None:
    """A click into an error, or one that confirms what is right already; None where there is nothing to click.

    Without the latter a network learns that whatever was clicked was wrong.
    """
    if rng.random() < confirming_share:
        agreed = [((target == 1) & mask, 1.0), ((target == 0) & ~mask, 0.0)]
        region, sign = agreed[int(rng.random() < 0.5)]
        point = inner_point(rng, region)
        if point is not None:
            return float(point[0]), float(point[1]), sign
    return error_click(rng, target, mask)


def error_click(
    rng: np.random.Generator, target: NDArray[np.int8], mask: NDArray[np.bool_], false_share: float = 0.03
) -> Row | None:
    """A click into the deeper of missed and spilt regions, of the wrong sign in a few cases; None without error.

    Source: MODELS 1.11 (RITM's iterative training): the region whose largest distance to its border is larger.
    """
    best: tuple[float, tuple[int, int], float] | None = None
    for region, sign in (((target == 1) & ~mask, 1.0), ((target == 0) & mask, 0.0)):
        if region.any():
            padded = cv2.copyMakeBorder(region.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
            depth = float(cv2.distanceTransform(padded, cv2.DIST_L2, 3).max())
            if best is None or depth > best[0]:
                point = inner_point(rng, region)
                if point is not None:
                    best = (depth, point, sign)
    if best is None:
        return None
    sign = best[2] if rng.random() >= false_share else 1.0 - best[2]
    return float(best[1][0]), float(best[1][1]), sign


def opening_clicks(rng: np.random.Generator, target: NDArray[np.int8], previous: NDArray[np.float32]) -> list[Row]:
    """Clicks that lead up to the first forward pass.

    One positive click for an empty previous mask (a negative one where the crop holds no object); for a spoilt one some
    that may have been made before, then one as `later_click` draws it. 5 % of the clicks are repeated.
    """
    inside, outside = target == 1, target == 0
    rows: list[Row] = []
    if not previous.any():
        point = inner_point(rng, inside)
        if point is not None:
            rows.append((*map(float, point), 1.0))  # type: ignore[arg-type]
        else:
            rows.append((*map(float, inner_point(rng, outside) or (0, 0)), 0.0))  # type: ignore[arg-type]
    else:
        count = int(rng.integers(1, 4)) if rng.random() < 0.9 else int(rng.integers(4, 9))
        agreed = ((inside & (previous > 0.5)), (outside & (previous <= 0.5)))
        for index in range(count):
            negative = index > 0 and rng.random() < 0.5
            ys, xs = np.nonzero(agreed[int(negative)])
            if len(ys):
                pick = int(rng.integers(len(ys)))
                rows.append((float(ys[pick]), float(xs[pick]), 0.0 if negative else 1.0))
        current = later_click(rng, target, previous > 0.5)
        if current is not None:
            rows.append(current)
        if not rows:
            return opening_clicks(rng, target, np.zeros_like(previous))
    if rng.random() < 0.05:
        rows.append(rows[int(rng.integers(len(rows)))])
    return rows


def rows_to_array(items: list[list[Row]]) -> NDArray[np.float32]:
    """(R, N, 3), padded in front with -1 so that the current click is the last row."""
    length = max(1, *(len(rows) for rows in items))
    out = np.full((len(items), length, 3), -1, np.float32)
    for index, rows in enumerate(items):
        if rows:
            out[index, length - len(rows) :] = rows
    return out
