"""What a snapshot has that an older one of its campaign had not, and what it has no more.

Compared in the database: what is read grows with the change, beside one pass over both snapshots' entries.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Integer, Select, Text, cast, exists, func, select

from pipeline.storage.snapshots import get_snapshot
from pipeline.storage.tombstones import tombstones
from schemas.catalogue import SnapshotRecord
from schemas.errors import BadInputError, NotFoundError
from schemas.tables import Image, MaskRow, Request, Snapshot, SnapshotItem

_WRITERS: tuple[tuple[str, tuple[str, ...]], ...] = (("export", ()), ("campaign", ("export",)))
"""Kinds of jobs that write snapshots, and where their results name it."""


@dataclass(frozen=True)
class RemovedImage:
    """An image that only the older snapshot has; `purged_at` None: it is still in the campaign."""

    id: int
    sha256: str | None
    purged_at: datetime | None = None


@dataclass(frozen=True)
class RemovedAnnotation:
    """A mask that only the older snapshot has."""

    id: int
    image_id: int


@dataclass(frozen=True)
class Changes:
    """From an older snapshot to a newer one; all ids are numbers, as files show them.

    Attributes:
        images: Images of the newer one that are new, or have a mask that is new, gone, of another category or flagged
            otherwise; by id.
        removed_images: By id; those that were purged since among them.
        removed_annotations: By image and id; those on removed images among them, but not on purged ones: nobody knows
            these any more.
    """

    images: list[int]
    removed_images: list[RemovedImage]
    removed_annotations: list[RemovedAnnotation]


def find_snapshot(conn: Connection, campaign_id: str, snapshot: str) -> str:
    """The id of a campaign's snapshot.

    Args:
        conn: Any transaction.
        campaign_id: The campaign.
        snapshot: Number or id.

    Raises:
        NotFoundError: The campaign has none.
    """
    number = int(snapshot) if snapshot.isdecimal() and len(snapshot) < 10 else None
    mine = select(Snapshot.id).where(Snapshot.campaign_id == campaign_id)
    found = conn.execute(mine.where((Snapshot.id == snapshot) | (Snapshot.number == number))).scalar_one_or_none()
    if found is None:
        raise NotFoundError(
            f"The campaign has no snapshot {snapshot[:40]!r}. Give a number of `clickloop snapshot list`, or an id."
        )
    return str(found)


def find_export(conn: Connection, campaign_id: str, snapshot: str) -> SnapshotRecord:
    """A campaign's snapshot that was taken to be exported; for the arguments see `find_snapshot`.

    Raises:
        NotFoundError: The campaign has none.
        BadInputError: It was taken for something else.
    """
    base = get_snapshot(conn, find_snapshot(conn, campaign_id, snapshot))
    if base.purpose != "export":
        raise BadInputError(
            f"Snapshot {base.number} was taken to {base.purpose} and never exported. Give one that "
            "`clickloop snapshot list` calls an export."
        )
    return base


def require_written(conn: Connection, campaign_id: str, snapshot: str) -> None:
    """A snapshot is there from the beginning of its export on; a delta since one that nobody has would help nobody.

    Raises:
        NotFoundError, BadInputError: See `find_export`; or no job that wrote it was finished.
    """
    base = find_export(conn, campaign_id, snapshot)
    if not written_options(conn, base.id):
        raise BadInputError(
            f"Snapshot {base.number} was never written whole: its export was interrupted, or failed. Give one that "
            "was, or leave out --since-snapshot."
        )


def written_snapshots(conn: Connection, campaign_id: str) -> set[str]:
    """Ids of a campaign's snapshots that a finished job wrote."""
    found: set[str] = set()
    mine = select(Snapshot.id).where(Snapshot.campaign_id == campaign_id)
    for kind, at in _WRITERS:
        wrote = Request.result[(*at, "snapshot_id")].as_string()
        done = select(wrote).where(Request.kind == kind, Request.state == "done", wrote.in_(mine))
        found.update(conn.execute(done).scalars())
    return found


