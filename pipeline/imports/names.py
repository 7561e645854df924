"""Which of a campaign's images the paths of another tool mean.

A path fits an image of its file name, with the ending or without, unless a folder that both state differs: a mask on
the wrong image is worse than one that is left out.
"""

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeVar

from schemas.campaigns import ImageRecord

NO_IMAGE = "the campaign has no image of its name and folders, or several"
CONTESTED = "other paths of the source fit the image as well or better: import one folder of it at a time"

_Key = TypeVar("_Key", bound=Hashable)

_HOLDERS = re.compile(
    "images?|imgs?|jpegimages|photos|pictures|labels?|masks?|annotations|segmentation(class|object)|data|default"
    "|obj_train_data|/|.*:",
    re.IGNORECASE,
)
"""Folders that say what they hold, not whose it is, roots and drives: one side has them, the other has not."""
_PART = re.compile(r"(train|val|test)(?:ing|id|idation)?(\d*)", re.IGNORECASE)
"""Likewise a part of a data set, but two of them differ."""
_UPLOADED = re.compile("[0-9a-f]{8}-(.+)")
"""What Label Studio calls a file that was uploaded, whatever folder it came from, also in its COCO and YOLO exports."""


class _Folders(NamedTuple):
    """What the folders of a path state, innermost first: names, and parts of a data set."""

    names: tuple[str, ...]
    parts: tuple[str, ...]

    def shared(self, other: "_Folders") -> int:
        """How many folders are the same, from the innermost on."""
        return _common(self.names, other.names) + _common(self.parts, other.parts)

    def agrees(self, other: "_Folders") -> bool:
        """Whether they are the same as far as both are stated."""
        least = min(len(self.names), len(other.names)) + min(len(self.parts), len(other.parts))
        return self.shared(other) == least


class _Place(NamedTuple):
    """Where an image is.

    Attributes:
        image: The image.
        path: Its file name.
        folders: That file name's.
        located: Its URI's.
    """

    image: ImageRecord
    path: PurePosixPath
    folders: _Folders
    located: _Folders


class _Fit(NamedTuple):
    """An image that a path fits.

    Attributes:
        image: The image.
        rank: How well, to be compared.
        shared: How many of the path's folders the image's URI has.
        is_whole: That is all that the path states.
    """

    image: ImageRecord
    rank: tuple[int, ...]
    shared: int = 0
    is_whole: bool = True


