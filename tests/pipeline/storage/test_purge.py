"""Purging: all of what was asked for goes, nothing else, also when it is interrupted anywhere."""

import contextlib
import hashlib
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.exc import DBAPIError

from pipeline.embeddings.store import EmbeddingStore
from pipeline.storage import adapters, annotators, campaigns, images, purge, requests, snapshots, tasks
from pipeline.storage.database import Database
from pipeline.storage.files import exists, join, open_storage, write_atomic
from pipeline.storage.tombstones import tombstones
from schemas.catalogue import EventResultRecord, TombstoneRecord
from schemas.columns import db_now
from schemas.errors import NotFoundError, StateError
from schemas.tables import Base, Embedding, EventRow, Image, MaskRow, Purge, Request, Session, Source
from schemas.tallies import TABLES
from tests.pipeline.storage.catalogues import LEASE_S, SHA, Catalogue, new_uuid, sha, store_import
from tests.s3 import object_names

WRITTEN_AFTER = {"purges", *TABLES}
COUNTED = {"masks", "images"}
"""Columns of snapshots that follow what is purged; `test_tallies` checks them and the tables of counts."""
Rows = dict[str, dict[Any, dict[str, Any]]]


class World:
    """A campaign with everything in it, and another one that has two of its images, too."""

    def __init__(self, database: Database, storage_url: str) -> None:
        self.database, self.storage_url = database, storage_url
        self.store = EmbeddingStore(storage_url)
        self.main = self._campaign(4)
        self.other = self._campaign(2)

    def _campaign(self, size: int) -> Catalogue:
        made = Catalogue(self.database, images=size)
        campaign = made.campaign_id
        first = made.label(made.claim())
        made.label(made.claim(image_id=made.images[0].id), opened=first.mask_id)
        made.label(made.claim())
        skipped = made.claim(made.other_id) if size > 2 else None
        with self.database.begin() as conn:
            if skipped is not None:
                tasks.end_lease(conn, skipped.task_id, skipped.lease_no, "skipped", "skip")
                conn.execute(update(Session).where(Session.id == skipped.session_id).values(state="skipped"))
            self._fill(conn, made)
            for source in ("cut.jpg", f"copy-{campaign}"):
                images.add_quarantined(
                    conn, campaign, uri=source, uri_sha256=sha(source), version="1", reason="no image"
                )
        for image in made.images:
            self.embed(image.sha256)
        return made

    def _fill(self, conn: Any, made: Catalogue) -> None:
        campaign = made.campaign_id
        for image in made.images:
            store_import(conn, image.id, is_trusted=False)
        event = conn.execute(select(EventRow.event_id).join(Session).where(Session.campaign_id == campaign)).first()
        conn.execute(
            insert(Base.metadata.tables["event_results"]).values(
                **EventResultRecord(event_id=event[0], mask_sha256=SHA, engine={}).model_dump(mode="json")
            )
        )
        taken = [snapshots.create_snapshot(conn, campaign, purpose) for purpose in ("retrain", "export", "export")]
        digest = sha(campaign)
        adapters.register_adapter(
            conn, digest=digest, campaign_id=campaign, kind="head", uri="", model_digest=SHA, model_key="key",
            parent_digest=None, snapshot_id=taken[0].id, seed=0,
        )  # fmt: skip
        adapters.set_gate(conn, digest, "candidate", {"promote": True})
        adapters.promote(conn, campaign, digest, 0)
        adapters.record_evaluation(conn, campaign_id=campaign, model_digest=SHA, adapter_digest=digest, report={})
        request = requests.insert_request(conn, new_uuid(), "export", campaign, {})
        requests.claim_request(conn, "me", request_id=request.id)
        result = {"snapshot_id": taken[1].id, "manifest_uri": f"/exports/{campaign}/manifest.json"}
        requests.finish_request(conn, request.id, "me", "done", result)
        request = requests.insert_request(conn, new_uuid(), "campaign", campaign, {})
        requests.claim_request(conn, "me", request_id=request.id)
        result = {"snapshot_id": taken[2].id, "manifest_uri": f"/flows/{campaign}/manifest.json"}
        requests.finish_request(conn, request.id, "me", "done", {"export": result})
        create = {"id": campaign, "name": f"made-{campaign}", "labels": ["secret"], "images": "/photos"}
        request = requests.insert_request(conn, new_uuid(), "campaign", None, {"create": create})
        requests.claim_request(conn, "me", request_id=request.id)
        requests.finish_request(conn, request.id, "me", "done", {"campaign_id": campaign})
        fs, root = open_storage(self.storage_url)
        for name in ("weights.safetensors", "card.json"):
            write_atomic(fs, join(root, "adapters", digest, name), b"12")

    def embed(self, sha256: str) -> None:
        """Store an embedding, once."""
        write_atomic(self.store.fs, self.store.path("key", sha256), b"1234")
        values = {"image_sha256": sha256, "model_key": "key", "digest": SHA, "size_bytes": 4, "created_at": db_now()}
        with self.database.begin() as conn:
            if images.embedding_digest(conn, sha256, "key") is None:
                conn.execute(insert(Embedding).values(**values))

    def rows(self) -> Rows:
        """Every row of every table."""
        found: Rows = {}
        with self.database.connect() as conn:
            for table in Base.metadata.sorted_tables:
                keys = [column.name for column in table.primary_key]
                if table.name not in WRITTEN_AFTER:
                    columns = [c for c in table.columns if table.name != "snapshots" or c.name not in COUNTED]
                    rows = [dict(row._mapping) for row in conn.execute(select(*columns))]
                    found[table.name] = {tuple(row[key] for key in keys): row for row in rows}
        return found

    def scope(self, image: str | None = None) -> purge.Scope:
        """The main campaign or one of its images."""
        with self.database.connect() as conn:
            return purge.find_scope(conn, self.main.campaign_id, image)

    def purge(self, image: str | None = None, **options: Any) -> TombstoneRecord:
        """Purge the main campaign or one of its images."""
        return purge.purge(self.database, self.scope(image), self.storage_url, purged_by="me", **options)


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    """On a local folder."""
    return World(database, str(tmp_path / "storage"))


