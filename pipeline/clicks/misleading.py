"""Clicks of an annotator who sometimes errs: repeated clicks and clicks of the wrong sign, drawn before the first one.

Source: Zeng et al., "Feature Decoupling-Recycling Network", ACM MM 2023, section 4.2 ("Robustness evaluation on
misleading user guidance", Table 3): 5 of 20 clicks are misleading, the same places in the sequence for every model.
"""

import zlib
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from schemas.clicks import Click

Misstep = Literal["repeat", "false"]


def draw_missteps(sample_id: str, seed: int, count: int = 5, max_clicks: int = 20) -> dict[int, Misstep]:
    """Which clicks of a sequence mislead, and how.

    Args:
        sample_id: With the seed it decides everything, so that every model meets the same sequence.
        seed: Of the evaluation.
        count: Misleading clicks.
        max_clicks: Length of the sequence.

    Returns:
        Index of the click, from 0, to its kind. The first click is never misleading: there is nothing to repeat yet,
        and a sequence that opens on the background has no object.
    """
    rng = np.random.default_rng((seed, zlib.crc32(sample_id.encode())))
    places = rng.choice(np.arange(1, max_clicks), min(count, max_clicks - 1), replace=False)
    return {int(place): "repeat" if rng.random() < 0.5 else "false" for place in sorted(places)}


def mislead(click: Click, misstep: Misstep, mask: NDArray[np.bool_], sample_id: str, index: int, seed: int) -> Click:
    """The click that is made instead of a right one.

    Args:
        click: The right one.
        misstep: "false": the same place with the other sign; "repeat": a positive click anywhere inside the mask that
            is there already (the right click while there is none).
        mask: bool (H, W), the last prediction.
        sample_id: See `draw_missteps`.
        index: Of the click.
        seed: Of the evaluation.
    """
    if misstep == "false":
        return Click(x=click.x, y=click.y, is_positive=not click.is_positive)
    inside = np.flatnonzero(mask)
    if inside.size == 0:
        return click
    rng = np.random.default_rng((seed, zlib.crc32(sample_id.encode()), index))
    row, column = divmod(int(rng.choice(inside)), mask.shape[1])
    return Click(x=float(column), y=float(row), is_positive=True)


Missteps = Mapping[int, Misstep]
