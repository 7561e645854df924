"""Snapshots: named, immutable sets of mask versions, read in batches by exports and retraining.

Creating one copies ids in a single statement, so that it sees one state of the database. Knows no file format.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, Select, exists, func, insert, literal, null, select, union_all
from sqlalchemy.orm import aliased

from pipeline.storage.campaigns import list_categories
from pipeline.storage.images import image_record
from pipeline.storage.masks import is_current, mask_query
from pipeline.storage.numbers import next_number
from pipeline.storage.sessions import event_record
from pipeline.storage.sql import batches, fields, new_id, one
from schemas.campaigns import CategoryRecord, ImageRecord
from schemas.catalogue import EventResultRecord, LoggedEvent, MaskRecord, SnapshotRecord
from schemas.columns import db_now
from schemas.errors import BadInputError, NotFoundError
from schemas.events import Event
from schemas.tables import (
    Annotator,
    EventResult,
    EventRow,
    Image,
    Instance,
    MaskRow,
    Session,
    Snapshot,
    SnapshotItem,
)

FILTERS = frozenset({"holdout", "categories"})


def create_snapshot(
    conn: Connection, campaign_id: str, purpose: str, filters: dict[str, Any] | None = None
) -> SnapshotRecord:
    """Write down which masks are current now.

    Args:
        conn: Write transaction; short, no file is read.
        campaign_id: The campaign.
        purpose: export or retrain.
        filters: `holdout` (bool): only images held out, or only the others; `categories` (list of numbers): only these.

    Returns:
        The snapshot. Images of submitted sessions without such a mask are in it as verified to be empty.

    Raises:
        BadInputError: A filter is unknown.
        NotFoundError: There is no such campaign.
    """
    wanted = {key: value for key, value in (filters or {}).items() if value is not None}
    if not wanted.keys() <= FILTERS:
        raise BadInputError(f"Snapshots are filtered by {', '.join(sorted(FILTERS))}; got {', '.join(wanted)}.")
    number = next_number(conn, Snapshot, campaign_id)
    parent = conn.execute(
        select(Snapshot.id).where(Snapshot.campaign_id == campaign_id).order_by(Snapshot.number.desc()).limit(1)
    ).scalar_one_or_none()
    snapshot_id = new_id()
    conn.execute(
        insert(Snapshot).values(
            id=snapshot_id,
            campaign_id=campaign_id,
            number=number,
            parent_id=parent,
            purpose=purpose,
            filters=wanted,
            categories=[[category.number, category.name] for category in list_categories(conn, campaign_id)],
            created_at=db_now(),
        )
    )
    columns = ["snapshot_id", "image_id", "mask_id", "category_number"]
    conn.execute(insert(SnapshotItem).from_select(columns, _items(snapshot_id, campaign_id, wanted)))
    return get_snapshot(conn, snapshot_id)


def get_snapshot(conn: Connection, snapshot_id: str) -> SnapshotRecord:
    """A snapshot.

    Raises:
        NotFoundError: There is none.
    """
    row = one(conn, select(Snapshot.__table__).where(Snapshot.id == snapshot_id))
    if row is None:
        raise NotFoundError(f"There is no snapshot {snapshot_id!r}.")
    return _record(conn, row)


def list_snapshots(conn: Connection, campaign_id: str) -> list[SnapshotRecord]:
    """Snapshots of a campaign by number."""
    query = select(Snapshot.__table__).where(Snapshot.campaign_id == campaign_id).order_by(Snapshot.number)
    return [_record(conn, row) for row in conn.execute(query)]


def snapshot_images(conn: Connection, snapshot_id: str, after: int = 0, limit: int | None = None) -> list[ImageRecord]:
    """Images of a snapshot numbered above `after`, by number; those verified to be empty among them."""
    inside = exists().where(SnapshotItem.snapshot_id == snapshot_id, SnapshotItem.image_id == Image.id)
    campaign = select(Snapshot.campaign_id).where(Snapshot.id == snapshot_id).scalar_subquery()
    query = select(Image.__table__).where(Image.campaign_id == campaign, Image.number > after, inside)
    return [image_record(row) for row in conn.execute(query.order_by(Image.number).limit(limit)).all()]


def snapshot_masks(conn: Connection, snapshot_id: str, after: int = 0, limit: int | None = None) -> list[MaskRecord]:
    """Masks of a snapshot numbered above `after`, by number, with the category that they had then."""
    query = mask_query().add_columns(SnapshotItem.category_number.label("category_then"))
    query = query.join(SnapshotItem, SnapshotItem.mask_id == MaskRow.id)
    query = query.where(SnapshotItem.snapshot_id == snapshot_id, MaskRow.number > after)
    return [_mask_then(row) for row in conn.execute(query.order_by(MaskRow.number).limit(limit)).all()]


def masks_of_images(conn: Connection, snapshot_id: str, image_ids: Sequence[str]) -> list[MaskRecord]:
    """Masks of a snapshot on some of its images, by image number, then mask number, with the category of then."""
    query = mask_query().add_columns(SnapshotItem.category_number.label("category_then"))
    query = query.join(SnapshotItem, SnapshotItem.mask_id == MaskRow.id)
    query = query.where(SnapshotItem.snapshot_id == snapshot_id, SnapshotItem.image_id.in_(image_ids))
    return [_mask_then(row) for row in conn.execute(query.order_by(Image.number, MaskRow.number)).all()]


def snapshot_sessions(conn: Connection, snapshot_id: str) -> list[str]:
    """Ids of the sessions that a snapshot's masks came from, by image number, then lease."""
    query = (
        select(Session.id)
        .join(Image, Image.id == Session.image_id)
        .where(
            Session.id.in_(
                select(MaskRow.session_id)
                .join(SnapshotItem, SnapshotItem.mask_id == MaskRow.id)
                .where(SnapshotItem.snapshot_id == snapshot_id)
            )
        )
        .order_by(Image.number, Session.lease_no)
    )
    return list(conn.execute(query).scalars())


