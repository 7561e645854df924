"""What the writers of the formats share: where they write, what the snapshot is called, and what they are told."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.export.batches import Labels
from pipeline.export.directory import SnapshotDirectory


@dataclass(frozen=True)
class Target:
    """A snapshot that is being written.

    Attributes:
        directory: Where files are put.
        title: What people call it.
        info: COCO's `info`.
        categories: (number, name) of every category, by number.
        filters: What the snapshot was limited to.
        embed: Whether image files are part of it.
        tick: Called between images, and between masks that take time; raises when the export is to stop.
    """

    directory: SnapshotDirectory
    title: str
    info: dict[str, Any]
    categories: list[tuple[int, str]]
    filters: dict[str, Any]
    embed: bool
    tick: Callable[[], None]


class Format(ABC):
    """The writer of one format; is given the images of a snapshot by number, then finished."""

    @abstractmethod
    def add_labels(self, labels: Labels) -> None:
        """Write the next images and their masks."""

    def add_clicks(self, clicks: pa.Table) -> None:  # noqa: B027
        """Write the next rows of `clicks`; most formats have no place for them."""

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """Write what comes last; facts for the manifest under the format's name."""

    def close(self) -> None:  # noqa: B027
        """Let go of open files, finished or not."""