def doomed(world: World, before: Rows, image: str | None) -> set[tuple[str, Any]]:
    """(table, key) of all that belongs to the scope, found without the code under test: by following what names it."""
    campaign = world.main.campaign_id
    start = {campaign} if image is None else {image}
    ids, found = set(start), set[tuple[str, Any]]()
    shared = {i.sha256 for i in world.other.images}
    names = {"campaigns": "id", "images": "id", "sessions": "id", "tasks": "id", "events": "event_id"}
    for _ in range(4):
        for table, rows in before.items():
            for key, row in rows.items():
                mine = {row.get(c) for c in ("campaign_id", "image_id", "session_id", "event_id", "task_id")} & ids
                made = row.get("payload") if table == "requests" else None
                mine |= {((made or {}).get("create") or {}).get("id")} & ids
                if mine or (table in names and row[names[table]] in ids):
                    found.add((table, key))
                    if table in names and (table != "campaigns" or image is None):
                        ids.add(row[names[table]])
    gone = {row["sha256"] for row in before["images"].values() if row["id"] in ids} - shared
    return found | {("embeddings", key) for key, row in before["embeddings"].items() if row["image_sha256"] in gone}


def changed(before: Rows, after: Rows) -> set[tuple[str, Any]]:
    """(table, key) of rows that are there still, but not as they were."""
    both = ((table, key) for table in after for key in after[table] if key in before[table])
    return {(table, key) for table, key in both if before[table][key] != after[table][key]}


def gone(before: Rows, after: Rows) -> set[tuple[str, Any]]:
    """(table, key) of rows that are not there any more."""
    assert not any(after[table].keys() - before[table].keys() for table in after)
    return {(table, key) for table in before for key in before[table].keys() - after[table].keys()}


@pytest.mark.parametrize("what", ["campaign", "0", "2"])
def test_all_of_it_goes_and_nothing_else(world: World, what: str) -> None:
    image = None if what == "campaign" else world.main.images[int(what)].id
    before, wanted = world.rows(), doomed(world, world.rows(), image)
    with world.database.connect() as conn:
        told = purge.count(conn, world.scope(image))
    tombstone = world.purge(image)
    after = world.rows()
    assert gone(before, after) == wanted
    assert changed(before, after) == set()
    counted: dict[str, int] = {}
    for table, _ in wanted - {("campaigns", (world.main.campaign_id,))}:
        counted[table] = counted.get(table, 0) + 1
    assert tombstone.counts == told == counted
    assert (tombstone.state, tombstone.purged_by) == ("done", "me")
    kept = {key[0] for key in after["embeddings"]}
    for held in (*world.main.images, *world.other.images):
        assert world.store.exists("key", held.sha256) is (held.sha256 in kept)
    fs, root = open_storage(world.storage_url)
    for made in (world.main, world.other):
        there = exists(fs, join(root, "adapters", sha(made.campaign_id), "weights.safetensors"))
        assert there is (made is world.other or image is not None)
    places = [[f"/{kind}/{world.main.campaign_id}"] for kind in ("exports", "flows")]
    found = [snapshot["paths"] for snapshot in tombstone.snapshots]
    assert found == (places if what in ("campaign", "0") else [])


