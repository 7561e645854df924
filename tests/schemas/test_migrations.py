"""A migrated database equals one made from the tables, triggers and constraints included."""

import hashlib
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from pipeline.storage.database import Database, head_revision, upgrade_database
from schemas.tables import Base
from schemas.tallies import count_all, sources, triggers
from tests.databases import PostgresServer, migrated_sqlite, postgres_server  # noqa: F401


def _objects(path: Path) -> dict[tuple[str, str], str]:
    with closing(sqlite3.connect(path)) as conn:
        rows = conn.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE '%alembic%'").fetchall()
    return {(kind, name): "\n".join(sorted(_parts(sql or ""))) for kind, name, sql in rows}


def _parts(sql: str) -> list[str]:
    """Columns and constraints of a CREATE TABLE, one per line as SQLAlchemy writes them; anything else whole.

    A column that a migration added stands behind another one on its line.
    """
    lines = re.sub(r", (?=\w+ (?:DATETIME|VARCHAR|TEXT|INTEGER|BIGINT|FLOAT|BOOLEAN|JSON)\b)", ",\n", sql).splitlines()
    return [" ".join(line.strip().rstrip(",").split()) for line in lines if line.strip()]


def test_sqlite_migrated_equals_fresh(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'fresh.db'}")
    with database.begin() as conn:
        Base.metadata.create_all(conn)
    database.close()
    assert upgrade_database(f"sqlite:///{tmp_path / 'migrated.db'}") == (None, head_revision())

    fresh, migrated = _objects(tmp_path / "fresh.db"), _objects(tmp_path / "migrated.db")

    assert migrated.keys() == fresh.keys()
    for key, definition in fresh.items():
        assert migrated[key] == definition, key
    names = {name for kind, name in fresh if kind == "trigger"}
    assert len([name for name in names if name.startswith("tally_")]) == 17
    assert {name for name in names if not name.startswith("tally_")} == {
        "events_no_update",
        "events_no_delete",
        "masks_no_update",
        "masks_no_delete",
    }


def test_imported_masks_that_were_not_counted_are_counted_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'old.db'}"
    upgrade_database(url)
    with closing(sqlite3.connect(tmp_path / "old.db")) as conn:
        for table, row in (
            ("masks", {"id": "m", "campaign_id": "c", "image_id": "i", "instance_id": "n", "source": "import"}),
            ("instances", {"id": "n", "campaign_id": "c", "image_id": "i", "mask_id": "m", "state": "accepted"}),
        ):
            columns = conn.execute(f"PRAGMA table_info({table})").fetchall()
            filled = {name: 0 for _, name, _, needed, default, _ in columns if needed and default is None} | row
            names, values = ", ".join(filled), ", ".join("?" * len(filled))
            conn.execute(f"INSERT INTO {table} ({names}) VALUES ({values})", list(filled.values()))
        conn.executescript(
            """ALTER TABLE masks DROP COLUMN score;
            DROP INDEX ix_instances_unsure;
            DROP INDEX ix_snapshot_items_snapshot; ALTER TABLE snapshot_items DROP COLUMN unsure;
            CREATE INDEX ix_snapshot_items_snapshot ON snapshot_items (snapshot_id, image_id, mask_id, category_number);
            UPDATE alembic_version SET version_num = '0007'"""
        )
    upgrade_database(url)
    with closing(sqlite3.connect(tmp_path / "old.db")) as conn:
        assert conn.execute("SELECT kind, amount FROM tallies WHERE kind = 'imported'").fetchall() == [("imported", 1)]


def test_migration_0004_still_runs_the_sql_that_it_was_made_with() -> None:
    """It takes it from `schemas.tallies`: before that changes, the migration needs a copy of what is there now.

    Unless a later migration gives the same either way, as 0008 does, which counts imported masks anew.
    """
    ran = {
        dialect: [*count_all(dialect), *(one for table in sources() for one in triggers(table, dialect))]
        for dialect in ("sqlite", "postgresql")
    }
    assert {dialect: hashlib.sha256("\n".join(sql).encode()).hexdigest() for dialect, sql in ran.items()} == {
        "sqlite": "2f232ba05eb455e9ad1fd1a1ea8be1fdeab466117eaff975bfb28a36d005eb58",
        "postgresql": "41cdf67c74ae76e2f5761b2ac0fad333954f0f4d1b19b14cb61c8f0c5642c6c8",
    }


@pytest.mark.postgres
def test_postgresql_migrated_equals_fresh(postgres_server: PostgresServer) -> None:  # noqa: F811
    fresh, migrated = postgres_server.create(), postgres_server.create()
    try:
        engine = create_engine(postgres_server.url(fresh))
        Base.metadata.create_all(engine)
        engine.dispose()
        upgrade_database(postgres_server.url(migrated))
        wanted, found = (
            [line for line in postgres_server.dump_schema(name).splitlines() if not line.startswith("\\")]
            for name in (fresh, migrated)
        )
    finally:
        postgres_server.drop(fresh)
        postgres_server.drop(migrated)

    assert found == wanted
    assert sum("CREATE TRIGGER" in line for line in wanted) == 6 + 17
    assert sum("FOREIGN KEY" in line for line in wanted) > 20
