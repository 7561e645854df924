"""What the database counts by itself equals what is there, whatever was done; on both databases."""

from collections import Counter
from contextlib import closing
from typing import Any

from sqlalchemy import Connection, MetaData, insert, select, text

from pipeline.storage.backup import backup, restore
from pipeline.storage.browsing import BrowseFilter, browse_images
from pipeline.storage.campaigns import campaign_status
from pipeline.storage.database import Database, migrate, open_database
from pipeline.storage.images import forget_embedding
from pipeline.storage.masks import is_current, is_proposed
from pipeline.storage.snapshots import list_snapshots
from pipeline.storage.statistics import campaign_statistics, progress_of_all
from pipeline.storage.tallies import recount
from schemas.tables import (
    Base,
    Embedding,
    EventResult,
    EventRow,
    Image,
    Instance,
    LatencyTally,
    MaskRow,
    Session,
    SnapshotItem,
    Tally,
    Task,
    WorkTally,
)
from schemas.tallies import AWAY_S, EDGES_MS, NO_CATEGORY, SLOT_S, TABLES
from tests.databases import MakeUrl
from tests.pipeline.storage.walk import Walk

Counts = dict[str, Counter[Any]]


def kept(conn: Connection) -> Counts:
    """What the database says, of all campaigns."""
    found: Counts = {name: Counter() for name in ("tallies", "work", "latency")}
    for row in conn.execute(select(Tally.__table__)):
        found["tallies"][(row.campaign_id, row.kind, row.key)] += row.amount
    for row in conn.execute(select(WorkTally.__table__)):
        key = (row.campaign_id, row.slot, row.annotator_id, row.adapter_digest, row.category_number)
        for name in ("masks", "clicks", "micros", "timed"):
            found["work"][(*key, name)] += row._mapping[name]
    for row in conn.execute(select(LatencyTally.__table__)):
        found["latency"][(row.campaign_id, row.slot, row.bin)] += row.clicks
    return {name: Counter({key: value for key, value in one.items() if value}) for name, one in found.items()}