def test_the_same_on_an_object_store(sqlite_database: Database, s3_bucket: str) -> None:
    world = World(sqlite_database, f"{s3_bucket}/prefix")
    lone = [image for image in world.main.images if image.sha256 not in {i.sha256 for i in world.other.images}]
    before = object_names(s3_bucket)
    world.purge(lone[0].id)
    left = [name for name in before if lone[0].sha256 not in name]
    assert object_names(s3_bucket) == left and len(left) == len(before) - 1
    world.purge()
    mine = (lone[1].sha256, sha(world.main.campaign_id))
    assert object_names(s3_bucket) == [name for name in left if not any(part in name for part in mine)]


class _KilledError(Exception):
    """Stands for the process' end."""


@pytest.mark.parametrize("of_campaign", [True, False])
def test_interrupted_after_any_transaction_it_goes_on(
    sqlite_database: Database, tmp_path: Path, of_campaign: bool
) -> None:
    world = World(sqlite_database, str(tmp_path))
    image = None if of_campaign else world.main.images[0].id
    before, wanted = world.rows(), doomed(world, world.rows(), image)
    with world.database.connect() as conn:
        told = purge.count(conn, world.scope(image))
    stops = 0

    def stop(facts: dict[str, Any]) -> None:
        raise _KilledError

    while True:  # each run does one transaction more and is cut off
        try:
            tombstone = world.purge(image, chunk=2, progress=stop)
            break
        except _KilledError:
            stops += 1
            with world.database.connect() as conn:
                assert [t.state for t in tombstones(conn)] == ["running"]
    assert stops > 10
    assert gone(before, world.rows()) == wanted
    assert tombstone.counts == told


KILLED = """
import sys, time
from pipeline.storage import purge
from pipeline.storage.database import open_database
url, campaign, storage = sys.argv[1:]
database = open_database(url, embedded=False)
with database.connect() as conn:
    scope = purge.find_scope(conn, campaign)
def tell(facts):
    print(facts, flush=True)
    time.sleep(0.05)
purge.purge(database, scope, storage, purged_by="me", chunk=2, progress=tell)
"""


def test_kill_9_in_the_middle(sqlite_database: Database, tmp_path: Path) -> None:
    _kill_in_the_middle(World(sqlite_database, str(tmp_path)))


@pytest.mark.slow
@pytest.mark.postgres
def test_kill_9_in_the_middle_on_postgresql(postgres_database: Database, tmp_path: Path) -> None:
    _kill_in_the_middle(World(postgres_database, str(tmp_path)))


