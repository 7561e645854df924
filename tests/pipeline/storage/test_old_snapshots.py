"""Which snapshots' entries go."""

from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from pipeline.storage import adapters, old_snapshots, requests
from pipeline.storage.old_snapshots import collect_entries
from pipeline.storage.snapshots import create_snapshot, get_snapshot
from pipeline.storage.sql import database_now
from schemas.columns import db_now
from schemas.tables import Adapter, Snapshot, SnapshotItem
from tests.pipeline.storage.catalogues import SHA, Catalogue, new_uuid, sha


def _snapshot(catalogue: Catalogue, purpose: str, days: float, adapter: str | None = None) -> str:
    with catalogue.database.begin() as conn:
        made = create_snapshot(conn, catalogue.campaign_id, purpose)
        taken = database_now(conn) - timedelta(days=days)
        conn.execute(update(Snapshot).where(Snapshot.id == made.id).values(created_at=taken))
        if adapter:
            adapters.register_adapter(
                conn, digest=adapter, campaign_id=catalogue.campaign_id, kind="head", uri="", model_digest=SHA,
                model_key="key", parent_digest=None, snapshot_id=made.id, seed=0,
            )  # fmt: skip
    return made.id


def _entries(catalogue: Catalogue, snapshot_id: str) -> int:
    with catalogue.database.connect() as conn:
        query = select(func.count()).select_from(SnapshotItem).where(SnapshotItem.snapshot_id == snapshot_id)
        return int(conn.execute(query).scalar_one())


def test_entries_of_old_retrains_without_an_adapter_go(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(old_snapshots, "_CHUNK", 2)
    for _ in range(3):
        catalogue.label(catalogue.claim())
    there, removed, planned = sha("there"), sha("removed"), sha("planned")
    failed = _snapshot(catalogue, "retrain", 40)
    of_removed = _snapshot(catalogue, "retrain", 40, removed)
    of_planned = _snapshot(catalogue, "retrain", 40, planned)
    stay = [_snapshot(catalogue, "retrain", 40, there), _snapshot(catalogue, "retrain", 20)]
    stay.append(_snapshot(catalogue, "export", 400))
    with catalogue.database.begin() as conn:
        conn.execute(update(Adapter).where(Adapter.digest == removed).values(removed_at=db_now()))
        job = requests.insert_request(conn, new_uuid(), "retrain", catalogue.campaign_id, {})

    assert collect_entries(catalogue.database) == 0  # a job of the campaign could go on with its snapshot
    with catalogue.database.begin() as conn:
        requests.cancel_request(conn, job.id)

    assert collect_entries(catalogue.database, dry_run=True) == 6
    assert collect_entries(catalogue.database, dry_run=True, gone=[planned]) == 9
    assert collect_entries(catalogue.database) == 6
    assert [_entries(catalogue, made) for made in (failed, of_removed, of_planned, *stay)] == [0, 0, 3, 3, 3, 3]
    with catalogue.database.connect() as conn:
        assert get_snapshot(conn, failed).masks == 3
    assert collect_entries(catalogue.database) == 0
    assert collect_entries(catalogue.database, older_than=timedelta(days=10)) == 3
