"""Snapshots: named, immutable sets of mask versions, read in batches by exports and retraining.

Creating one copies ids in a single statement, so that it sees one state of the database. Knows no file format.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from datetime import UTC, datetime
from typing import Any, get_args

import pyarrow as pa
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    ScalarSelect,
    Select,
    and_,
    delete,
    exists,
    false,
    func,
    insert,
    literal,
    null,
    select,
    union_all,
    update,
)

from pipeline.storage.campaigns import list_categories
from pipeline.storage.columns import read_columns
from pipeline.storage.images import image_record
from pipeline.storage.masks import is_current, mask_query
from pipeline.storage.numbers import lock_campaign, next_number
from pipeline.storage.sql import fields, new_id, one
from pipeline.storage.tombstones import require_no_purge
from schemas.campaigns import CategoryRecord, ImageRecord, TaskState
from schemas.catalogue import MaskRecord, SnapshotRecord
from schemas.columns import db_now
from schemas.errors import BadInputError, NotFoundError
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
    Task,
)

OF_MASKS = frozenset({"since", "until", "annotators", "sure", "min_score"})
"""Filters that leave out masks that people made, whatever they are of."""
FILTERS = OF_MASKS | {"holdout", "categories", "states"}
MASK_COLUMNS = (
    "instance_id", "version", "source", "session_id", "seq", "annotator_id", "height", "width", "rle_counts",
    "mask_sha256", "area", "bbox", "num_clicks", "model_digest", "adapter_digest", "embedding_digest", "created_at",
    "score",
)  # fmt: skip
EVENT_COLUMNS = (
    "event_id", "session_id", "seq", "instance_id", "kind", "payload", "pins", "server_time", "annotator_id"
)  # fmt: skip
RESULT_COLUMNS = ("mask_sha256", "roi", "scores", "engine", "latency_ms")


def create_snapshot(
    conn: Connection, campaign_id: str, purpose: str, filters: dict[str, Any] | None = None
) -> SnapshotRecord:
    """Write down which masks are current now.

    Args:
        conn: Write transaction; short, no file is read.
        campaign_id: The campaign.
        purpose: export or retrain.
        filters: Only what fits all of them. `holdout` (bool): images held out, or the others; `categories` (list of
            numbers); `since` and `until` (ISO times with a zone): masks accepted from then on, and before then;
            `annotators` (list of pseudonyms): their masks; `sure` (True): masks that nobody flagged as unsure;
            `min_score`: masks whose model states at least this IoU, and those that no model predicted; `states` (list
            of task states): images whose task is in one.

    Returns:
        The snapshot. Images of submitted sessions without any such mask are in it as verified to be empty. A mask that
        only a filter of `OF_MASKS` leaves out still says that its image is not empty, and so does one without
        a category that `categories` leaves out: it may be of any. `since`, `until` and `annotators` also choose whose
        and which submissions count.

    Raises:
        BadInputError: A filter is unknown, or its value means nothing.
        NotFoundError: There is no such campaign.
        StateError: Something of it is being purged; the transaction is to be rolled back.
    """
    wanted = _checked({key: value for key, value in (filters or {}).items() if value is not None})
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
    require_no_purge(conn, campaign_id)  # nothing else would hold what the entries name
    columns = ["snapshot_id", "image_id", "mask_id", "category_number", "unsure"]
    conn.execute(insert(SnapshotItem).from_select(columns, _items(snapshot_id, campaign_id, wanted)))
    masks, images = func.count(SnapshotItem.mask_id), func.count(SnapshotItem.image_id.distinct())
    counts = conn.execute(select(masks, images).where(SnapshotItem.snapshot_id == snapshot_id)).one()
    conn.execute(update(Snapshot).where(Snapshot.id == snapshot_id).values(masks=counts[0], images=counts[1]))
    return get_snapshot(conn, snapshot_id)


def get_snapshot(conn: Connection, snapshot_id: str) -> SnapshotRecord:
    """A snapshot.

    Raises:
        NotFoundError: There is none.
    """
    row = one(conn, select(Snapshot.__table__).where(Snapshot.id == snapshot_id))
    if row is None:
        raise NotFoundError(f"There is no snapshot {snapshot_id!r}.")
    return _record(row)


def list_snapshots(conn: Connection, campaign_id: str) -> list[SnapshotRecord]:
    """Snapshots of a campaign by number."""
    query = select(Snapshot.__table__).where(Snapshot.campaign_id == campaign_id).order_by(Snapshot.number)
    return [_record(row) for row in conn.execute(query)]


def remove_items(conn: Connection, campaign_id: str, item_ids: Select[Any]) -> int:
    """Delete items of a campaign's snapshots, which have so many masks and images less; returns how many went."""
    lock_campaign(conn, campaign_id)
    of_image = SnapshotItem.snapshot_id, SnapshotItem.image_id
    gone = conn.execute(
        delete(SnapshotItem).where(SnapshotItem.id.in_(item_ids)).returning(*of_image, SnapshotItem.mask_id)
    ).all()
    images = {(row.snapshot_id, row.image_id) for row in gone}
    snapshots = {snapshot_id for snapshot_id, _ in images}
    inside = of_image[0].in_(snapshots), of_image[1].in_({image_id for _, image_id in images})
    images -= {(row[0], row[1]) for row in conn.execute(select(*of_image).where(*inside).distinct())}
    for snapshot_id in sorted(snapshots):
        masks = sum(row.snapshot_id == snapshot_id and row.mask_id is not None for row in gone)
        whole = sum(place[0] == snapshot_id for place in images)
        fewer = {"masks": Snapshot.masks - masks, "images": Snapshot.images - whole}
        conn.execute(update(Snapshot).where(Snapshot.id == snapshot_id).values(**fewer))
    return len(gone)


