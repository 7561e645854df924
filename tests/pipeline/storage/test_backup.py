"""A backup is whole or none, holds one moment, and comes back into either database, also from an older version."""

import hashlib
import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, insert, select, text, update

import pipeline.storage.backup as backup_module
import pipeline.storage.database as database_module
from pipeline.storage.adapters import register_adapter, register_model
from pipeline.storage.annotators import get_or_create_annotator
from pipeline.storage.backup import MANIFEST, backup, read_manifest, restore
from pipeline.storage.campaigns import add_categories
from pipeline.storage.database import Database, database_revision, head_revision, open_database
from pipeline.storage.files import join, open_storage, write_atomic
from pipeline.storage.sql import table
from schemas.columns import db_now
from schemas.errors import (
    BadInputError,
    CorruptDataError,
    DatabaseUnavailableError,
    DatabaseVersionError,
    NotFoundError,
)
from schemas.tables import Campaign, Category, Embedding, MaskRow
from schemas.tallies import TABLES
from tests.databases import MakeUrl
from tests.disks import full_disk
from tests.pipeline.storage.catalogues import Catalogue, event, new_uuid, sha
from tests.s3 import object_names, s3_bucket, s3_server  # noqa: F401
from tests.s3_faults import FaultyS3, faulty_s3  # noqa: F401

WEIGHTS = {name: f"weights of {name}".encode() for name in ("model", "adapter")}
DIGESTS = {name: hashlib.sha256(content).hexdigest() for name, content in WEIGHTS.items()}
FILES = {
    f"models/{DIGESTS['model']}.safetensors": WEIGHTS["model"],
    f"models/{DIGESTS['model']}.json": b'{"model_id": "toy-color"}',
    f"adapters/{DIGESTS['adapter']}/weights.safetensors": WEIGHTS["adapter"],
    f"adapters/{DIGESTS['adapter']}/card.json": b"{}",
}


def fill(database: Database, storage_url: str) -> Catalogue:
    """A catalogue with work in it and a storage with its weights; masks whose parents have later ids."""
    catalogue = Catalogue(database, images=4)
    catalogue.label(catalogue.claim())
    fs, root = open_storage(storage_url)
    for name, content in FILES.items():
        write_atomic(fs, join(root, name), content)
    model, adapter = (join(root, name) for name in sorted(FILES, reverse=True) if name.endswith("safetensors"))
    with database.begin() as conn:
        conn.execute(update(Campaign).values(model_digest=DIGESTS["model"]))
        register_model(conn, DIGESTS["model"], "toy-color", model, len(WEIGHTS["model"]))
        register_adapter(
            conn, digest=DIGESTS["adapter"], campaign_id=catalogue.campaign_id, kind="head", uri=adapter,
            model_digest=DIGESTS["model"], model_key="key", parent_digest=None, snapshot_id=None, seed=0,
            metrics={"noc": 0.1 + 0.2, "names": ["ä\u2028", None, True], "big": 2**60},
        )  # fmt: skip
        row = dict(conn.execute(select(table(MaskRow))).one()._mapping)
        for number, (child, parent) in enumerate((("c", row["id"]), ("b", "c"), ("a", "b")), start=2):
            changed = {"id": child, "parent_id": parent, "number": number, "version": number, "event_id": None}
            conn.execute(insert(MaskRow).values(row | changed))
    return catalogue


