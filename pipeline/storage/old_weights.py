"""Weights that nobody will ask for again: adapters, models, and checkpoints of trainings that are over.

Only files that this catalogue registered are looked at. An adapter goes when the gate rejected it or another one took
its place, that is long enough ago, and nothing can need it: see `_needs_adapter`. Whatever was logged or stored with a
model or an adapter keeps it, so that replay always can. References are looked for twice: once for all, and for each
again in the transaction that removes its file, in which nobody can promote, create a campaign or begin a job. A new
campaign looks for its model once more when its row is there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from pydantic import BaseModel
from sqlalchemy import Connection, Row, delete, or_, select, text, update

from pipeline.storage.adapters import standing_promotions
from pipeline.storage.database import Database
from pipeline.storage.files import files_below, join, open_storage, remove
from pipeline.storage.requests import ACTIVE
from pipeline.storage.sql import one
from schemas.columns import db_now
from schemas.tables import Adapter, Campaign, EventRow, MaskRow, Model, Promotion, Purge, Request

MIN_AGE = timedelta(days=30)
KEEP_PROMOTED = 3
CHECKPOINT_AGE = timedelta(days=1)
"""A finished training answers a repeated call from its checkpoint."""


class Removed(BaseModel):
    """A file, or an adapter's folder, that was (or would be) removed.

    Attributes:
        kind: adapters, models or checkpoints.
        name: Digest, or the request's id.
        reason: For people.
    """

    kind: str
    name: str
    size_bytes: int
    reason: str


@dataclass
class _References:
    """Digests that something names."""

    adapters: set[str | None] = field(default_factory=set)
    models: set[str | None] = field(default_factory=set)


def collect_weights(
    database: Database,
    storage_url: str,
    *,
    older_than: timedelta = MIN_AGE,
    keep_promoted: int = KEEP_PROMOTED,
    dry_run: bool = False,
    now: datetime | None = None,
) -> list[Removed]:
    """Remove adapters and models that nothing needs; safe while others work, and to be repeated after a kill.

    Args:
        database: The catalogue that the storage belongs to.
        storage_url: The storage.
        older_than: What is younger, or was live since, stays.
        keep_promoted: So many earlier adapters stay that rolling back would make live.
        dry_run: Only say which.
        now: From when the age counts, aware; None: this machine's clock.

    Raises:
        OSError: A file cannot be removed.
    """
    before = (now or datetime.now(UTC)) - older_than
    fs, root = open_storage(storage_url)
    collector = _Collector(database, fs, root, before, keep_promoted, dry_run)
    return [*collector.adapters(), *collector.models()]


def collect_checkpoints(
    database: Database, folder: Path, *, dry_run: bool = False, now: datetime | None = None
) -> list[Removed]:
    """Remove checkpoints of trainings that are over.

    Args:
        database: The catalogue.
        folder: Of the trainer on this machine.
        dry_run: Only say which.
        now: From when the age counts, aware; None: this machine's clock.
    """
    before = ((now or datetime.now(UTC)) - CHECKPOINT_AGE).timestamp()
    found = []
    for path in sorted(folder.glob("*.checkpoint")):
        facts = path.stat()
        with database.connect() as conn:
            state = conn.execute(select(Request.state).where(Request.id == path.stem)).scalar_one_or_none()
        if facts.st_mtime >= before or state in ACTIVE:  # what is over never becomes active again
            continue
        reason = f"its retrain is {state}" if state else "its retrain is not known any more"
        found.append(Removed(kind="checkpoints", name=path.stem, size_bytes=facts.st_size, reason=reason))
        if not dry_run:
            path.unlink(missing_ok=True)
    return found


class _Collector:
    """One pass over the catalogue."""

    def __init__(
        self,
        database: Database,
        fs: AbstractFileSystem,
        root: str,
        before: datetime,
        keep_promoted: int,
        dry_run: bool,
    ) -> None:
        self.database, self.fs, self.root = database, fs, root
        self.before, self.keep_promoted, self.dry_run = before, keep_promoted, dry_run
        self.gone: set[str] = set()
        fs.invalidate_cache()

    def adapters(self) -> Iterator[Removed]:
        """Of all campaigns."""
        with self.database.connect() as conn:
            logged = _logged(conn)
            there = select(Adapter.digest).where(Adapter.removed_at.is_(None), Adapter.created_at < self.before)
            digests = list(conn.execute(there.order_by(Adapter.campaign_id, Adapter.number)).scalars())
        for digest in digests:
            if digest in logged.adapters:
                continue
            files = self._files(join(self.root, "adapters", digest))
            with self.database.connect() if self.dry_run else self.database.begin() as conn:
                if not self.dry_run:
                    _hold(conn)
                row = one(conn, select(Adapter.__table__).where(Adapter.digest == digest))
                if row is None or row.removed_at is not None or self._needs_adapter(conn, row):
                    continue
                if not self.dry_run:
                    self._remove(files)
                    conn.execute(update(Adapter).where(Adapter.digest == digest).values(removed_at=db_now()))
            self.gone.add(digest)
            reason = "the gate rejected it" if row.state == "rejected" else "another one took its place"
            size = sum(size for _, size in files)
            yield Removed(
                kind="adapters", name=digest, size_bytes=size, reason=f"adapter {row.number} of its campaign: {reason}"
            )

    def models(self) -> Iterator[Removed]:
        """Those that no campaign, adapter, mask or event names."""
        with self.database.connect() as conn:
            logged = _logged(conn)
            old = select(Model.digest, Model.model_id).where(Model.created_at < self.before)
            rows = conn.execute(old.order_by(Model.digest)).all()
        for digest, model_id in rows:
            if digest in logged.models:
                continue
            files = self._files(join(self.root, "models"), f"{digest}.")
            with self.database.connect() if self.dry_run else self.database.begin() as conn:
                if not self.dry_run:
                    _hold(conn)
                if self._needs_model(conn, digest):
                    continue
                if not self.dry_run:
                    self._remove(files)
                    conn.execute(delete(Model).where(Model.digest == digest))
            reason = f"no campaign, adapter, mask or event names these weights of {model_id}"
            yield Removed(kind="models", name=digest, size_bytes=sum(size for _, size in files), reason=reason)

    def _needs_adapter(self, conn: Connection, row: Row[Any]) -> bool:
        """Whether anything can ask for it, besides what was logged with it."""
        if row.state not in ("rejected", "retired"):
            return True  # a candidate may be promoted, the promoted one is live
        live = select(Campaign.id).where(Campaign.live_adapter == row.digest)
        busy = select(Request.id).where(Request.campaign_id == row.campaign_id, Request.state.in_(ACTIVE))
        changed = or_(Promotion.adapter_digest == row.digest, Promotion.previous_digest == row.digest)
        was_live = select(Promotion.version).where(changed, Promotion.created_at >= self.before)
        if any(conn.execute(query.limit(1)).first() for query in (live, busy, was_live)):
            return True
        standing = [digest for digest in standing_promotions(conn, row.campaign_id) if digest is not None]
        return row.digest in standing[-(self.keep_promoted + 1) :]  # the live one and those below it

    def _needs_model(self, conn: Connection, digest: str) -> bool:
        # One without its file needs no model; in a dry run those count that would be gone.
        adapters = select(Adapter.digest).where(Adapter.model_digest == digest, Adapter.removed_at.is_(None))
        if any(adapter not in self.gone for adapter in conn.execute(adapters).scalars()):
            return True
        creating = select(Request.id).where(Request.campaign_id.is_(None), Request.state.in_(ACTIVE))
        pinned = select(Campaign.id).where(Campaign.model_digest == digest)
        return any(conn.execute(query.limit(1)).first() for query in (creating, pinned))

    def _files(self, folder: str, prefix: str = "") -> list[tuple[str, int]]:
        """Path and bytes of files in a folder of the storage whose names begin like this."""
        found = files_below(self.fs, folder)
        return [(path, int(facts["size"])) for path, facts in found.items() if path.split("/")[-1].startswith(prefix)]

    def _remove(self, files: list[tuple[str, int]]) -> None:
        for path, _ in files:
            remove(self.fs, path)


def _hold(conn: Connection) -> None:
    """Until the transaction ends nobody promotes, makes a campaign or begins a job (on SQLite nobody writes anyway)."""
    if conn.dialect.name == "postgresql":
        conn.execute(text("LOCK TABLE campaigns, requests IN SHARE ROW EXCLUSIVE MODE"))


def _logged(conn: Connection) -> _References:
    """What masks, events and the exports of purged data were made with."""
    found = _References()
    for adapter, model in conn.execute(select(MaskRow.adapter_digest, MaskRow.model_digest).distinct()):
        found.adapters.add(adapter)
        found.models.add(model)
    pins = EventRow.pins
    query = select(pins["adapter_digest"].as_string(), pins["model_digest"].as_string())
    for adapter, model in conn.execute(query.where(pins.is_not(None)).distinct()):
        found.adapters.add(adapter)
        found.models.add(model)
    for snapshots in conn.execute(select(Purge.snapshots)).scalars():
        for snapshot in snapshots:
            found.adapters.update(snapshot["adapters"])
    return found
