"""What readers give: masks with their image and category, and what could not be taken."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
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
    """

    image: ImageRecord
    category: str | None
    key: str
    rle: Rle


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
NO_IMAGE = "the campaign has no image of its name, or several"
EMPTY = "the mask is empty"


class Names:
    """Finds a campaign's images by the names that other tools use.

    Args:
        images: Of the campaign.
    """

    def __init__(self, images: Iterable[ImageRecord]) -> None:
        self._exact: dict[str, ImageRecord] = {}
        self._loose: dict[str, ImageRecord | None] = {}
        for image in images:
            self._exact[image.file_name] = image
            path = PurePosixPath(image.file_name)
            for name in {path.name, path.stem, str(path.with_suffix(""))}:
                self._loose[name] = None if name in self._loose else image

    def find(self, name: str) -> ImageRecord | None:
        """The image of this path; else the only one of its file name, with the extension or without; or None."""
        if name in self._exact:
            return self._exact[name]
        path = PurePosixPath(name.replace("\\", "/"))  # written on Windows
        return next((image for key in (path.name, path.stem) if (image := self._loose.get(key))), None)