def snapshot_images(conn: Connection, snapshot_id: str, after: int = 0, limit: int | None = None) -> list[ImageRecord]:
    """Images of a snapshot numbered above `after`, by number; those verified to be empty among them."""
    inside = exists().where(*_item_of(snapshot_id))
    query = select(Image.__table__).where(Image.campaign_id == _campaign_of(snapshot_id), Image.number > after, inside)
    return [image_record(row) for row in conn.execute(query.order_by(Image.number).limit(limit)).all()]


def snapshot_masks(conn: Connection, snapshot_id: str, after: int = 0, limit: int | None = None) -> list[MaskRecord]:
    """Masks of a snapshot numbered above `after`, by number, with the category that they had then."""
    query = mask_query().add_columns(SnapshotItem.category_number.label("category_then"))
    query = query.join(SnapshotItem, SnapshotItem.mask_id == MaskRow.id)
    query = query.where(SnapshotItem.snapshot_id == snapshot_id, MaskRow.number > after)
    return [_mask_then(row) for row in conn.execute(query.order_by(MaskRow.number).limit(limit)).all()]


@dataclass(frozen=True)
class SnapshotImage:
    """An image of a snapshot, as exports need it.

    `items` is how many masks it has there, 1 if it has none; one more if masks without a category were left out.
    """

    id: str
    number: int
    uri: str
    file_name: str
    sha256: str
    group_key: str
    holdout: bool
    width: int
    height: int
    format: str
    items: int


def image_page(
    conn: Connection, snapshot_id: str, after: int, limit: int, only: Sequence[int] | None = None
) -> list[SnapshotImage]:
    """Images of a snapshot numbered above `after`, by number; `only` those of some numbers, `limit` at most."""
    items = select(func.count(SnapshotItem.id)).where(*_item_of(snapshot_id)).scalar_subquery()
    names = [field.name for field in dataclass_fields(SnapshotImage) if field.name != "items"]
    query: Select[Any] = (
        select(*(getattr(Image, name) for name in names), items)
        .where(Image.campaign_id == _campaign_of(snapshot_id), Image.number > after)
        .where(exists().where(*_item_of(snapshot_id)))
    )
    if only is not None:
        query = query.where(Image.number.in_(only))
    return [SnapshotImage(*row) for row in conn.execute(query.order_by(Image.number).limit(limit))]


