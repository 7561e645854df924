"""Entries of snapshots that were taken to retrain and that nothing will read again.

Exports stand on theirs, which stay. A retrain reads its snapshot once; while its adapter is there, the entries tell
what that one learned from. As every retrain copies all current masks, they would outgrow what they tell of.
"""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Select, delete, exists, func, select

from pipeline.storage.database import Database
from pipeline.storage.old_weights import MIN_AGE
from pipeline.storage.requests import ACTIVE
from schemas.tables import Adapter, Request, Snapshot, SnapshotItem

_CHUNK = 5000


def collect_entries(
    database: Database,
    *,
    older_than: timedelta = MIN_AGE,
    gone: Collection[str] = (),
    dry_run: bool = False,
) -> int:
    """Remove entries of retrains' snapshots in short transactions; their rows stay, with what they counted.

    Args:
        database: The catalogue.
        older_than: What was taken later stays.
        gone: Digests of adapters that count as removed, for a dry run.
        dry_run: Count only.

    Returns:
        How many entries were (or would be) removed.
    """
    useless = _useless(datetime.now(UTC) - older_than, gone)
    entries = select(SnapshotItem.id).where(SnapshotItem.snapshot_id.in_(useless))
    if dry_run:
        with database.connect() as conn:
            return int(conn.execute(select(func.count()).select_from(entries.subquery())).scalar_one())
    done, removed = 0, _CHUNK
    while removed == _CHUNK:
        with database.begin() as conn:
            removed = conn.execute(delete(SnapshotItem).where(SnapshotItem.id.in_(entries.limit(_CHUNK)))).rowcount
        done += removed
    return done


def _useless(before: datetime, gone: Collection[str]) -> Select[Any]:
    """Older snapshots of retrains whose adapter is not there, of campaigns without a job that could go on with one."""
    there = Adapter.removed_at.is_(None), Adapter.digest.not_in(gone)
    adapter = exists().where(Adapter.snapshot_id == Snapshot.id, *there)
    job = exists().where(Request.campaign_id == Snapshot.campaign_id, Request.state.in_(ACTIVE))
    return select(Snapshot.id).where(Snapshot.purpose == "retrain", Snapshot.created_at < before, ~adapter, ~job)
