"""Opening, upgrading, refusing and losing a database."""

import signal
import sqlite3
import threading
import uuid
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from sqlalchemy import delete, text, update
from sqlalchemy import event as event_of_sqlalchemy
from sqlalchemy.exc import DBAPIError

from pipeline.storage.annotators import get_or_create_annotator
from pipeline.storage.database import (
    Database,
    database_now,
    database_revision,
    head_revision,
    open_database,
    upgrade_database,
)
from schemas.errors import BadInputError, DatabaseUnavailableError, DatabaseVersionError
from schemas.tables import EventRow, MaskRow
from tests.databases import MakeUrl, PostgresServer, running_postgres
from tests.pipeline.storage.catalogues import Catalogue, event, store_import


def _set_revision(database: Database, revision: str) -> None:
    with database.begin() as conn:
        conn.execute(text("UPDATE alembic_version SET version_num = :r"), {"r": revision})


def test_sqlite_is_created_when_opened(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'clickloop.db'}"
    open_database(url).close()
    assert database_revision(url) == head_revision()
    assert sorted(path.suffix for path in (tmp_path / "new").glob("*.bak*")) == []


def test_sqlite_is_upgraded_after_a_copy(sqlite_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite_database.begin() as conn:
        get_or_create_annotator(conn, "before the upgrade")
    path = Path(sqlite_database.engine.url.database or "")
    # a next version, so that today's is an old one
    from alembic.script import ScriptDirectory

    import pipeline.storage.database as module

    versions = path.parent / "migrations" / "versions"
    versions.mkdir(parents=True)
    scripts = Path(ScriptDirectory.from_config(module._config(module.MIGRATIONS)).dir)
    (versions.parent / "env.py").write_text((scripts / "env.py").read_text())
    for script in (scripts / "versions").glob("0*.py"):
        (versions / script.name).write_text(script.read_text())
    (versions / "9999_next.py").write_text(
        f"from alembic import op\nrevision = '9999'\ndown_revision = '{head_revision()}'\n"
        "def upgrade():\n    op.execute('CREATE TABLE extra (id INTEGER PRIMARY KEY)')\n"
    )
    old = head_revision()
    monkeypatch.setattr(module, "MIGRATIONS", str(versions.parent))

    with pytest.raises(DatabaseVersionError, match="clickloop db upgrade"):
        open_database(sqlite_database.url, embedded=False)
    open_database(sqlite_database.url).close()

    copy = path.with_name(f"clickloop.db.bak-{old}")
    with closing(sqlite3.connect(copy)) as conn:
        assert conn.execute("SELECT version_num FROM alembic_version").fetchone() == (old,)
        assert conn.execute("SELECT name FROM annotators").fetchone() == ("before the upgrade",)
    with sqlite_database.connect() as now:
        assert now.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"
        assert now.execute(text("SELECT count(*) FROM extra")).scalar_one() == 0
    assert list(path.parent.glob("*.tmp")) == []


def test_newer_database_is_refused_and_untouched(database: Database) -> None:
    _set_revision(database, "fffffff")
    for attempt in (lambda: open_database(database.url), lambda: upgrade_database(database.url)):
        with pytest.raises(DatabaseVersionError, match="newer"):
            attempt()
    with database.connect() as conn:
        assert conn.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "fffffff"


def test_another_programs_database_is_refused(empty_url: MakeUrl) -> None:
    url = empty_url()
    with closing(Database(url)) as database, database.begin() as conn:
        conn.execute(text("CREATE TABLE theirs (id INTEGER PRIMARY KEY)"))
    with pytest.raises(DatabaseVersionError, match="not Clickloop's"):
        open_database(url)


@pytest.mark.postgres
def test_postgresql_is_upgraded_by_command_only(postgres_server: PostgresServer) -> None:
    name = postgres_server.create()
    try:
        url = postgres_server.url(name)
        with pytest.raises(DatabaseVersionError, match="clickloop db upgrade"):
            open_database(url)
        assert database_revision(url) is None
        assert upgrade_database(url) == (None, head_revision())
        assert upgrade_database(url) == (head_revision(), head_revision())
        open_database(url).close()
    finally:
        postgres_server.drop(name)


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite://", "nonsense", "postgresql://host:port/x"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(BadInputError):
        open_database(url)


def test_libpqs_short_scheme_is_postgresql() -> None:
    with closing(Database("postgres://host/db")) as database:
        assert database.dialect == "postgresql"


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(DatabaseUnavailableError, match=r"not a database.*clickloop restore"):
        open_database(f"sqlite:///{tmp_path / 'x.db'}")


def test_locked_database_is_unavailable(sqlite_database: Database) -> None:
    other = Database(sqlite_database.url, busy_timeout_s=0.1)
    with sqlite_database.begin(), pytest.raises(DatabaseUnavailableError, match="locked"), other.begin():
        pass
    with sqlite_database.begin(), other.connect() as conn:  # readers go on beside a writer
        assert database_now(conn)
    other.close()


@pytest.mark.postgres
def test_lock_held_too_long_is_unavailable(postgres_database: Database) -> None:
    other = Database(postgres_database.url, busy_timeout_s=0.1)
    lock = text("LOCK TABLE campaigns IN ACCESS EXCLUSIVE MODE")
    with postgres_database.begin() as conn:
        conn.execute(lock)
        with pytest.raises(DatabaseUnavailableError, match="lock timeout"), other.begin() as waiting:
            waiting.execute(lock)
    other.close()


@pytest.mark.postgres
def test_killed_server_is_unavailable_and_keeps_what_was_committed() -> None:
    with running_postgres() as server:
        name = server.create()
        upgrade_database(server.url(name))
        database = open_database(server.url(name))
        with database.begin() as conn:
            get_or_create_annotator(conn, "committed")
        with pytest.raises(DatabaseUnavailableError):
            _write_while(database, lambda: _kill(server))
        with pytest.raises(DatabaseUnavailableError), database.begin():
            pass
        server.start()
        with database.connect() as conn:  # the same Database connects again by itself
            assert conn.execute(text("SELECT name FROM annotators")).scalars().all() == ["committed"]
        database.close()


@pytest.mark.postgres
def test_a_url_that_no_trying_mends_is_to_be_checked(postgres_server: PostgresServer) -> None:
    for url in (postgres_server.url("nosuch"), "postgresql://ann@nosuch.invalid/clickloop"):
        with pytest.raises(DatabaseUnavailableError, match="Check CLICKLOOP_DATABASE_URL"):
            open_database(url)
    with pytest.raises(DatabaseUnavailableError, match=r"refused.*Try again"):
        open_database("postgresql://ann@127.0.0.1:1/clickloop")


@pytest.mark.postgres
def test_a_url_with_an_option_that_there_is_not_is_to_be_checked(postgres_server: PostgresServer) -> None:
    with pytest.raises(DatabaseUnavailableError, match=r"option \"nonsense\"\. Check CLICKLOOP_DATABASE_URL"):
        open_database(postgres_server.url("postgres") + "&nonsense=1")


@pytest.mark.postgres
def test_a_user_without_rights_and_a_database_that_takes_no_writes_are_said_to_be_so(
    postgres_database: Database,
) -> None:
    for statement, message in (
        ("SET LOCAL ROLE pg_monitor", r"permission denied.*rights"),
        ("SET TRANSACTION READ ONLY", r"read-only.*primary"),
    ):
        with pytest.raises(DatabaseUnavailableError, match=message):
            _name_after(postgres_database, statement)


@pytest.mark.postgres
def test_a_standby_is_said_to_be_one() -> None:
    with running_postgres() as server:
        name = server.create()
        upgrade_database(server.url(name))
        server.stop(signal.SIGINT)
        (server.folder / "data" / "standby.signal").touch()
        server.start()
        opened = closing(open_database(server.url(name)))
        with opened as database, pytest.raises(DatabaseUnavailableError, match=r"during recovery.*primary"):
            _name_after(database, "SELECT 1")
        with closing(Database(server.url(name))) as standby, pytest.raises(DatabaseUnavailableError, match="clicks"):
            standby.check_writable()


@pytest.mark.postgres
def test_a_server_whose_host_vanished_is_not_waited_for_for_hours(postgres_database: Database) -> None:
    with postgres_database.connect() as conn:
        connection = conn.connection.driver_connection
        assert connection is not None
        asked = connection.info.get_parameters()
    assert int(asked["tcp_user_timeout"]) <= 30_000  # of what was sent and is not confirmed
    idle, interval, count = (int(asked[f"keepalives_{name}"]) for name in ("idle", "interval", "count"))
    assert idle + interval * count <= 30  # of an answer that never comes


@pytest.mark.postgres
def test_names_are_unicode_whatever_the_client_and_an_empty_database_say(
    postgres_server: PostgresServer, postgres_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with closing(Database(postgres_database.url)) as database, database.begin() as conn:
        get_or_create_annotator(conn, "日本")
    for encoding in ("SQL_ASCII", "LATIN1"):
        name = f"t_{uuid.uuid4().hex[:12]}"
        with closing(postgres_server.connect("postgres")) as plain:
            plain.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0")
        with pytest.raises(BadInputError, match=f"{encoding}.*ENCODING 'UTF8'"):
            upgrade_database(postgres_server.url(name))
        assert database_revision(postgres_server.url(name)) is None
        postgres_server.drop(name)


def _name_after(database: Database, statement: str) -> None:
    with database.begin() as conn:
        conn.execute(text(statement))
        get_or_create_annotator(conn, "ann")


def _write_while(database: Database, disturb: Callable[[], object]) -> None:
    with database.begin() as conn:
        get_or_create_annotator(conn, "not committed")
        disturb()
        conn.execute(text("SELECT 1"))


def _kill(server: PostgresServer) -> None:
    """Kill the postmaster and wait for its children, which commit until they notice. Its lock is removed."""
    assert server.process is not None
    children = psutil.Process(server.process.pid).children(recursive=True)
    server.stop(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, 20)
    assert not alive
    (server.folder / "data" / "postmaster.pid").unlink()


def test_our_own_mistakes_are_not_called_outages(database: Database) -> None:
    with pytest.raises(DBAPIError), database.begin() as conn:
        conn.execute(text("SELECT nonsense FROM nowhere"))


def test_times_are_aware_utc_by_the_databases_clock(database: Database) -> None:
    with database.begin() as conn:
        first = database_now(conn)
        again = database_now(conn)
    assert first.tzinfo == UTC
    assert abs(first - datetime.now(UTC)) < timedelta(seconds=5)
    assert again >= first


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        _write_while(database, lambda: 1 // 0)
    with database.connect() as conn:
        assert conn.execute(text("SELECT count(*) FROM annotators")).scalar_one() == 0


def test_an_interrupt_in_a_statement_lets_go_of_the_database_at_once(database: Database) -> None:
    def interrupt(conn: object, cursor: object, statement: str, *_: object) -> None:
        if "RETURNING" in statement:
            raise KeyboardInterrupt

    event_of_sqlalchemy.listen(database.engine, "after_cursor_execute", interrupt)
    try:
        with database.begin() as conn:
            conn.execute(text("UPDATE alembic_version SET version_num = '0' RETURNING version_num"))
        pytest.fail("nothing interrupted it")
    except KeyboardInterrupt:  # its traceback holds the statement
        _write_while(database, lambda: None)
    assert database_revision(database.url) == head_revision()


@pytest.mark.parametrize("statement", [update(EventRow).values(seq=7), delete(EventRow)])
def test_events_are_append_only(catalogue: Catalogue, statement: object) -> None:
    claim = catalogue.claim()
    catalogue.append(claim, event(claim, 1))
    with pytest.raises(DBAPIError, match="append-only"), catalogue.database.begin() as conn:
        conn.execute(statement)  # type: ignore[call-overload]


@pytest.mark.parametrize("statement", [update(MaskRow).values(area=7), delete(MaskRow)])
def test_masks_are_append_only(catalogue: Catalogue, statement: object) -> None:
    with catalogue.database.begin() as conn:
        store_import(conn, catalogue.images[0].id)
    with pytest.raises(DBAPIError, match="append-only"), catalogue.database.begin() as conn:
        conn.execute(statement)  # type: ignore[call-overload]


def test_replace_and_truncate_cannot_pass_the_triggers(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    catalogue.append(claim, event(claim, 1))
    sneaky = {
        "sqlite": "INSERT OR REPLACE INTO events SELECT * FROM events",
        "postgresql": "TRUNCATE events CASCADE",
    }[catalogue.database.dialect]
    with pytest.raises(DBAPIError, match="append-only"), catalogue.database.begin() as conn:
        conn.execute(text(sneaky))


def test_reading_cannot_write_and_leaves_writers_alone(database: Database) -> None:
    with pytest.raises((DBAPIError, DatabaseUnavailableError), match=r"read-?only"):
        _name_while_reading(database)
    for _ in range(2):  # the connection that refused comes back from the pool as a writer
        with database.begin() as conn:
            get_or_create_annotator(conn, "ann")
        with database.connect() as conn:
            assert conn.execute(text("SELECT count(*) FROM annotators")).scalar_one() == 1


def _name_while_reading(database: Database) -> None:
    with database.connect() as conn:
        get_or_create_annotator(conn, "never")


def test_two_threads_write_one_after_the_other(database: Database) -> None:
    def write(name: str) -> None:
        for index in range(20):
            with database.begin() as conn:
                get_or_create_annotator(conn, f"{name}{index}")

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.connect() as conn:
        assert conn.execute(text("SELECT count(*) FROM annotators")).scalar_one() == 40
