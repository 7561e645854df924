"""What the database counts by itself equals what is there, whatever was done; on both databases."""

import random
from collections import Counter
from contextlib import closing
from typing import Any

from sqlalchemy import Connection, MetaData, insert, select, text

from pipeline.storage.backup import backup, restore
from pipeline.storage.browsing import BrowseFilter, browse_images
from pipeline.storage.campaigns import campaign_status
from pipeline.storage.click_log import record_results
from pipeline.storage.database import Database, migrate, open_database
from pipeline.storage.effects import Effects, InstanceChange
from pipeline.storage.images import forget_embedding, record_embeddings
from pipeline.storage.masks import current_masks, import_mask, is_current, is_proposed
from pipeline.storage.prelabels import store_prelabels
from pipeline.storage.purge import find_scope, purge
from pipeline.storage.snapshots import create_snapshot, list_snapshots
from pipeline.storage.statistics import campaign_statistics, progress_of_all
from pipeline.storage.tallies import recount
from schemas.catalogue import EventResultRecord
from schemas.masks import Rle
from schemas.predictions import Pins, Prelabel
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
from tests.pipeline.storage.catalogues import SHA, Catalogue, event, new_mask, new_uuid, sha

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


class Walk:
    """Random moves of people and jobs in two campaigns that share a model and some images."""

    def __init__(self, database: Database, storage_url: str, seed: int) -> None:
        self.database, self.storage_url, self.random = database, storage_url, random.Random(seed)
        self.catalogues = [Catalogue(database, images=4) for _ in range(2)]

    def step(self) -> None:
        catalogue = self.random.choice(self.catalogues)
        moves = (
            self.label,
            self.label,
            self.leave,
            self.take_back,
            self.encode,
            self.propose,
            self.bring,
            self.compute,
        )
        self.random.choice((*moves, self.freeze))(catalogue)

    def claim(self, catalogue: Catalogue) -> Any:
        return catalogue.claim(image_id=self.random.choice(catalogue.images).id)

    def accept(self, catalogue: Catalogue, claim: Any, seq: int, opened: str | None = None, **fields: Any) -> Any:
        """Open, click and accept an instance, its first event being number `seq`."""
        instance = new_uuid()
        start = event(claim, seq, "open", instance_id=instance, payload={"mask_id": opened})
        catalogue.append(claim, start, effects=Effects([InstanceChange(instance)]))
        clicked = event(claim, seq + 1, instance_id=instance)
        catalogue.append(claim, clicked)
        category = self.random.choice([1, 2, None])
        mask = new_mask(instance, seq + 1, category_number=category, num_clicks=self.random.randrange(9), **fields)
        accept = event(claim, seq + 2, "accept", instance_id=instance, payload={"seq": seq + 1, "mask_sha256": SHA})
        change = InstanceChange(instance, "accepted", category, mask_id=mask.mask_id)
        catalogue.append(claim, accept, effects=Effects([change], mask))
        return instance

    def label(self, catalogue: Catalogue) -> None:
        """New masks, and some in the place of those that are there."""
        claim = self.claim(catalogue)
        with self.database.connect() as conn:
            there = [mask.id for mask in current_masks(conn, catalogue.campaign_id, image_id=claim.image.id)]
        opened = [None, *self.random.sample(there, min(len(there), 2))]
        for place, mask_id in enumerate(opened):
            self.accept(catalogue, claim, 3 * place + 1, mask_id, adapter_digest=self.random.choice([None, SHA]))
        catalogue.append(claim, event(claim, 3 * len(opened) + 1, "submit"))

    def leave(self, catalogue: Catalogue) -> None:
        """Masks of a session that is not submitted do not count as current."""
        claim = self.claim(catalogue)
        self.accept(catalogue, claim, 1)
        catalogue.append(claim, event(claim, 4, self.random.choice(["skip", "release"])))

    def take_back(self, catalogue: Catalogue) -> None:
        """A mask that was accepted gets another category, or is deleted; so is one that was there before."""
        claim = self.claim(catalogue)
        instance = self.accept(catalogue, claim, 1)
        change = self.random.choice([InstanceChange(instance, "deleted"), InstanceChange(instance)])
        undo = event(claim, 4, "delete", instance_id=instance)
        catalogue.append(claim, undo, effects=Effects([change]))
        with self.database.connect() as conn:
            there = [mask.id for mask in current_masks(conn, catalogue.campaign_id, image_id=claim.image.id)]
        if there:
            other = new_uuid()
            start = event(claim, 5, "open", instance_id=other, payload={"mask_id": there[0]})
            catalogue.append(claim, start, effects=Effects([InstanceChange(other, "deleted")]))
            catalogue.append(claim, event(claim, 6, "submit"))
        else:
            catalogue.append(claim, event(claim, 5, "submit"))

    def encode(self, catalogue: Catalogue) -> None:
        image = self.random.choice(catalogue.images)
        with self.database.begin() as conn:
            if self.random.random() < 0.3:
                forget_embedding(conn, image.sha256, "key")
            else:
                record_embeddings(conn, self.random.choice(["key", "other"]), [(image.sha256, SHA, 1)])

    def propose(self, catalogue: Catalogue) -> None:
        """Prelabels, by one model or another; those of the other are withdrawn."""
        image = self.random.choice(catalogue.images)
        pins = Pins(model_digest=self.random.choice([SHA, sha("other")]), model_key="key", adapter_digest=None)
        found = [
            Prelabel(rle=Rle(size=(4, 4), counts="01?0"), mask_sha256=sha(str(self.random.randrange(3))), area=1,
                     box_xywh=(0, 0, 1, 1), score=0.9, stability=0.9, click=(0.0, 0.0))
        ]  # fmt: skip
        with self.database.begin() as conn:
            store_prelabels(conn, catalogue.campaign_id, image.id, pins, found, None)

    def bring(self, catalogue: Catalogue) -> None:
        """A mask of a file, as truth or as a proposal; and an image, perhaps one that the other campaign has."""
        with self.database.begin() as conn:
            image = self.random.choice(catalogue.images)
            import_mask(
                conn, mask_id=new_uuid(), instance_id=new_uuid(), image_id=image.id, category_number=1,
                rle=Rle(size=(4, 4), counts="01?0"), mask_sha256=SHA, area=1, bbox=(0, 0, 1, 1),
                is_trusted=self.random.random() < 0.5,
            )  # fmt: skip
            catalogue.add_image(conn, f"image-{self.random.randrange(8)}")

    def compute(self, catalogue: Catalogue) -> None:
        """Results of clicks, some of them again."""
        with self.database.begin() as conn:
            clicks = conn.execute(select(EventRow.event_id).where(EventRow.kind == "click")).scalars().all()
            for event_id in self.random.sample(clicks, min(len(clicks), 3)):
                took = {"model": self.random.choice([1.0, 12.5, 6000.0]), "post": 0.5}
                facts = {"event_id": event_id, "mask_sha256": SHA, "engine": {}, "latency_ms": took}
                record_results(conn, [EventResultRecord(**facts)])

    def freeze(self, catalogue: Catalogue) -> None:
        with self.database.begin() as conn:
            create_snapshot(conn, catalogue.campaign_id, "export")

    def purge(self, catalogue: Catalogue, image: str | None) -> None:
        with self.database.connect() as conn:
            scope = find_scope(conn, catalogue.campaign_id, image)
        each = (lambda facts: None) if image is None else (lambda facts: check(self.database))
        purge(self.database, scope, self.storage_url, purged_by="me", chunk=3, progress=each)


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
    walk.purge(main, busy)
    left = check(database)
    assert any(key[:2] == (main.campaign_id, "mask") for key in left["tallies"])
    walk.purge(main, None)
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