def test_the_copy_that_a_backup_reads_is_not_left_behind_by_a_kill(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = fill(sqlite_database, str(tmp_path / "storage"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    seen: list[list[Path]] = []

    def dump(*args: Any) -> backup_module.TableParts:
        seen.append(list((tmp_path / "temporary").iterdir()))
        return whole(*args)

    whole = backup_module._dump
    monkeypatch.setattr(backup_module, "_dump", dump)
    url = str(sqlite_database.engine.url)
    done = backup(url, str(tmp_path / "storage"), str(tmp_path / "backup"))
    assert done.tables["images"].rows == len(catalogue.images) and seen == [[]] * len(done.tables)


def rows(url: str) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table that a backup holds, through the types of the program's tables where it has them."""
    opened = Database(url)
    try:
        with opened.connect() as conn:
            metadata = MetaData()
            metadata.reflect(conn)
            found = {}
            for reflected in metadata.sorted_tables:
                if reflected.name in TABLES:
                    continue
                ours = Campaign.metadata.tables.get(reflected.name, reflected)
                query = select(ours).order_by(*ours.primary_key.columns)
                found[reflected.name] = [dict(row._mapping) for row in conn.execute(query)]
            return found
    finally:
        opened.close()


def test_round_trip_gives_the_same_rows_and_files(database: Database, empty_url: MakeUrl, tmp_path: Path) -> None:
    storage, target, url = tmp_path / "storage", tmp_path / "backup", empty_url()
    fill(database, str(storage))

    manifest = backup(database.url, str(storage), str(target))
    restored = restore(str(target), url, str(storage))

    before, after = rows(database.url), rows(url)
    assert after == before
    assert manifest.rows == sum(map(len, before.values())) - 1 and manifest.missing == []  # but the version's row
    assert {name: (target / part.path).read_bytes() for name, part in manifest.files.items()} == FILES
    assert restored.revision == database_revision(url) == head_revision()


def test_numbering_goes_on_and_masks_stay_append_only(database: Database, empty_url: MakeUrl, tmp_path: Path) -> None:
    catalogue = fill(database, str(tmp_path / "storage"))
    backup(database.url, str(tmp_path / "storage"), str(tmp_path / "backup"))
    url = empty_url()
    restore(str(tmp_path / "backup"), url, str(tmp_path / "storage"))
    again = open_database(url)
    try:
        with again.begin() as conn:
            add_categories(conn, catalogue.campaign_id, ["bird"])
            assert list(conn.execute(select(Category.number).order_by(Category.id)).scalars()) == [1, 2, 3]
        with pytest.raises(Exception, match="append-only"), again.begin() as conn:
            conn.execute(update(MaskRow).values(area=9))
    finally:
        again.close()


def test_a_backup_beside_a_writer_holds_one_moment(database: Database, empty_url: MakeUrl, tmp_path: Path) -> None:
    catalogue = Catalogue(database, images=2)
    claim, stop, failures = catalogue.claim(), threading.Event(), []
    sent = [event(claim, 1, "open", payload={"mask_id": None})]
    catalogue.append(claim, sent[0])

    def write() -> None:
        try:
            while not stop.is_set():
                sent.append(event(claim, len(sent) + 1))
                catalogue.append(claim, sent[-1])
        except Exception as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    counts = []
    try:
        for number in range(3):
            backup(database.url, str(tmp_path / "storage"), str(tmp_path / f"backup{number}"))
            counts.append(len(sent))
    finally:
        stop.set()
        writer.join()
    assert failures == []
    held = []
    for number in range(3):
        url = empty_url()
        restore(str(tmp_path / f"backup{number}"), url, str(tmp_path / "storage"))
        found = rows(url)
        (session,) = found["sessions"]
        events = sorted(found["events"], key=lambda row: row["seq"])
        assert [row["seq"] for row in events] == list(range(1, session["last_seq"] + 1))
        assert [row["event_id"] for row in events] == [str(one.event_id) for one in sent[: len(events)]]
        held.append(len(events))
    assert held == sorted(held) and all(count <= later for count, later in zip(held, counts, strict=True))
    assert held[-1] > 1 and len(sent) > held[0], "nobody wrote meanwhile"


def test_what_is_not_whole_is_no_backup(sqlite_database: Database, tmp_path: Path) -> None:
    target, url = tmp_path / "backup", f"sqlite:///{tmp_path / 'new.db'}"
    fill(sqlite_database, str(tmp_path / "storage"))
    weights = tmp_path / "storage" / "models" / f"{DIGESTS['model']}.safetensors"
    weights.write_bytes(b"other")
    with pytest.raises(CorruptDataError, match=DIGESTS["model"]):
        backup(sqlite_database.url, str(tmp_path / "storage"), str(target))
    assert list(target.rglob("*.parquet"))
    with pytest.raises(NotFoundError, match="written last"):
        restore(str(target), url, str(tmp_path / "storage"))
    weights.write_bytes(WEIGHTS["model"])
    backup(sqlite_database.url, str(tmp_path / "storage"), str(target))
    with pytest.raises(BadInputError, match="already"):
        backup(sqlite_database.url, str(tmp_path / "storage"), str(target))


@pytest.mark.parametrize("how", ["changed", "short", "gone"])
@pytest.mark.parametrize("what", ["tables/events-00000.parquet", f"storage/models/{DIGESTS['model']}.safetensors"])
def test_a_corrupt_backup_is_refused_and_changes_nothing(
    sqlite_database: Database, tmp_path: Path, what: str, how: str
) -> None:
    target, url = tmp_path / "backup", f"sqlite:///{tmp_path / 'new.db'}"
    fill(sqlite_database, str(tmp_path / "storage"))
    backup(sqlite_database.url, str(tmp_path / "storage"), str(target))
    content = bytearray((target / what).read_bytes())
    content[len(content) // 2] ^= 1
    if how == "gone":
        (target / what).unlink()
    else:
        (target / what).write_bytes(content if how == "changed" else content[:-1])
    with pytest.raises(CorruptDataError, match=f"{what}.*Nothing was restored"):
        restore(str(target), url, str(tmp_path / "other"))
    assert database_revision(url) is None
    assert not (tmp_path / "other").exists()


def test_a_damaged_or_newer_manifest_is_refused(sqlite_database: Database, tmp_path: Path) -> None:
    target, url = tmp_path / "backup", f"sqlite:///{tmp_path / 'new.db'}"
    fill(sqlite_database, str(tmp_path / "storage"))
    backup(sqlite_database.url, str(tmp_path / "storage"), str(target))
    whole = (target / MANIFEST).read_text()
    (target / MANIFEST).write_text(whole[:-9])
    with pytest.raises(CorruptDataError, match="damaged"):
        restore(str(target), url, str(tmp_path / "storage"))
    (target / MANIFEST).write_text(whole.replace(f'"{head_revision()}"', '"9999"'))
    with pytest.raises(DatabaseVersionError, match="newer"):
        restore(str(target), url, str(tmp_path / "storage"))


@pytest.mark.parametrize("path", ["../../evil", "/../../evil", "", "a\0b"])
@pytest.mark.parametrize("what", ["name", "part"])
def test_a_manifest_with_paths_that_leave_their_folder_is_refused(
    sqlite_database: Database, tmp_path: Path, what: str, path: str
) -> None:
    """Whose files would be written beside the storage, wherever that is."""
    fill(sqlite_database, str(tmp_path / "storage"))
    backup(sqlite_database.url, str(tmp_path / "storage"), str(tmp_path / "backup"))
    manifest = json.loads((tmp_path / "backup" / MANIFEST).read_text())
    part = manifest["files"].pop(next(iter(manifest["files"])))
    manifest["files"][path if what == "name" else "models/x"] = part if what == "name" else part | {"path": path}
    (tmp_path / "backup" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CorruptDataError, match="damaged"):
        restore(str(tmp_path / "backup"), f"sqlite:///{tmp_path / 'new.db'}", str(tmp_path / "a" / "b" / "storage"))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("content", ['{"format": Infinity, "revision": "0001"}', "[" * 100_000])
def test_an_odd_manifest_is_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(CorruptDataError, match="damaged"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize("how", ["swapped", "no table", "twice", "none"])
def test_tables_that_hold_something_else_are_told_and_change_nothing(
    sqlite_database: Database, tmp_path: Path, how: str
) -> None:
    fill(sqlite_database, str(tmp_path / "storage"))
    backup(sqlite_database.url, str(tmp_path / "storage"), str(tmp_path / "backup"))
    manifest = read_manifest(str(tmp_path / "backup"))
    tables, masks = manifest.tables, manifest.tables["masks"]
    if how == "swapped":
        tables["masks"], tables["images"] = tables["images"], masks
    elif how == "no table":
        fs, root = open_storage(str(tmp_path / "backup"))
        masks.parts = [backup_module._put(fs, root, "tables/other.parquet", b"no table")]
    elif how == "twice":
        masks.parts *= 2
    else:
        del tables["campaigns"]
    (tmp_path / "backup" / MANIFEST).write_text(manifest.model_dump_json())
    before = rows(sqlite_database.url)
    with pytest.raises(CorruptDataError, match="Nothing was restored"):
        restore(str(tmp_path / "backup"), sqlite_database.url, str(tmp_path / "storage"), replace=True)
    assert rows(sqlite_database.url) == before


def test_what_is_no_backup_is_called_what_it_is(sqlite_database: Database, tmp_path: Path) -> None:
    target, url = tmp_path / "backup", f"sqlite:///{tmp_path / 'new.db'}"
    fill(sqlite_database, str(tmp_path / "storage"))
    backup(sqlite_database.url, str(tmp_path / "storage"), str(target))
    with pytest.raises(NotFoundError, match="is a file"):
        restore(str(target / MANIFEST), url, str(tmp_path / "storage"))
    (target / MANIFEST).write_text('{"format": "clickloop-snapshot", "snapshot": {"number": 1}}')
    with pytest.raises(NotFoundError, match="holds an export, no backup"):
        restore(str(target), url, str(tmp_path / "storage"))


def test_a_database_that_somebody_uses_is_left_as_it_is(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL says that a lock timed out, and no more."""
    fill(database, str(tmp_path / "storage"))
    backup(database.url, str(tmp_path / "storage"), str(tmp_path / "backup"))
    before = rows(database.url)
    monkeypatch.setattr(backup_module, "Database", partial(Database, busy_timeout_s=0.1))
    with database.begin() as conn:
        conn.execute(update(Campaign).values(name="other"))
        with pytest.raises(DatabaseUnavailableError, match=r"Nothing was restored.*Stop what uses the database"):
            restore(str(tmp_path / "backup"), database.url, str(tmp_path / "storage"), replace=True)
        conn.rollback()
    assert rows(database.url) == before


def test_a_full_disk_is_not_blamed_on_who_uses_the_database(sqlite_database: Database, tmp_path: Path) -> None:
    fill(sqlite_database, str(tmp_path / "storage"))
    backup(sqlite_database.url, str(tmp_path / "storage"), str(tmp_path / "backup"))
    before = rows(sqlite_database.url)
    with full_disk(100_000), pytest.raises(DatabaseUnavailableError, match=r"Nothing was restored.*disk") as told:
        restore(str(tmp_path / "backup"), sqlite_database.url, str(tmp_path / "storage"), replace=True)
    assert "Stop what uses" not in told.value.message
    assert rows(sqlite_database.url) == before


def test_a_full_temporary_folder_is_named(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sqlite_database, str(tmp_path / "storage"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with full_disk(50_000), pytest.raises(DatabaseUnavailableError, match=r"Make room in .*temporary, .*TMPDIR"):
        backup(sqlite_database.url, str(tmp_path / "storage"), str(tmp_path / "backup"))
    assert not list((tmp_path / "temporary").iterdir()) and not (tmp_path / "backup").exists()


def test_a_database_with_rows_is_replaced_only_when_told(database: Database, tmp_path: Path) -> None:
    fill(database, str(tmp_path / "storage"))
    before = rows(database.url)
    backup(database.url, str(tmp_path / "storage"), str(tmp_path / "backup"))
    with database.begin() as conn:
        get_or_create_annotator(conn, "later")
    later = rows(database.url)
    with pytest.raises(BadInputError, match="--replace"):
        restore(str(tmp_path / "backup"), database.url, str(tmp_path / "storage"))
    assert rows(database.url) == later != before
    restore(str(tmp_path / "backup"), database.url, str(tmp_path / "storage"), replace=True)
    assert rows(database.url) == before


def test_another_programs_database_is_never_replaced(empty_url: MakeUrl, database: Database, tmp_path: Path) -> None:
    fill(database, str(tmp_path / "storage"))
    backup(database.url, str(tmp_path / "storage"), str(tmp_path / "backup"))
    foreign = Database(empty_url())
    with foreign.begin() as conn:
        conn.execute(text("CREATE TABLE theirs (id INTEGER)"))
    with pytest.raises(DatabaseVersionError, match="not Clickloop's"):
        restore(str(tmp_path / "backup"), foreign.url, str(tmp_path / "storage"), replace=True)
    with foreign.connect() as conn:
        assert conn.execute(text("SELECT count(*) FROM theirs")).scalar_one() == 0
    foreign.close()


def test_a_restore_that_fails_leaves_the_database_as_it_was(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database, str(tmp_path / "storage"))
    backup(database.url, str(tmp_path / "storage"), str(tmp_path / "backup"))
    manifest = tmp_path / "backup" / MANIFEST
    wrong = read_manifest(str(tmp_path / "backup"))
    wrong.tables["masks"].rows += 1
    manifest.write_text(wrong.model_dump_json())
    before = rows(database.url)
    with pytest.raises(CorruptDataError, match="masks has"):
        restore(str(tmp_path / "backup"), database.url, str(tmp_path / "storage"), replace=True)
    assert rows(database.url) == before


def test_a_backup_of_the_previous_version_is_migrated(
    database: Database, empty_url: MakeUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database, str(tmp_path / "storage"))
    old, before = head_revision(), rows(database.url)
    backup(database.url, str(tmp_path / "storage"), str(tmp_path / "backup"))
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    scripts = Path(ScriptDirectory.from_config(database_module._config(database_module.MIGRATIONS)).dir)
    (versions.parent / "env.py").write_text((scripts / "env.py").read_text())
    for script in (scripts / "versions").glob("0*.py"):
        (versions / script.name).write_text(script.read_text())
    (versions / "9999_next.py").write_text(
        f"import sqlalchemy as sa\nfrom alembic import op\nrevision = '9999'\ndown_revision = '{old}'\n"
        "def upgrade():\n"
        "    op.add_column('annotators', sa.Column('greeting', sa.Text(), nullable=False, server_default='hello'))\n"
    )
    monkeypatch.setattr(database_module, "MIGRATIONS", str(versions.parent))
    url = empty_url()
    restored = restore(str(tmp_path / "backup"), url, str(tmp_path / "storage"))
    assert (restored.manifest.revision, restored.revision) == (old, "9999")
    found = rows(url)
    assert found | {"alembic_version": []} == before | {"alembic_version": []}
    opened = Database(url)
    with opened.connect() as conn:
        assert set(conn.execute(text("SELECT greeting FROM annotators")).scalars()) == {"hello"}
    opened.close()


def test_embeddings_that_the_storage_lost_are_forgotten(sqlite_database: Database, tmp_path: Path) -> None:
    fill(sqlite_database, str(tmp_path / "storage"))
    fs, root = open_storage(str(tmp_path / "new"))
    write_atomic(fs, join(root, "embeddings", "key", sha("kept")[:2], f"{sha('kept')}.safetensors"), b"1")
    with sqlite_database.begin() as conn:
        for name in ("kept", "lost"):
            facts = {"image_sha256": sha(name), "model_key": "key", "digest": sha("d"), "size_bytes": 1}
            conn.execute(insert(Embedding).values(**facts, created_at=db_now()))
    backup(sqlite_database.url, str(tmp_path / "storage"), str(tmp_path / "backup"))
    url = f"sqlite:///{tmp_path / 'new.db'}"
    restored = restore(str(tmp_path / "backup"), url, str(tmp_path / "new"))
    assert restored.forgotten_embeddings == 1
    found = rows(url)
    assert [row["image_sha256"] for row in found["embeddings"]] == [sha("kept")]
    uris = [row["uri"] for name in ("models", "adapters") for row in found[name]]
    assert len(uris) == 2 and all(uri.startswith(root) and Path(uri).is_file() for uri in uris)


def test_what_the_storage_lacks_is_said(sqlite_database: Database, tmp_path: Path) -> None:
    fill(sqlite_database, str(tmp_path / "storage"))
    name = f"adapters/{DIGESTS['adapter']}/weights.safetensors"
    (tmp_path / "storage" / name).unlink()
    manifest = backup(sqlite_database.url, str(tmp_path / "storage"), str(tmp_path / "backup"))
    assert manifest.missing == [name]


@pytest.mark.s3
def test_a_backup_lies_in_a_bucket_too(sqlite_database: Database, tmp_path: Path, s3_bucket: str) -> None:  # noqa: F811
    fill(sqlite_database, f"{s3_bucket}/storage")
    manifest = backup(sqlite_database.url, f"{s3_bucket}/storage", f"{s3_bucket}/backups/1")
    assert MANIFEST in object_names(f"{s3_bucket}/backups/1") and manifest.missing == []
    assert len(manifest.files) == len(FILES)
    url = f"sqlite:///{tmp_path / 'new.db'}"
    restore(f"{s3_bucket}/backups/1", url, f"{s3_bucket}/again")
    assert [name.removeprefix("storage/") for name in object_names(f"{s3_bucket}/again")] == sorted(FILES)
    assert {k: v for k, v in rows(url).items() if k not in ("models", "adapters")} == {
        k: v for k, v in rows(sqlite_database.url).items() if k not in ("models", "adapters")
    }


@pytest.mark.s3
def test_a_store_that_is_away_for_a_moment_costs_no_backup(
    sqlite_database: Database,
    faulty_s3: FaultyS3,  # noqa: F811
    s3_bucket: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    fill(sqlite_database, f"{s3_bucket}/storage")
    faulty_s3.go_away("cut", method="GET", path="adapters", count=4)
    manifest = backup(sqlite_database.url, f"{s3_bucket}/storage", str(tmp_path / "backup"))
    assert manifest.missing == [] and faulty_s3.failed == 4
    assert sorted(manifest.files) == sorted(FILES)


def test_an_empty_database_is_no_backup(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="nothing to back up"):
        backup(f"sqlite:///{tmp_path / 'new.db'}", str(tmp_path / "storage"), str(tmp_path / new_uuid()))
