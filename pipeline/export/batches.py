"""A snapshot read in batches of bounded memory: images with their masks and clicks, as Arrow tables.

A batch is read by one short transaction after the other while the batch before it is written.
"""

from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import pyarrow as pa

from pipeline.export.splits import Splits
from pipeline.export.tables import ExportImage, annotation_table, click_table, image_table, in_order
from pipeline.storage.annotators import pseudonyms
from pipeline.storage.database import Database
from pipeline.storage.snapshots import event_columns, event_counts, image_page, mask_columns
from schemas.catalogue import SnapshotRecord
from schemas.masks import Rle

IMAGES_AT_ONCE = 2000
ROWS_AT_ONCE = 20_000
_BYTES_AT_ONCE = 8_000_000
T = TypeVar("T")


@dataclass(frozen=True)
class ExportMask:
    """A mask of a snapshot; `image_id` and `id` are its COCO ids, `category_id` 0 says that it has none."""

    image_id: int
    id: int
    category_id: int
    rle: Rle


@dataclass(frozen=True)
class Labels:
    """Some images of a snapshot by number, with all their masks.

    Attributes:
        sources: The images.
        images: A row of `images` each; its pixels are named, not embedded.
        annotations: A row of `annotations` per mask, by image and id.
    """

    sources: list[ExportImage]
    images: pa.Table
    annotations: pa.Table

    def masks(self) -> Iterator[ExportMask]:
        """The masks one by one, for formats that have to look into them."""
        for row in self.annotations.select(["image_id", "id", "category_id", "segmentation"]).to_pylist():
            rle = Rle(**row.pop("segmentation"))
            yield ExportMask(**row, rle=rle)


@dataclass(frozen=True)
class Clicks:
    """Rows of `clicks`: all events of some sessions that masks came from, by image, session and seq."""

    table: pa.Table


class _Pace:
    """How many rows to read next, so that a batch stays below a size, judged by the last one."""

    def __init__(self) -> None:
        self.rows = ROWS_AT_ONCE // 10

    def saw(self, table: pa.Table) -> None:
        if table.num_rows:
            self.rows = max(1, min(ROWS_AT_ONCE, _BYTES_AT_ONCE * table.num_rows // (table.nbytes + 1)))


def read_snapshot(
    database: Database, snapshot: SnapshotRecord, splits: Splits, clicks: bool, only: Sequence[int] | None = None
) -> Generator[Labels | Clicks, None, None]:
    """A snapshot in order of its images; the clicks of some images follow their labels.

    Args:
        database: The catalogue.
        snapshot: The snapshot.
        splits: Names each image's split.
        clicks: Whether to read the click log, too.
        only: Numbers of the images to read, ascending; None: all.
    """
    return _ahead(_Reader(database, snapshot, splits, clicks, only).parts())


class _Reader:
    def __init__(
        self, database: Database, snapshot: SnapshotRecord, splits: Splits, clicks: bool, only: Sequence[int] | None
    ) -> None:
        self.database = database
        self.snapshot = snapshot
        self.splits = splits
        self.clicks = clicks
        self.only = only
        self.categories = {category.number: category.name for category in snapshot.categories}
        self.masks_pace, self.events_pace = _Pace(), _Pace()

    def parts(self) -> Iterator[Labels | Clicks]:
        with self.database.connect() as conn:
            names = pseudonyms(conn)
        for sources in self._images():
            with self.database.connect() as conn:
                masks = mask_columns(conn, self.snapshot.id, [image.id for image in sources])
            self.masks_pace.saw(masks)
            masks = in_order(masks, "image_id", "id")
            annotations = annotation_table(masks, sources, self.categories, names)
            yield Labels(sources, image_table(sources, annotations), annotations)
            if self.clicks:
                yield from (Clicks(click_table(events, annotations, names)) for events in self._events(annotations))

    def _images(self) -> Iterator[list[ExportImage]]:
        """The images, as many at a time as have about so many masks as shall be read."""
        after = 0
        while page := self._page(after):
            after = page[-1].number
            while page:
                count = _fitting([image.items for image in page], self.masks_pace.rows)
                yield page[:count]
                page = page[count:]

    def _page(self, after: int) -> list[ExportImage]:
        only = self.only
        if only is not None:
            start = bisect_right(only, after)
            only = only[start : start + IMAGES_AT_ONCE]
        with self.database.connect() as conn:
            found = image_page(conn, self.snapshot.id, after, IMAGES_AT_ONCE, only)
        return [ExportImage(**vars(image), split=self.splits.of(image)) for image in found]

    def _events(self, annotations: pa.Table) -> Iterator[pa.Table]:
        """The events of the sessions of some masks."""
        sessions = annotations.select(["image_id", "session_id"]).drop_null()
        ids = in_order(sessions.group_by(["image_id", "session_id"]).aggregate([]), "image_id", "session_id")
        wanted = ids["session_id"].to_pylist()
        with self.database.connect() as conn:
            counts = event_counts(conn, wanted)
        while wanted:
            count = _fitting([counts[session_id] for session_id in wanted], self.events_pace.rows)
            with self.database.connect() as conn:
                events = in_order(event_columns(conn, wanted[:count]), "session_id", "seq")
            self.events_pace.saw(events)
            yield events
            wanted = wanted[count:]


def _fitting(sizes: list[int], limit: int) -> int:
    """How many of some things to take, at least one, so that their sizes come to a limit at most."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if total > limit and count:
            return count
    return len(sizes)


def _ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """The same items, each made in a thread while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(lambda: list(islice(items, 1)))
        while item := coming.result():
            coming = pool.submit(lambda: list(islice(items, 1)))
            yield item[0]