class Names:
    """Finds a campaign's images by the names that other tools use.

    Args:
        images: Of the campaign, by number.
    """

    def __init__(self, images: Iterable[ImageRecord]) -> None:
        self._numbered: dict[int, ImageRecord] = {}
        self._sure: dict[str, ImageRecord] = {}
        """By sha256 and URI."""
        self._places: dict[str, list[_Place]] = defaultdict(list)
        """By file name without ending, each list in the order of the folders' names."""
        self._depth = 0
        """How many folders' names an image has at most."""
        newest: dict[str, ImageRecord] = {}
        for image in images:
            self._numbered[image.number] = image
            self._sure[image.sha256] = image
            newest[image.uri] = image  # a file that changed is another image, and the one that is there now
        self._sure |= newest
        for image in newest.values():
            path = _path(image.file_name)
            place = _Place(image, path, _folders(path.parent), _folders(PurePosixPath(_folder_of(image))))
            self._places[path.stem].append(place)
            self._depth = max(self._depth, len(place.folders.names))
        for places in self._places.values():
            places.sort(key=_names)

    def numbered(self, number: int) -> ImageRecord | None:
        """The image of a number, as exports have it; None: there is none."""
        return self._numbered.get(number)

    def find(self, *names: str) -> ImageRecord | None:
        """The image that has one of these names, each a sha256, a URI or a path, the surest first; None: not one."""
        fit = self._fit(names)
        return None if fit is None else fit.image

    def find_all(self, wanted: Mapping[_Key, Sequence[str]]) -> dict[_Key, ImageRecord | str]:
        """The images of a source's paths.

        Of paths that fit the same image the one that fits best has it. Where a folder of the campaign has the name of
        one that the source states, the source's other folders are not it.

        Args:
            wanted: Everything that the source names, each with its names as `find` takes them.

        Returns:
            For each its image, or why it has none.
        """
        fits = {key: self._fit(names) for key, names in wanted.items()}
        found = [fit for fit in fits.values() if fit is not None]
        claims = Counter((fit.image.id, fit.rank) for fit in found)
        best: dict[str, tuple[int, ...]] = {}
        most: dict[str, int] = {}
        for fit in found:
            folder = _folder_of(fit.image)
            best[fit.image.id] = max(best.get(fit.image.id, ()), fit.rank)
            most[folder] = max(most.get(folder, 0), fit.shared)

        def settled(fit: _Fit | None) -> ImageRecord | str:
            if fit is None:
                return NO_IMAGE
            is_only = best[fit.image.id] == fit.rank and claims[fit.image.id, fit.rank] == 1
            is_here = fit.is_whole or fit.shared == most[_folder_of(fit.image)]
            return fit.image if is_only and is_here else CONTESTED

        return {key: settled(fit) for key, fit in fits.items()}

    def _fit(self, names: Sequence[str]) -> _Fit | None:
        for name in names:
            if name in self._sure:
                return _Fit(self._sure[name], (True,))
        paths = [_path(name) for name in names]
        paths += [PurePosixPath(upload[1]) for path in paths if (upload := _UPLOADED.fullmatch(path.name))]
        return next((fit for path in paths if (fit := self._of_path(path)) is not None), None)

    def _of_path(self, path: PurePosixPath) -> _Fit | None:
        """The image that the path fits best, if that is one."""
        stated = _folders(path.parent)
        near = self._namesakes(path, stated.names)
        fits = {place.image.id: fit for place in near if (fit := _fitting(path, stated, place)) is not None}
        best = max((fit.rank for fit in fits.values()), default=None)
        winners = [fit for fit in fits.values() if fit.rank == best]
        return winners[0] if len(winners) == 1 else None

    def _namesakes(self, path: PurePosixPath, names: tuple[str, ...]) -> Iterator[_Place]:
        """Images of this name whose folders are these as far as both are stated."""
        for stem in {path.name, path.stem}:  # without an ending a name may still hold a dot
            places = self._places.get(stem, [])
            for depth in range(min(len(names), self._depth) + 1):
                for at in range(bisect_left(places, names[:depth], key=_names), len(places)):
                    # Just these folders, or all that are stated and further ones.
                    if places[at].folders.names[: len(names)] != names[:depth]:
                        break
                    yield places[at]


def _names(place: _Place) -> tuple[str, ...]:
    return place.folders.names


def _fitting(path: PurePosixPath, stated: _Folders, place: _Place) -> _Fit | None:
    """How well a path that states these folders fits an image of its name; None: their folders differ."""
    if not stated.agrees(place.folders):
        return None
    own = place.path
    shared = stated.shared(place.located)
    is_whole_path = own.with_suffix("") in (path, path.with_suffix(""))
    ending = 2 if path.name == own.name else int(path.name == own.stem)
    rank = (False, stated == place.folders, shared, is_whole_path, ending)
    return _Fit(place.image, rank, shared, shared == len(stated.names) + len(stated.parts))


def _folders(path: PurePosixPath) -> _Folders:
    names: list[str] = []
    parts: list[str] = []
    for name in reversed(path.parts):
        if part := _PART.fullmatch(name):
            parts.append(part[1].lower() + part[2])
        elif not _HOLDERS.fullmatch(name):
            names.append(name)
    return _Folders(tuple(names), tuple(parts))


def _folder_of(image: ImageRecord) -> str:
    return image.uri.rpartition("/")[0]


def _path(name: str) -> PurePosixPath:
    """Also of one that was written on Windows."""
    return PurePosixPath(name.replace("\\", "/"))


def _common(first: Sequence[Any], second: Sequence[Any]) -> int:
    """The length of what both begin with."""
    pairs = zip(first, second, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))