def _kill_in_the_middle(world: World) -> None:
    before, wanted = world.rows(), doomed(world, world.rows(), None)
    command = [sys.executable, "-c", KILLED, world.database.url, world.main.campaign_id, world.storage_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(12):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert gone(before, world.rows()) < wanted
    assert world.purge().counts["images"] == 4
    assert gone(before, world.rows()) == wanted


def test_work_blocks_it_and_an_expired_lease_does_not(world: World) -> None:
    world.main.claim()
    image = world.main.images[3]
    for what in (None, image.id):
        with pytest.raises(StateError, match="1 image is being worked on"):
            world.purge(what)
    with world.database.connect() as conn:
        assert tombstones(conn) == []
    world.purge(world.main.images[0].id)  # the work is on another image
    with world.database.begin() as conn:
        conn.execute(update(tasks.Task).values(lease_expires_at=db_now()))
    assert world.purge(image.id).counts["sessions"] == 1


def test_the_job_that_makes_the_campaign_blocks_it(world: World) -> None:
    with world.database.begin() as conn:
        create = {"create": {"id": world.main.campaign_id, "name": "a"}}
        request = requests.insert_request(conn, new_uuid(), "campaign", None, create)
        requests.claim_request(conn, "me", request_id=request.id)
    with pytest.raises(StateError, match="A campaign job of this campaign is running"):
        world.purge()


def test_jobs_block_it_unless_they_are_dead(world: World) -> None:
    campaign = world.main.campaign_id
    with world.database.begin() as conn:
        request = requests.insert_request(conn, new_uuid(), "export", campaign, {})
    with pytest.raises(StateError, match=f"export job of this campaign is queued: request {request.id}") as told:
        world.purge(world.main.images[0].id)
    assert told.value.message.startswith("An export job") and "its command is run again" in told.value.message
    with world.database.begin() as conn:
        requests.claim_request(conn, "me", request_id=request.id)
    for image in (None, world.main.images[0].id):
        with pytest.raises(StateError, match="is running"):
            world.purge(image)
    with world.database.begin() as conn:
        long_ago = requests.database_now(conn) - 2 * requests.STALE
        conn.execute(update(Request).where(Request.id == request.id).values(heartbeat_at=long_ago))
    world.purge(world.main.images[0].id)
    with world.database.connect() as conn:
        assert requests.get_request(conn, request.id).state == "cancelled"


def test_nothing_begins_while_it_is_half_done(world: World) -> None:
    def stop(facts: dict[str, Any]) -> None:
        raise _KilledError

    main, image = world.main, world.main.images[3]
    with pytest.raises(_KilledError):
        world.purge(image.id, progress=stop, chunk=1)
    with world.database.begin() as conn, pytest.raises(StateError, match=f"clickloop purge image .* {image.number}`"):
        requests.insert_request(conn, new_uuid(), "export", main.campaign_id, {})
    with world.database.begin() as conn, pytest.raises(StateError, match="clickloop purge image"):
        snapshots.create_snapshot(conn, main.campaign_id, "export")
    with world.database.begin() as conn:
        claim: dict[str, Any] = {"claim_id": new_uuid(), "lease_s": LEASE_S}
        assert tasks.claim_task(conn, main.campaign_id, main.annotator_id, **claim) is None
        with pytest.raises(NotFoundError):  # its task has gone
            tasks.claim_task(conn, main.campaign_id, main.annotator_id, **claim, image_id=new_uuid())
    main.claim(image_id=main.images[0].id)
    with pytest.raises(StateError, match="worked on"):
        world.purge()
    with world.database.begin() as conn:
        conn.execute(update(tasks.Task).values(lease_expires_at=db_now()))
    with pytest.raises(_KilledError):
        world.purge(progress=stop, chunk=1)
    with pytest.raises(StateError, match="as a whole"):
        world.purge(image.id)
    with world.database.begin() as conn, pytest.raises(StateError, match="clickloop purge campaign"):
        campaigns.add_categories(conn, main.campaign_id, ["new"])
    with world.database.begin() as conn, pytest.raises(StateError, match="clickloop purge campaign"):
        tasks.claim_task(conn, main.campaign_id, main.annotator_id, **claim, image_id=main.images[1].id)
    world.purge()
    with world.database.connect() as conn:
        assert [(t.state, t.image_id) for t in tombstones(conn)] == [("done", image.id), ("done", None)]


def test_what_was_purged_says_so(world: World) -> None:
    main, image = world.main, world.main.images[1]
    world.purge(str(image.number))
    with world.database.connect() as conn:
        with pytest.raises(NotFoundError, match=f"Image {image.number} of campaign .* was purged on"):
            images.get_image(conn, image.id)
        with pytest.raises(NotFoundError, match="was purged on"):
            purge.find_scope(conn, main.campaign_id, str(image.number))
        with pytest.raises(NotFoundError, match="has no image '99'"):
            purge.find_scope(conn, main.campaign_id, "99")
        name = campaigns.get_campaign(conn, main.campaign_id).name
    world.purge()
    for words in (name, main.campaign_id):
        with world.database.connect() as conn, pytest.raises(NotFoundError, match=f"{name}' was purged on"):
            campaigns.get_campaign(conn, words)
    with world.database.begin() as conn:  # the name is free again
        campaigns.create_campaign(
            conn, campaign_id=new_uuid(), name=name, source_url="/", model_id="toy-color", model_digest=SHA,
            model_key="key",
        )  # fmt: skip


def test_a_purged_image_comes_back_only_when_asked_and_numbers_are_not_given_again(world: World) -> None:
    main, image = world.main, world.main.images[3]
    with world.database.connect() as conn:
        largest = max(conn.execute(select(MaskRow.number).where(MaskRow.campaign_id == main.campaign_id)).scalars())
        of_image = conn.execute(select(MaskRow.number).where(MaskRow.image_id == image.id)).scalar_one()
    assert (image.number, of_image) == (4, largest)
    world.purge(image.id)
    with world.database.begin() as conn:
        assert main.add_image(conn, "image-3").image_id is None
        assert conn.execute(select(Source.id).where(Source.uri == image.uri)).all() == []
        new = main.add_image(conn, "image-new")
        assert images.get_image(conn, new.image_id).number == 5
        mask = store_import(conn, new.image_id)
        assert mask.number == largest + 1
        again = main.add_image(conn, "image-3", readmit=True)
        assert images.get_image(conn, again.image_id).number == 6
        assert main.add_image(conn, "image-3").duplicate
        assert tombstones(conn)[0].readmitted_at is not None
    world.purge("6")
    with world.database.begin() as conn:
        assert main.add_image(conn, "image-3").image_id is None


@pytest.mark.parametrize("table", ["events", "masks"])
def test_the_log_lets_go_only_of_what_a_running_purge_names(world: World, table: str) -> None:
    rows = Base.metadata.tables[table]
    image = world.main.images[0].id
    values: dict[str, Any] = {
        "id": new_uuid(), "campaign_id": world.main.campaign_id, "campaign_name": "", "purged_by": "",
        "image_id": image, "started_at": db_now(), "counts": {}, "snapshots": [], "mask_number": 0,
    }  # fmt: skip
    for state in ("done", "running"):
        with world.database.begin() as conn:
            conn.execute(insert(Purge).values(**{**values, "id": new_uuid(), "state": state}))
        with pytest.raises(DBAPIError, match="append-only"), world.database.begin() as conn:
            conn.execute(rows.delete())
        with pytest.raises(DBAPIError, match="append-only"), world.database.begin() as conn:
            conn.execute(rows.update().values(instance_id="x"))


@pytest.mark.postgres
def test_a_claim_and_a_purge_at_once(postgres_database: Database, tmp_path: Path) -> None:
    """Whoever is second sees the first: no lease is left on what is purged."""
    world = World(postgres_database, str(tmp_path))
    image = world.main.images[3]
    outcomes: list[str] = []

    def purging() -> None:
        try:
            world.purge(image.id)
            outcomes.append("purged")
        except StateError:
            outcomes.append("held")

    def claiming() -> None:
        try:
            with postgres_database.begin() as conn:
                tasks.claim_task(
                    conn, world.main.campaign_id, world.main.annotator_id, claim_id=new_uuid(), lease_s=LEASE_S,
                    image_id=image.id,
                )  # fmt: skip
            outcomes.append("claimed")
        except StateError:
            outcomes.append("refused")

    for scope in (world.scope(image.id), world.scope()):
        outcomes.clear()
        thread = threading.Thread(target=claiming)
        with contextlib.suppress(_KilledError), postgres_database.begin() as conn:
            purge._begin(conn, scope, "me")
            thread.start()
            time.sleep(0.3)  # it waits for the lock
            raise _KilledError
        thread.join()
        assert outcomes == ["claimed"]  # since the purge did not begin
        with postgres_database.begin() as conn:
            conn.execute(update(tasks.Task).values(lease_expires_at=db_now()))
        with postgres_database.begin() as conn:
            tasks.claim_task(
                conn, world.main.campaign_id, world.main.other_id, claim_id=new_uuid(), lease_s=LEASE_S,
                image_id=image.id,
            )  # fmt: skip
            thread = threading.Thread(target=purging)
            thread.start()
            time.sleep(0.3)
        thread.join()
        assert outcomes == ["claimed", "held"]
        with postgres_database.begin() as conn:
            conn.execute(update(tasks.Task).values(lease_expires_at=db_now()))
    with postgres_database.begin() as conn:
        purge._begin(conn, world.scope(), "me")
        thread = threading.Thread(target=claiming)
        thread.start()
        time.sleep(0.3)
    thread.join()
    assert outcomes == ["claimed", "held", "refused"]


def test_nothing_is_left_in_the_file_of_sqlite(sqlite_database: Database, tmp_path: Path) -> None:
    world = World(sqlite_database, str(tmp_path / "storage"))
    with sqlite_database.connect() as conn:
        secrets = [
            *conn.execute(
                select(EventRow.event_id).join(Session).where(Session.campaign_id == world.main.campaign_id)
            ).scalars()
        ]
    image = world.main.images[0].id
    world.purge(image)
    world.purge()
    url = sqlite_database.engine.url
    sqlite_database.close()  # the last connection empties the WAL into the file
    data = Path(url.database or "").read_bytes()
    assert image.encode() in data  # in the tombstone
    assert len(secrets) > 5 and not [secret for secret in secrets if secret.encode() in data]


def test_annotators_stay(world: World) -> None:
    world.purge()
    with world.database.connect() as conn:
        assert annotators.pseudonym_of(conn, "ann").startswith("annotator-")


def test_source_files_are_not_touched(sqlite_database: Database, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"pixels")
    world = World(sqlite_database, str(tmp_path / "storage"))
    with sqlite_database.begin() as conn:
        conn.execute(update(Image).values(uri=str(picture)))
    world.purge()
    assert hashlib.sha256(picture.read_bytes()).digest() == hashlib.sha256(b"pixels").digest()