def written_options(conn: Connection, snapshot_id: str) -> list[dict[str, Any]]:
    """What the finished jobs that wrote a snapshot were asked for; {}: a step of a campaign's job, nothing special."""
    found: list[dict[str, Any]] = []
    for kind, at in _WRITERS:
        wrote = Request.result[(*at, "snapshot_id")].as_string() == snapshot_id
        done = select(Request.payload).where(Request.kind == kind, Request.state == "done", wrote)
        found += [payload if kind == "export" else {} for payload in conn.execute(done).scalars()]
    return found


def changes_between(conn: Connection, base: SnapshotRecord, snapshot: SnapshotRecord) -> Changes:
    """What became of an older snapshot.

    Args:
        conn: Any transaction.
        base: The older one, of the same campaign.
        snapshot: The newer one.

    Raises:
        BadInputError: `base` is not the older one.
    """
    if base.number >= snapshot.number:
        raise BadInputError(f"Snapshot {base.number} is not older than snapshot {snapshot.number}.")
    images: dict[int, None] = {}
    removed: dict[int, RemovedImage] = {}
    masks: list[RemovedAnnotation] = []
    for row in conn.execute(_differences(base, snapshot)):
        if row.image_stays:
            images[row.image_number] = None
        else:
            removed[row.image_number] = RemovedImage(row.image_number, row.sha256)
        if row.mask_number is not None and not row.mask_stays:
            masks.append(RemovedAnnotation(row.mask_number, row.image_number))
    for tombstone in tombstones(conn, snapshot.campaign_id):
        if tombstone.image_number is not None and base.id in {held["id"] for held in tombstone.snapshots}:
            gone = RemovedImage(tombstone.image_number, tombstone.image_sha256, tombstone.started_at)
            removed[gone.id] = gone
    return Changes(list(images), [removed[number] for number in sorted(removed)], masks)


def _differences(base: SnapshotRecord, snapshot: SnapshotRecord) -> Select[Any]:
    """The entries that only one of the snapshots has, by image and mask, and whether the newer one has these two."""
    entry = (SnapshotItem.image_id, SnapshotItem.mask_id, SnapshotItem.category_number, SnapshotItem.unsure)
    of_both = SnapshotItem.snapshot_id.in_([base.id, snapshot.id])
    # Most images have the same entries in both. So these are compared first, an image's at once: their index has them
    # by image. Where the same come in another order, the image is looked at for nothing.
    marks = 2 * func.coalesce(SnapshotItem.category_number, 0) + cast(SnapshotItem.unsure, Integer)
    alike = select(
        SnapshotItem.image_id,
        func.aggregate_strings(SnapshotItem.mask_id, ",").label("masks"),
        func.aggregate_strings(cast(marks, Text), ",").label("marks"),
    )
    whole = alike.where(of_both).group_by(SnapshotItem.snapshot_id, SnapshotItem.image_id).subquery()
    once = func.count() == 1
    images = select(whole.c.image_id).group_by(*whole.c).having(once)
    # Grouping passes once over the entries of both; two EXCEPTs would pass four times.
    differing = (
        select(*entry).where(of_both, SnapshotItem.image_id.in_(images)).group_by(*entry).having(once).subquery()
    )
    item = differing.c
    newer = select(SnapshotItem.id).where(
        SnapshotItem.snapshot_id == snapshot.id, SnapshotItem.image_id == item.image_id
    )
    columns: tuple[ColumnElement[Any], ...] = (
        Image.number.label("image_number"),
        Image.sha256.label("sha256"),
        MaskRow.number.label("mask_number"),
        exists(newer).label("image_stays"),
        exists(newer.where(SnapshotItem.mask_id == item.mask_id)).label("mask_stays"),
    )
    joined = select(*columns).select_from(differing).join(Image, Image.id == item.image_id)
    return joined.outerjoin(MaskRow, MaskRow.id == item.mask_id).order_by(Image.number, MaskRow.number)