def mask_columns(conn: Connection, snapshot_id: str, image_ids: Sequence[str]) -> pa.Table:
    """The masks of a snapshot on some of its images, in any order; see `read_columns`.

    Besides `MASK_COLUMNS`: `image_id` and `id` (their numbers), `annotation_uuid`, `parent_uuid`, `accept_event_id`,
    and of then the `category_number` and whether it was `unsure`.
    """
    row = MaskRow.__table__.c
    query = (
        select(
            Image.number.label("image_id"),
            row.number.label("id"),
            row.id.label("annotation_uuid"),
            row.parent_id.label("parent_uuid"),
            row.event_id.label("accept_event_id"),
            SnapshotItem.category_number,
            SnapshotItem.unsure,
            *(row[name] for name in MASK_COLUMNS),
        )
        .select_from(SnapshotItem)
        .join(MaskRow, MaskRow.id == SnapshotItem.mask_id)
        .join(Image, Image.id == SnapshotItem.image_id)
        .where(SnapshotItem.snapshot_id == snapshot_id, SnapshotItem.image_id.in_(image_ids))
    )
    return read_columns(conn, query)


def event_counts(conn: Connection, session_ids: Sequence[str]) -> dict[str, int]:
    """How many events sessions have, by id."""
    columns = (Session.__table__.c[name] for name in ("id", "last_seq"))
    found = read_columns(conn, select(*columns).where(Session.id.in_(session_ids)))
    return dict(zip(found["id"].to_pylist(), found["last_seq"].to_pylist(), strict=True))


def event_columns(conn: Connection, session_ids: Sequence[str]) -> pa.Table:
    """All events of some sessions with their results, in any order; see `read_columns`."""
    event, result = EventRow.__table__.c, EventResult.__table__.c
    query = (
        select(*(event[name] for name in EVENT_COLUMNS), *(result[name] for name in RESULT_COLUMNS))
        .select_from(EventRow)
        .outerjoin(EventResult, EventResult.event_id == EventRow.event_id)
        .where(EventRow.session_id.in_(session_ids))
    )
    return read_columns(conn, query)


def undone_events(log: Iterable[tuple[str, str, dict[str, Any]]]) -> frozenset[str]:
    """Ids of the events that an undo which was not redone named.

    Args:
        log: (event id, kind, payload) by session and seq; only undo and redo matter.
    """
    undone: set[str] = set()
    target: dict[str, str] = {}
    for event_id, kind, payload in log:
        if kind == "undo":
            target[event_id] = payload["event_id"]
            undone.add(payload["event_id"])
        elif kind == "redo":
            undone.discard(target.get(payload["event_id"], ""))
    return frozenset(undone)