def session_clicks(conn: Connection, snapshot_id: str, session_ids: Sequence[str]) -> list[LoggedEvent]:
    """All events of some of a snapshot's sessions with their results, in the order given, then by seq."""
    item, mask = aliased(SnapshotItem), aliased(MaskRow)
    numbers = {
        (row.session_id, row.instance_id): row.number
        for row in conn.execute(
            select(mask.session_id, mask.instance_id, mask.number)
            .join(item, item.mask_id == mask.id)
            .where(item.snapshot_id == snapshot_id, mask.session_id.in_(session_ids))
        )
    }
    rows = conn.execute(
        select(
            EventRow.__table__,
            Session.image_id,
            Image.number.label("image_number"),
            Annotator.pseudonym,
            *(column.label(f"result_{column.name}") for column in EventResult.__table__.c),
        )
        .join(Session, Session.id == EventRow.session_id)
        .join(Image, Image.id == Session.image_id)
        .join(Annotator, Annotator.id == EventRow.annotator_id)
        .outerjoin(EventResult, EventResult.event_id == EventRow.event_id)
        .where(EventRow.session_id.in_(session_ids))
        .order_by(EventRow.session_id, EventRow.seq)
    ).all()
    by_session = {key: list(group) for key, group in groupby(rows, key=lambda row: row.session_id)}
    return [logged for session_id in session_ids for logged in _logged(by_session.get(session_id, []), numbers)]


def snapshot_clicks(conn: Connection, snapshot_id: str, batch: int = 50) -> Iterator[LoggedEvent]:
    """All events of a snapshot's sessions, `batch` sessions at a time."""
    for session_ids in batches(snapshot_sessions(conn, snapshot_id), batch):
        yield from session_clicks(conn, snapshot_id, session_ids)


def undone_events(events: Sequence[Event]) -> frozenset[str]:
    """Ids of the events of one session, in order, that an undo which was not redone named."""
    undone: set[str] = set()
    target: dict[str, str] = {}
    for event in events:
        if event.kind == "undo":
            target[event.event_id] = event.payload["event_id"]
            undone.add(event.payload["event_id"])
        elif event.kind == "redo":
            undone.discard(target.get(event.payload["event_id"], ""))
    return frozenset(undone)


def _items(snapshot_id: str, campaign_id: str, filters: dict[str, Any]) -> Select[Any]:
    """Masks that are current, and images that a submitted session left without one."""
    holdout, categories = filters.get("holdout"), filters.get("categories")
    masks = (
        select(Image.number.label("image_order"), Instance.image_id, Instance.mask_id, Instance.category_number)
        .select_from(Instance)
        .join(Image, Image.id == Instance.image_id)
        .outerjoin(Session, Session.id == Instance.session_id)
        .where(Instance.campaign_id == campaign_id, is_current())
    )
    if holdout is not None:
        masks = masks.where(Image.holdout.is_(holdout))
    if categories is not None:
        masks = masks.where(Instance.category_number.in_(categories))
    full = masks.cte("current_masks")
    submitted = exists(select(Session.id).where(Session.image_id == Image.id, Session.state == "submitted"))
    empty = select(
        Image.number.label("image_order"), Image.id, null().label("mask_id"), null().label("category_number")
    ).where(Image.campaign_id == campaign_id, submitted, Image.id.not_in(select(full.c.image_id)))
    if holdout is not None:
        empty = empty.where(Image.holdout.is_(holdout))
    both = union_all(select(full), empty).subquery()
    return select(literal(snapshot_id), both.c.image_id, both.c.mask_id, both.c.category_number)


def _result_fields(row: Row[Any]) -> dict[str, Any]:
    values = dict(zip(row._fields, row, strict=True))
    return {name: values[f"result_{name}"] for name in EventResultRecord.model_fields}


def _mask_then(row: Row[Any]) -> MaskRecord:
    """A mask with the category that it had in the snapshot."""
    return MaskRecord(**{**fields(row, MaskRecord), "category_number": row.category_then})


def _record(conn: Connection, row: Row[Any]) -> SnapshotRecord:
    masks, images = conn.execute(
        select(func.count(SnapshotItem.mask_id), func.count(SnapshotItem.image_id.distinct())).where(
            SnapshotItem.snapshot_id == row.id
        )
    ).one()
    categories = [CategoryRecord(number=number, name=name) for number, name in row.categories]
    return SnapshotRecord(**{**row._mapping, "categories": categories}, masks=masks, images=images)


def _logged(rows: Sequence[Row[Any]], numbers: dict[tuple[str, str], int]) -> Iterator[LoggedEvent]:
    events = [event_record(row) for row in rows]
    undone = undone_events(events)
    for row, event in zip(rows, events, strict=True):
        yield LoggedEvent(
            event=event,
            image_id=row.image_id,
            image_number=row.image_number,
            pseudonym=row.pseudonym,
            result=None if row.result_event_id is None else EventResultRecord(**_result_fields(row)),
            undone=event.event_id in undone,
            mask_number=numbers.get((event.session_id, event.instance_id or "")),
        )
