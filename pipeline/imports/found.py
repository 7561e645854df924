"""What readers give: masks with their image and category, and what could not be taken."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from schemas.campaigns import ImageRecord
from schemas.masks import Rle


@dataclass(frozen=True)
class Found:
    """A mask.

    Attributes:
        image: The campaign's image that it belongs to.
        category: Name of its category; None: it has none.
        key: Tells it from the source's others, the same in every run.
        rle: Of the image's size.
        score: What whoever predicted it thinks of it, in [0, 1]; None: nothing.
        unsure: Whether somebody flagged it.
    """

    image: ImageRecord
    category: str | None
    key: str
    rle: Rle
    score: float | None = None
    unsure: bool = False


@dataclass(frozen=True)
class Dropped:
    """Something that was left out.

    Attributes:
        reason: A short phrase, to be counted.
        where: Which entry of the source.
    """

    reason: str
    where: str


Item: TypeAlias = Found | Dropped
"""What a reader yields."""
Items: TypeAlias = Iterator[Item]
"""The same, as a stream."""
EMPTY = "the mask is empty"
NO_OBJECT = "no object is on the image: to count as verified to be empty, it is submitted without one on the page"
"""Who made the source may have searched the image, or not have come to it yet: no format says which."""