def there(conn: Connection) -> Counts:
    """The same, by looking at every row."""
    tallies: Counter[Any] = Counter()
    for row in conn.execute(select(Image.__table__)):
        tallies[(row.campaign_id, "image", "holdout" if row.holdout else "")] += 1
        keyed = select(Embedding).where(Embedding.image_sha256 == row.sha256, Embedding.model_key == "key")
        if conn.execute(keyed).first():
            tallies[(row.campaign_id, "embedding", "")] += 1
    for row in conn.execute(select(Task.__table__)):
        tallies[(row.campaign_id, "task", row.state)] += 1
    instances = (
        select(Instance.__table__, MaskRow.num_clicks, MaskRow.source)
        .join(MaskRow, MaskRow.id == Instance.mask_id)
        .outerjoin(Session, Session.id == Instance.session_id)
    )
    for row in conn.execute(instances.where(is_current(), MaskRow.source == "annotator")):
        key = "" if row.category_number is None else str(row.category_number)
        tallies[(row.campaign_id, "mask", key)] += 1
        tallies[(row.campaign_id, "mask_click", key)] += row.num_clicks
    for row in conn.execute(instances.where(is_current(), MaskRow.source == "import")):
        tallies[(row.campaign_id, "imported", "")] += 1
    for row in conn.execute(instances.where(is_proposed())):
        tallies[(row.campaign_id, "proposal", "")] += 1
    sessions = {row.id: row.campaign_id for row in conn.execute(select(Session.__table__))}
    events = {row.event_id: row for row in conn.execute(select(EventRow.__table__))}
    opened = {row.instance_id: row for row in events.values() if row.kind == "open"}
    for row in events.values():
        if row.kind == "click":
            tallies[(sessions[row.session_id], "click", "")] += 1
    latency: Counter[Any] = Counter()
    for row in conn.execute(select(EventResult.__table__)):
        clicked = events[row.event_id]
        place = sum(sum(row.latency_ms.values()) >= edge for edge in EDGES_MS) - 1
        latency[(sessions[clicked.session_id], int(clicked.server_time.timestamp()) // SLOT_S, place)] += 1
    work: Counter[Any] = Counter()
    accepted = instances.add_columns(MaskRow.event_id, MaskRow.annotator_id, MaskRow.adapter_digest, MaskRow.created_at)
    for row in conn.execute(accepted.where(Instance.state == "accepted", MaskRow.source == "annotator")):
        took = events[row.event_id].server_time - opened[row.id].server_time
        category = NO_CATEGORY if row.category_number is None else row.category_number
        slot = int(row.created_at.timestamp()) // SLOT_S
        key = (row.campaign_id, slot, row.annotator_id, row.adapter_digest or "", category)
        work[(*key, "masks")] += 1
        work[(*key, "clicks")] += row.num_clicks
        if took.total_seconds() <= AWAY_S:
            work[(*key, "timed")] += 1
            work[(*key, "micros")] += round(took.total_seconds() * 1e6)
    counts = {"tallies": tallies, "work": work, "latency": latency}
    return {name: Counter({key: value for key, value in one.items() if value}) for name, one in counts.items()}


def check(database: Database) -> Counts:
    with database.connect() as conn:
        found = kept(conn)
        assert found == there(conn)
        for snapshot in (one for row in progress_of_all(conn) for one in list_snapshots(conn, row.campaign_id)):
            items = conn.execute(select(SnapshotItem.__table__).where(SnapshotItem.snapshot_id == snapshot.id)).all()
            assert snapshot.masks == sum(item.mask_id is not None for item in items)
            assert snapshot.images == len({item.image_id for item in items})
    return found


def test_counts_are_what_is_there_whatever_was_done(database: Database, tmp_path: Any) -> None:
    walk = Walk(database, str(tmp_path / "storage"), 1)
    for _ in range(6):
        for _ in range(5):
            walk.step()
        check(database)
    main, other = walk.catalogues
    with database.connect() as conn:
        [busy] = conn.execute(
            select(Image.id).join(Instance, Instance.image_id == Image.id)
            .where(Image.campaign_id == main.campaign_id, Instance.state == "accepted").limit(1)
        ).scalars()  # fmt: skip
    walk.freeze(main)
    walk.purge(main, busy, check)
    left = check(database)
    assert any(key[:2] == (main.campaign_id, "mask") for key in left["tallies"])
    walk.purge(main, None, check)
    left = check(database)
    assert {key[0] for one in left.values() for key in one} == {other.campaign_id}
    with database.connect() as conn:
        for table in (Tally, WorkTally, LatencyTally):
            assert not conn.execute(select(table).where(table.campaign_id == main.campaign_id)).first()


def test_counting_anew_restoring_and_upgrading_give_the_same(
    sqlite_database: Database, empty_url: MakeUrl, tmp_path: Any
) -> None:
    database = sqlite_database
    walk = Walk(database, str(tmp_path / "storage"), 3)
    for _ in range(20):
        walk.step()
    walk.freeze(walk.catalogues[0])
    with database.begin() as conn:
        for sha256, key in conn.execute(select(Embedding.image_sha256, Embedding.model_key)).all():
            forget_embedding(conn, sha256, key)  # the storage has none: a restore would leave them out
    before = check(database)
    with database.begin() as conn:
        recount(conn)
    assert check(database) == before
    url = empty_url()
    manifest = backup(database.url, str(tmp_path / "storage"), str(tmp_path / "backup"))
    assert not manifest.tables.keys() & TABLES
    restore(str(tmp_path / "backup"), url, str(tmp_path / "storage"))
    with closing(open_database(url)) as restored:
        assert check(restored) == before
        with restored.begin() as conn:  # and goes on counting
            conn.execute(text("UPDATE tasks SET state = 'skipped'"))
        assert check(restored) != before
    url = empty_url()
    with closing(Database(url)) as old, old.begin() as conn, database.connect() as source:
        migrate(conn, "0003")
        metadata = MetaData()
        metadata.reflect(conn)
        for table in metadata.sorted_tables:
            ours = Base.metadata.tables.get(table.name)
            if ours is not None:
                columns = [ours.c[column.name] for column in table.columns]
                has_parents = table.name in ("masks", "snapshots")  # with smaller numbers
                order = [ours.c.number] if has_parents else ours.primary_key
                rows = [dict(row._mapping) for row in source.execute(select(*columns).order_by(*order))]
                if rows:
                    conn.execute(insert(ours), rows)
        migrate(conn, "head")
    with closing(open_database(url)) as upgraded:
        assert check(upgraded) == check(database)
        with upgraded.connect() as conn, database.connect() as original:
            for catalogue in walk.catalogues:
                campaign = catalogue.campaign_id
                assert list_snapshots(conn, campaign) == list_snapshots(original, campaign)
                assert campaign_status(conn, campaign) == campaign_status(original, campaign)
                assert campaign_statistics(conn, campaign) == campaign_statistics(original, campaign)
                page = browse_images(conn, campaign, BrowseFilter(state="done"))
                assert page == browse_images(original, campaign, BrowseFilter(state="done"))
