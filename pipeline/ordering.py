"""In which order images are worth labeling: versioned scores of what a model said about them. Pure and deterministic.

Every order is a permutation of the images, the first to be labeled first; ties keep the images' own order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadInputError
from schemas.predictions import Prelabels
from schemas.requests import DEFAULT_MIN_SCORE, OrderBy

ORDER_VERSION = 1
"""Of all scores: another version may order the same images in another way."""
GRID = 3
"""Clicks per side of the cheap pass that uncertainty is taken from."""
MAX_CENTRES = 2000
"""Greedy steps of the diversity: beyond them, images follow by their distance to the nearest centre."""
SECONDS_PER_IMAGE = 5.0
"""Expected time to look at an image and submit it, whatever is on it. An assumption, not a measurement."""
SECONDS_PER_MASK = 15.0
"""Expected time for a mask while the campaign has none to take the mean of. An assumption, too."""


@dataclass(frozen=True)
class Look:
    """What a pass of the model said about an image.

    Attributes:
        uncertainty: In [0, 1].
        objects: Masks found.
        feature: Mean-pooled encoding, empty where there is none.
    """

    uncertainty: float
    objects: int
    feature: tuple[float, ...] = ()


def look_of(found: Prelabels) -> Look:
    """What a pass found, as orders take it: its masks count that would be proposed."""
    objects = sum(mask.score >= DEFAULT_MIN_SCORE for mask in found.masks)
    return Look(found.uncertainty, objects, found.feature)


def order_images(
    by: OrderBy,
    looks: Sequence[Look],
    *,
    labeled: Sequence[Look] = (),
    seed: int = 0,
    seconds_per_mask: float = SECONDS_PER_MASK,
) -> list[int]:
    """Indices of the images in the order in which to label them.

    - uncertainty: the least trusted first clicks first.
    - diversity: what is unlike everything labeled or ordered before (k-centre greedy).
    - gain: uncertainty per expected second (see `expected_gain`), largest first.
    - mixed: by the mean of the ranks in uncertainty and diversity.
    - plain: as they are.

    Args:
        by: The score.
        looks: Of the images, in their own order.
        labeled: Of images that are labeled already: what diversity keeps away from.
        seed: Draws diversity's first centre when nothing is labeled.
        seconds_per_mask: What a mask takes in this campaign.

    Raises:
        BadInputError: Diversity of images without features.
    """
    if by == "plain" or not looks:
        return list(range(len(looks)))
    uncertainty = np.array([look.uncertainty for look in looks])
    if by == "uncertainty":
        return by_falling(uncertainty)
    if by == "gain":
        objects = np.array([look.objects for look in looks])
        return by_falling(expected_gain(uncertainty, objects, seconds_per_mask))
    features = _standardised([look.feature for look in [*looks, *labeled]])
    diversity = k_centre_greedy(features[: len(looks)], features[len(looks) :], seed=seed)
    if by == "diversity":
        return diversity
    return by_falling(-(_ranks(by_falling(uncertainty)) + _ranks(diversity)) / 2)


def expected_gain(
    uncertainty: NDArray[np.float64], objects: NDArray[np.int64], seconds_per_mask: float
) -> NDArray[np.float64]:
    """Uncertainty per expected annotator second: u x n / (`SECONDS_PER_IMAGE` + n x seconds per mask).

    n is the number of masks that the pass found, at least 1: what an annotator will have to do is not known before. The
    uncertainty of an image counts once for each of them.
    """
    expected = np.maximum(objects, 1)
    gain: NDArray[np.float64] = uncertainty * expected / (SECONDS_PER_IMAGE + expected * seconds_per_mask)
    return gain


def k_centre_greedy(
    points: NDArray[np.float64],
    centres: NDArray[np.float64],
    *,
    seed: int = 0,
    max_centres: int = MAX_CENTRES,
) -> list[int]:
    """Indices of the points, each the one farthest from all centres and points before it (Gonzalez 1985).

    Costs n x (centres + `max_centres`) distances; after `max_centres` points the others follow by falling distance.

    Args:
        points: (n, d), n at least 1.
        centres: (m, d), chosen already.
        seed: Draws the first point when there is no centre.
        max_centres: See above, at least 1.
    """
    nearest = np.full(len(points), np.inf)
    for centre in centres:
        np.minimum(nearest, _distances(points, centre), out=nearest)
    chosen: list[int] = []
    while len(chosen) < min(len(points), max_centres):
        first = not chosen and not len(centres)
        index = int(np.random.default_rng(seed).integers(len(points))) if first else int(nearest.argmax())
        chosen.append(index)
        np.minimum(nearest, _distances(points, points[index]), out=nearest)
        nearest[chosen] = -1.0
    others = np.setdiff1d(np.arange(len(points)), chosen)
    return chosen + [int(others[i]) for i in by_falling(nearest[others])]


def by_falling(scores: NDArray[np.float64]) -> list[int]:
    """Indices by falling score; ties by index."""
    return [int(index) for index in np.argsort(-scores, kind="stable")]


def _ranks(order: Sequence[int]) -> NDArray[np.float64]:
    ranks = np.empty(len(order))
    ranks[list(order)] = np.arange(len(order))
    return ranks


def _distances(points: NDArray[np.float64], centre: NDArray[np.float64]) -> NDArray[np.float64]:
    distances: NDArray[np.float64] = np.square(points - centre).sum(1)
    return distances


def _standardised(features: Sequence[tuple[float, ...]]) -> NDArray[np.float64]:
    """(n, d): each dimension with mean 0 and deviation 1, so that large channels do not decide alone."""
    if len({len(feature) for feature in features}) != 1 or not features[0]:
        raise BadInputError("Diversity needs encodings of whole images. Order by uncertainty or gain instead.")
    values = np.array(features)
    deviation = values.std(0)
    centred: NDArray[np.float64] = (values - values.mean(0)) / np.where(deviation > 0, deviation, 1.0)
    return centred
