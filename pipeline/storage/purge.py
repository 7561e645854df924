"""Removing an image or a campaign for good: its rows, its embeddings, and of a campaign its adapters.

The tombstone comes first, in the transaction that checks that nobody is at work and that keeps anybody from beginning.
Then rows go in chunks, those that name others before those that are named, each chunk with its count in a transaction
of its own, so that annotators of other images wait for none of it long; a purge that was interrupted is gone on with by
asking for it again. Files go before the rows that name them. Source images and exported snapshots are never touched.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    case,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import aliased

from pipeline.embeddings.store import EmbeddingStore
from pipeline.storage.campaigns import get_campaign
from pipeline.storage.database import Database
from pipeline.storage.files import join, open_storage, remove_folder
from pipeline.storage.requests import ACTIVE, STALE
from pipeline.storage.snapshots import remove_items
from pipeline.storage.sql import database_now, new_id, one
from pipeline.storage.tallies import counted, forget_tallies
from pipeline.storage.tombstones import tombstone_record
from schemas.campaigns import CampaignRecord
from schemas.catalogue import TombstoneRecord
from schemas.columns import db_now
from schemas.errors import NotFoundError, StateError
from schemas.tables import (
    Adapter,
    Base,
    Campaign,
    Category,
    Embedding,
    Evaluation,
    EventResult,
    EventRow,
    Image,
    Instance,
    Lease,
    MaskRow,
    Promotion,
    Purge,
    Request,
    Session,
    Snapshot,
    SnapshotItem,
    Source,
    Task,
)

logger = logging.getLogger(__name__)
Progress = Callable[[dict[str, Any]], None]

QUARANTINE = "It is being purged."
_CHUNK = 500
_FIRST = 10
_IMAGES = 100
_CHUNK_S = 0.2
"""How long a transaction may take, about: others wait for it on SQLite."""


@dataclass(frozen=True)
class Scope:
    """What goes: a campaign, or one of its images."""

    campaign: CampaignRecord
    image_id: str | None = None

    @property
    def images(self) -> Select[Any]:
        """A query for the ids of its images."""
        query = select(Image.id).where(Image.campaign_id == self.campaign.id)
        return query if self.image_id is None else query.where(Image.id == self.image_id)

    def of(self, table: Any, images: Sequence[str] | None = None) -> ColumnElement[bool]:
        """The condition on a table that names campaign and image; only of some `images`, if they are given."""
        mine: ColumnElement[bool] = table.campaign_id == self.campaign.id
        if images is None and self.image_id is None:
            return mine
        return and_(mine, table.image_id.in_([self.image_id] if images is None else images))


@dataclass(frozen=True)
class _Step:
    """Rows of one kind in a table: a query for the keys of those of a scope (and of some of its images)."""

    table: type[Base]
    key: Any
    query: Callable[[Scope, Sequence[str] | None], Select[Any]]

    @property
    def kind(self) -> str:
        return str(self.table.__tablename__)


def _by_image(table: Any, order: Any = None) -> _Step:
    """Of a table that names campaign and image."""
    return _Step(table, table.id, lambda scope, ids: select(table.id).where(scope.of(table, ids)).order_by(order))


def _by_campaign(table: Any, order: Any = None) -> _Step:
    """Of a table that names the campaign."""
    mine = select(table.id).order_by(order)
    return _Step(table, table.id, lambda scope, ids: mine.where(table.campaign_id == scope.campaign.id))


def _items(scope: Scope, ids: Sequence[str] | None) -> Select[Any]:
    ours = select(Snapshot.id).where(Snapshot.campaign_id == scope.campaign.id)
    items = select(SnapshotItem.id).where(SnapshotItem.snapshot_id.in_(ours))
    if ids is None and scope.image_id is None:
        return items
    return items.where(SnapshotItem.image_id.in_([scope.image_id] if ids is None else ids))


def _events(scope: Scope, ids: Sequence[str] | None) -> Select[Any]:
    of_session = select(EventRow.event_id).join(Session, Session.id == EventRow.session_id)
    return of_session.where(scope.of(Session, ids))


def _results(scope: Scope, ids: Sequence[str] | None) -> Select[Any]:
    of_event = select(EventResult.event_id).join(EventRow, EventRow.event_id == EventResult.event_id)
    return of_event.join(Session, Session.id == EventRow.session_id).where(scope.of(Session, ids))


def _leases(scope: Scope, ids: Sequence[str] | None) -> Select[Any]:
    return select(Lease.claim_id).join(Task, Task.id == Lease.task_id).where(scope.of(Task, ids))


def _promotions(scope: Scope, ids: Sequence[str] | None) -> Any:
    mine = Promotion.campaign_id == scope.campaign.id
    return select(Promotion.campaign_id, Promotion.version).where(mine)


def _of_campaign(scope: Scope) -> ColumnElement[bool]:
    """Its jobs, with the one that made it, whose row names no campaign."""
    made = Request.payload["create"]["id"].as_string() == scope.campaign.id
    return or_(Request.campaign_id == scope.campaign.id, and_(Request.campaign_id.is_(None), made))


def _jobs(scope: Scope, ids: Sequence[str] | None) -> Select[Any]:
    return select(Request.id).where(_of_campaign(scope))


_SNAPSHOT_ITEMS = _Step(SnapshotItem, SnapshotItem.id, _items)
"""First of all: no foreign key keeps what they name."""
_IMAGE_STEPS = (
    _by_image(Instance),
    _Step(EventResult, EventResult.event_id, _results),
    _by_image(MaskRow, MaskRow.number.desc()),  # a mask has a larger number than its parent
    _Step(EventRow, EventRow.event_id, _events),
    _by_image(Session),
    _Step(Lease, Lease.claim_id, _leases),
    _by_image(Task),
    _by_image(Source),
)
"""Each before what it names."""
_CAMPAIGN_STEPS = (
    _by_campaign(Source),  # those of no image
    _by_campaign(Evaluation),
    _Step(Promotion, tuple_(Promotion.campaign_id, Promotion.version), _promotions),
    _by_campaign(Snapshot, Snapshot.number.desc()),
    _Step(Request, Request.id, _jobs),
    _by_campaign(Category),
)


def find_scope(conn: Connection, campaign: str, image: str | None = None) -> Scope:
    """What a purge is of.

    Args:
        conn: Transaction.
        campaign: Name or id.
        image: Number or id; also of an image whose purge was interrupted. None: the whole campaign.

    Raises:
        NotFoundError: There is no such campaign or image, or it was purged before.
    """
    record = get_campaign(conn, campaign)
    if image is None:
        return Scope(record)
    number = int(image) if image.isdecimal() and len(image) < 10 else None
    found = one(
        conn, select(Image.id).where(Image.campaign_id == record.id, or_(Image.id == image, Image.number == number))
    )
    if found is not None:
        return Scope(record, found.id)
    gone = conn.execute(
        select(Purge.__table__)
        .where(Purge.campaign_id == record.id, or_(Purge.image_id == image, Purge.image_number == number))
        .order_by(Purge.started_at.desc())
    ).first()
    if gone is None:
        raise NotFoundError(f"Campaign {record.name!r} has no image {image[:40]!r}. Give its number or id.")
    if gone.state == "running":
        return Scope(record, gone.image_id)
    raise NotFoundError(tombstone_record(gone).text)


def count(conn: Connection, scope: Scope) -> dict[str, int]:
    """How many rows of each kind a purge would remove now; kinds of which there are none are left out."""
    steps = (_SNAPSHOT_ITEMS, *_IMAGE_STEPS, *(() if scope.image_id else _CAMPAIGN_STEPS))
    queries: dict[str, Select[Any]] = {step.kind: step.query(scope, None) for step in steps}
    queries["images"] = scope.images
    queries["embeddings"] = select(Embedding.image_sha256).where(
        Embedding.model_key == scope.campaign.model_key,
        Embedding.image_sha256.in_(_shas(scope).where(~_is_used_elsewhere(scope))),
    )
    if scope.image_id is None:
        queries["adapters"] = select(Adapter.digest).where(Adapter.campaign_id == scope.campaign.id)
    found = {kind: conn.execute(select(func.count()).select_from(q.subquery())) for kind, q in queries.items()}
    return {kind: number for kind, rows in found.items() if (number := int(rows.scalar_one()))}


def holding_snapshots(conn: Connection, scope: Scope) -> list[dict[str, Any]]:
    """Exported snapshots that hold data of the scope: number, id, paths, adapters.

    `paths` are those that finished requests tell, `adapters` the digests that the manifest names because of this data.
    """
    inside = exists().where(SnapshotItem.snapshot_id == Snapshot.id, SnapshotItem.image_id.in_(scope.images))
    exported = select(Snapshot.id, Snapshot.number).where(
        Snapshot.campaign_id == scope.campaign.id, Snapshot.purpose == "export", inside
    )
    found = {
        row.id: {"number": row.number, "id": row.id, "paths": [], "adapters": []}
        for row in conn.execute(exported.order_by(Snapshot.number))
    }
    result = Request.result
    for kind, at in (("export", ()), ("campaign", ("export",))):  # a campaign's job tells of its steps
        facts = [result[(*at, name)].as_string() for name in ("snapshot_id", "manifest_uri")]
        written = select(*facts).where(Request.kind == kind, Request.state == "done")
        for snapshot_id, uri in conn.execute(written.order_by(Request.created_at)):
            if snapshot_id in found and uri:
                found[snapshot_id]["paths"].append(uri.removesuffix("/manifest.json"))
    adapters = (
        select(SnapshotItem.snapshot_id, MaskRow.adapter_digest)
        .join(MaskRow, MaskRow.id == SnapshotItem.mask_id)
        .where(SnapshotItem.snapshot_id.in_(list(found)), SnapshotItem.image_id.in_(scope.images))
        .where(MaskRow.adapter_digest.is_not(None))
    )
    for snapshot_id, digest in conn.execute(adapters.distinct()):
        found[snapshot_id]["adapters"].append(digest)
    return list(found.values())


def purge(
    database: Database,
    scope: Scope,
    storage_url: str,
    *,
    purged_by: str,
    cache_dir: str | None = None,
    work_dir: str | None = None,
    progress: Progress | None = None,
    chunk: int = _CHUNK,
) -> TombstoneRecord:
    """Remove an image or a campaign; asked for again, it goes on where it was interrupted.

    Args:
        database: The catalogue.
        scope: What goes.
        storage_url: Of the embeddings and adapters.
        purged_by: Who asks, for the tombstone.
        cache_dir: Local folder with copies of a remote storage's embeddings.
        work_dir: Local folder of the trainer, which holds embeddings of mirrored images.
        progress: Called after each chunk with the counts so far.
        chunk: Rows of a transaction at most.

    Returns:
        The tombstone, with all counts.

    Raises:
        NotFoundError: It is not there any more.
        StateError: Somebody is at work on it, or a job of the campaign waits or runs; nothing is changed.
        OSError: A file cannot be removed; ask again to go on.
    """
    with database.begin() as conn:
        purge_id = _begin(conn, scope, purged_by)
    run = _Purge(database, scope, purge_id, progress or (lambda facts: None), chunk)
    stores = [EmbeddingStore(storage_url, cache_dir)]
    if work_dir is not None:
        stores.append(EmbeddingStore(join(work_dir, "mirrored")))
    run.remove_rows(_SNAPSHOT_ITEMS)
    while images := run.next_images():
        for step in _IMAGE_STEPS:
            run.remove_rows(step, images)
        run.remove_images(images, stores)
    if scope.image_id is None:
        run.remove_adapters(storage_url)
        for step in _CAMPAIGN_STEPS:
            run.remove_rows(step)
    found = run.finish()
    logger.info("purged campaign_id=%s image_id=%s %s", scope.campaign.id, scope.image_id, found.counts)
    return found


def _begin(conn: Connection, scope: Scope, purged_by: str) -> str:
    """Write the tombstone, or find that of an interrupted purge; from now on nobody begins anything here."""
    # Tasks before the campaign, as a claim and an accept lock them; the campaign against every row that names it.
    conn.execute(select(Task.id).where(scope.of(Task), Task.state == "leased").with_for_update())
    locked = select(Campaign.id).where(Campaign.id == scope.campaign.id).with_for_update()
    if one(conn, locked) is None:
        raise NotFoundError(f"There is no campaign {scope.campaign.name!r} any more.")
    running = select(Purge.id, Purge.image_id).where(
        Purge.campaign_id == scope.campaign.id, Purge.state == "running",
        or_(Purge.image_id.is_(None), Purge.image_id == scope.image_id),
    )  # fmt: skip
    known = {row.image_id: str(row.id) for row in conn.execute(running)}
    if scope.image_id is not None and None in known:
        raise StateError(f"Campaign {scope.campaign.name!r} is being purged as a whole.", purge_id=known[None])
    if scope.image_id in known:
        return known[scope.image_id]
    _require_idle(conn, scope)
    image = one(conn, select(Image.__table__).where(Image.id == scope.image_id))
    if scope.image_id is not None and image is None:
        raise NotFoundError("The image is not there any more.")
    # The leases that are left have expired: whoever held them gets a clear refusal.
    conn.execute(update(Session).where(scope.of(Session), Session.state == "open").values(state="lost"))
    conn.execute(update(Image).where(Image.id == scope.image_id).values(quarantine_reason=QUARANTINE))
    largest = select(func.coalesce(func.max(MaskRow.number), 0)).where(scope.of(MaskRow))
    purge_id = new_id()
    conn.execute(
        insert(Purge).values(
            id=purge_id,
            campaign_id=scope.campaign.id,
            campaign_name=scope.campaign.name,
            image_id=scope.image_id,
            image_number=image.number if image else None,
            image_sha256=image.sha256 if image else None,
            mask_number=conn.execute(largest).scalar_one(),
            state="running",
            purged_by=purged_by[:200],
            counts={},
            snapshots=holding_snapshots(conn, scope),
            started_at=db_now(),
        )
    )
    return purge_id


def _require_idle(conn: Connection, scope: Scope) -> None:
    held = conn.execute(
        select(func.count())
        .select_from(Task)
        .where(scope.of(Task), Task.state == "leased", Task.lease_expires_at > db_now())
    ).scalar_one()
    if held:
        raise StateError(
            f"{held} image{'s are' if held > 1 else ' is'} being worked on. Let the annotators submit or release, or "
            "wait until the leases expire, then purge again; `clickloop campaign pause` gives out no new tasks."
        )
    mine = (_of_campaign(scope), Request.state.in_(ACTIVE))
    silent = Request.heartbeat_at < database_now(conn) - STALE
    dead = case((Request.state == "running", silent), else_=scope.image_id is None)
    conn.execute(update(Request).where(*mine, dead).values(state="cancelled", updated_at=db_now()))
    active = conn.execute(select(Request.id, Request.kind, Request.state).where(*mine).limit(1)).one_or_none()
    if active is not None:
        article = "An" if active.kind[0] in "aeiou" else "A"
        raise StateError(
            f"{article} {active.kind} job of this campaign is {active.state}: request {active.id}. Wait for it (one "
            "that was cut off goes on when its command is run again), or cancel it on the campaigns page, then purge "
            "again.",
            request_id=active.id,
        )


def _shas(scope: Scope) -> Select[Any]:
    return select(Image.sha256).where(Image.id.in_(scope.images))


def _is_used_elsewhere(scope: Scope) -> ColumnElement[bool]:
    """Whether another campaign reads the same embedding of an image."""
    other, theirs = aliased(Image), aliased(Campaign)
    return exists(
        select(other.id)
        .join(theirs, theirs.id == other.campaign_id)
        .where(other.sha256 == Image.sha256, other.campaign_id != scope.campaign.id)
        .where(theirs.model_key == scope.campaign.model_key)
    ).correlate(Image)


class _Purge:
    """One purge while it runs."""

    def __init__(self, database: Database, scope: Scope, purge_id: str, progress: Progress, chunk: int) -> None:
        self.database, self.scope, self.id, self.progress = database, scope, purge_id, progress
        self.chunk = chunk
        self.limits: dict[str, int] = {}
        """Rows of a kind that a transaction takes: how long one takes depends on how much may name it."""

    def next_images(self) -> list[str]:
        """Ids of some images that are left."""
        with self.database.connect() as conn:
            return list(conn.execute(self.scope.images.order_by(Image.number).limit(_IMAGES)).scalars())

    def remove_rows(self, step: _Step, images: Sequence[str] | None = None) -> None:
        """Delete rows of a kind, of some images, until there are none."""
        removed = limit = 1
        while removed >= limit:
            began, limit = time.monotonic(), self.limits.get(step.kind, min(self.chunk, _FIRST))
            with self._write() as conn:
                removed = self._remove(conn, step, images, limit)
                counts = self._count(conn, {step.kind: removed}) if removed else {}
            if counts:
                self.progress(counts)
            fitting = int(limit * _CHUNK_S / max(time.monotonic() - began, 1e-3))
            self.limits[step.kind] = max(1, min(self.chunk, fitting, 4 * limit))

    def _remove(self, conn: Connection, step: _Step, images: Sequence[str] | None, limit: int) -> int:
        """Delete some rows of a kind, and keep the counts that no trigger keeps."""
        chosen = step.query(self.scope, images).limit(limit)
        if step.table is SnapshotItem:
            return remove_items(conn, self.scope.campaign.id, chosen)
        gone = delete(step.table).where(step.key.in_(chosen))
        if step.table is Instance and images is not None:
            with counted(conn, self.scope.campaign.id, images):
                return conn.execute(gone).rowcount
        return conn.execute(gone).rowcount

    def remove_images(self, images: Sequence[str], stores: Sequence[EmbeddingStore]) -> None:
        """Delete images with those of their embeddings that no other campaign reads."""
        key = self.scope.campaign.model_key
        lone = select(Image.sha256).where(Image.id.in_(images), ~_is_used_elsewhere(self.scope))
        with self.database.connect() as conn:
            shas = list(conn.execute(lone).scalars())
            mine = and_(Embedding.model_key == key, Embedding.image_sha256.in_(shas))
            stored = list(conn.execute(select(Embedding.image_sha256).where(mine)).scalars())
        for sha256 in stored:
            for store in stores:
                store.delete(key, sha256)
        with self._write() as conn:
            removed = {
                "embeddings": conn.execute(delete(Embedding).where(mine)).rowcount,
                "images": conn.execute(delete(Image).where(Image.id.in_(images))).rowcount,
            }
            counts = self._count(conn, removed)
        self.progress(counts)

    def remove_adapters(self, storage_url: str) -> None:
        """Delete a campaign's adapters with their files."""
        fs, root = open_storage(storage_url)
        with self.database.connect() as conn:
            mine = select(Adapter.digest).where(Adapter.campaign_id == self.scope.campaign.id)
            digests = list(conn.execute(mine.order_by(Adapter.number)).scalars())
        for digest in digests:
            remove_folder(fs, join(root, "adapters", digest))
            with self._write() as conn:
                gone = conn.execute(delete(Adapter).where(Adapter.digest == digest)).rowcount
                counts = self._count(conn, {"adapters": gone})
            self.progress(counts)

    def finish(self) -> TombstoneRecord:
        """Say that it is done; of a campaign, the row itself goes, and its images' interrupted purges are done, too."""
        with self._write() as conn:
            done = update(Purge).where(Purge.state == "running")
            if self.scope.image_id is None:
                conn.execute(delete(Campaign).where(Campaign.id == self.scope.campaign.id))
                forget_tallies(conn, self.scope.campaign.id)
                done = done.where(Purge.campaign_id == self.scope.campaign.id)
            else:
                done = done.where(Purge.id == self.id)
            conn.execute(done.values(state="done", finished_at=db_now()))
            return tombstone_record(conn.execute(select(Purge.__table__).where(Purge.id == self.id)).one())

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """A write transaction that leaves nothing of what it deletes in SQLite's file."""
        with self.database.begin() as conn:
            if self.database.dialect == "sqlite":
                conn.exec_driver_sql("PRAGMA secure_delete = ON")
            yield conn

    def _count(self, conn: Connection, removed: dict[str, int]) -> dict[str, int]:
        """Add to the tombstone's counts, in the transaction that removed the rows."""
        query = select(Purge.counts).where(Purge.id == self.id).with_for_update()
        counts: dict[str, int] = dict(conn.execute(query).scalar_one())
        for kind, number in removed.items():
            if number:
                counts[kind] = counts.get(kind, 0) + number
        conn.execute(update(Purge).where(Purge.id == self.id).values(counts=counts))
        return counts