def _item_of(snapshot_id: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """That an item is of the snapshot and the image."""
    return SnapshotItem.snapshot_id == snapshot_id, SnapshotItem.image_id == Image.id


def _campaign_of(snapshot_id: str) -> ScalarSelect[str]:
    return select(Snapshot.campaign_id).where(Snapshot.id == snapshot_id).scalar_subquery()


def _checked(filters: dict[str, Any]) -> dict[str, Any]:
    """Filters that mean something.

    Raises:
        BadInputError: They don't.
    """
    if not filters.keys() <= FILTERS:
        raise BadInputError(f"Snapshots are filtered by {', '.join(sorted(FILTERS))}; got {', '.join(filters)}.")
    for name in filters.keys() & {"since", "until"}:
        _time(name, filters[name])
    unknown = set(filters.get("states", ())) - set(get_args(TaskState))
    if unknown:
        raise BadInputError(f"Task states are {', '.join(get_args(TaskState))}; got {', '.join(sorted(unknown))}.")
    return filters


def _time(name: str, text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadInputError(f"{name}: {text!r} is no time. Example: 2026-11-28T00:00:00+00:00.") from error
    if found.tzinfo is None:
        raise BadInputError(f"{name}: {text!r} has no time zone. Example: 2026-11-28T00:00:00+00:00.")
    try:
        return found.astimezone(UTC)
    except OverflowError as error:
        raise BadInputError(f"{name}: {text!r} is no time in UTC, whose years are 1 to 9999.") from error


def _items(snapshot_id: str, campaign_id: str, filters: dict[str, Any]) -> Select[Any]:
    """Masks that are current, and images that a submitted session left without one, or that hold more than was asked
    for without saying of which category."""
    images: list[ColumnElement[bool]] = []
    if "holdout" in filters:
        images.append(Image.holdout.is_(filters["holdout"]))
    if "states" in filters:
        of_image = and_(Task.campaign_id == Image.campaign_id, Task.image_id == Image.id)  # as its index has them
        images.append(exists().where(of_image, Task.state.in_(filters["states"])))
    masks = (
        select(Instance.image_id, Instance.mask_id, Instance.category_number, Instance.unsure)
        .outerjoin(Session, Session.id == Instance.session_id)
        .where(Instance.campaign_id == campaign_id, is_current())
    )
    if images:
        masks = masks.join(Image, Image.id == Instance.image_id).where(*images)
    unnamed = masks.where(Instance.category_number.is_(None)).cte("masks_without_category")
    if "categories" in filters:
        masks = masks.where(Instance.category_number.in_(filters["categories"]))
    full = masks.cte("current_masks")
    chosen = select(full)
    if filters.get("sure"):
        chosen = chosen.where(~full.c.unsure)
    if filters.keys() & {"since", "until", "annotators", "min_score"}:
        chosen = chosen.join(MaskRow, MaskRow.id == full.c.mask_id)
        chosen = chosen.where(*_made_within(MaskRow.created_at, filters))
        if "annotators" in filters:
            chosen = chosen.where(_made_by(MaskRow.annotator_id, filters))
        if "min_score" in filters:
            chosen = chosen.where(MaskRow.score.is_(None) | (MaskRow.score >= filters["min_score"]))
    submitted = select(Session.id).where(Session.image_id == Image.id, Session.state == "submitted")
    if "annotators" in filters:
        submitted = submitted.where(_made_by(Session.annotator_id, filters))
    if filters.keys() & {"since", "until"}:
        submit = and_(EventRow.session_id == Session.id, EventRow.kind == "submit")
        submitted = submitted.join(EventRow, submit).where(*_made_within(EventRow.server_time, filters))
    nothing = null().label("mask_id"), null().label("category_number"), false().label("unsure")
    of_campaign = select(Image.id, *nothing).where(Image.campaign_id == campaign_id)
    empty = of_campaign.where(exists(submitted), Image.id.not_in(select(full.c.image_id)), *images)
    parts = [chosen, empty]
    if "categories" in filters:
        is_open = Image.id.in_(select(unnamed.c.image_id))
        of_chosen = Image.id.in_(select(chosen.subquery().c.image_id))
        parts = [chosen, empty.where(~is_open), of_campaign.where(is_open, of_chosen)]
    both = union_all(*parts).subquery()
    entries = select(literal(snapshot_id), *both.c)
    return entries.order_by(both.c.image_id, both.c.mask_id)  # as their index has them: it grows at its end


def _made_within(when: Any, filters: dict[str, Any]) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if "since" in filters:
        found.append(when >= _time("since", filters["since"]))
    if "until" in filters:
        found.append(when < _time("until", filters["until"]))
    return found


def _made_by(who: Any, filters: dict[str, Any]) -> ColumnElement[bool]:
    found: ColumnElement[bool] = who.in_(select(Annotator.id).where(Annotator.pseudonym.in_(filters["annotators"])))
    return found


def _mask_then(row: Row[Any]) -> MaskRecord:
    """A mask with the category that it had in the snapshot."""
    return MaskRecord(**{**fields(row, MaskRecord), "category_number": row.category_then})


def _record(row: Row[Any]) -> SnapshotRecord:
    categories = [CategoryRecord(number=number, name=name) for number, name in row.categories]
    return SnapshotRecord(**{**row._mapping, "categories": categories})
