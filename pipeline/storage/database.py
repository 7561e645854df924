"""Opening, upgrading and talking to the database: SQLite (embedded) or PostgreSQL. Knows no table.

SQLite runs in WAL mode with synchronous FULL; a write transaction takes the write lock when it begins, so that it never
fails half-way for want of it. SQLite is upgraded when opened, after a copy; PostgreSQL only by `upgrade_database`.
"""

import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from pipeline.storage.sql import database_now
from schemas.errors import BadInputError, DatabaseUnavailableError, DatabaseVersionError

__all__ = [
    "Database",
    "database_now",
    "database_revision",
    "head_revision",
    "is_in_use",
    "knows_revision",
    "migrate",
    "open_database",
    "unstorable",
    "upgrade_database",
]
logger = logging.getLogger(__name__)
MIGRATIONS = "schemas:migrations"
ROOM_BYTES = 1_000_000
"""With less left on SQLite's disk it counts as full: a few commits take so much."""
_OF_A_WRONG_URL = (
    "does not exist",
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "failed to resolve host",
    "does not support SSL",
    "invalid connection option",
    "invalid port number",
    "unrecognized configuration parameter",
    "permission denied for database",
)
"""Of libpq and psycopg: a connection that failed has no code."""
_READ_ONLY = "Let it be written (a standby cannot: name its primary in CLICKLOOP_DATABASE_URL), and try again."
_OF_RIGHTS = "42501"
"""PostgreSQL's code: the user may not do this."""
_NOTICE_A_LOST_HOST = {
    "tcp_user_timeout": 20_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
}
"""Of libpq: else a connection whose host vanished without a word is waited for from a quarter of an hour to hours."""
_OF_LOCKS = frozenset({"55P03", "40P01"})
"""PostgreSQL's codes: a lock did not come in time, or each waited for the other."""


class Database:
    """A database that was opened and whose version fits.

    Args:
        url: SQLAlchemy URL of SQLite (a file) or PostgreSQL.
        busy_timeout_s: How long a transaction waits for locks of others.

    Raises:
        BadInputError: The URL names neither.
    """

    def __init__(self, url: str, *, busy_timeout_s: float = 10.0) -> None:
        parsed = _parse(url)
        self.url = parsed.render_as_string(hide_password=False)
        self.dialect = parsed.get_backend_name()
        self.engine: Engine = _engine(parsed, busy_timeout_s)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A write transaction: committed at the end of the block, rolled back on any error.

        Raises:
            DatabaseUnavailableError: The database is locked, full or gone; nothing was committed, or (when the
                connection broke during the commit) nobody knows: look before doing it again.
            BadInputError: See `unstorable`.
        """
        with _translated(), self.engine.connect() as conn:
            conn.execution_options(clickloop_write=True)
            with conn.begin():
                yield conn

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """A read transaction; the database refuses to write in it.

        Raises:
            DatabaseUnavailableError: The database is locked or gone.
            BadInputError: See `unstorable`.
        """
        with _translated(), self.engine.connect() as conn:
            if self.dialect == "postgresql":
                conn.execution_options(postgresql_readonly=True)
            with conn.begin():
                yield conn

    def check_writable(self) -> None:
        """Look, without writing, whether a click could be stored; the disk of a PostgreSQL is not ours to see.

        Raises:
            DatabaseUnavailableError: The file may not be written, or its disk is full; or a PostgreSQL is read-only.
        """
        if self.dialect == "postgresql":
            with self.begin() as conn:
                if conn.execute(text("SHOW transaction_read_only")).scalar_one() == "on":
                    raise DatabaseUnavailableError(f"The database is read-only: clicks cannot be stored. {_READ_ONLY}")
            return
        path = Path(self.engine.url.database or "")
        if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
            raise DatabaseUnavailableError(f"{path} or its folder may not be written: clicks cannot be stored.")
        if shutil.disk_usage(path.parent).free < ROOM_BYTES:
            raise DatabaseUnavailableError(f"The disk of {path} is full: clicks cannot be stored. Make room on it.")

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def open_database(url: str, *, embedded: bool | None = None, busy_timeout_s: float = 10.0) -> Database:
    """Open a database of this program's version.

    Args:
        url: SQLAlchemy URL.
        embedded: Create or upgrade it first (after a copy beside it); the caller holds the workspace's lock. None: for
            SQLite.
        busy_timeout_s: How long a transaction waits for locks of others.

    Raises:
        DatabaseVersionError: It is newer than this program, is another program's, or is old and not embedded.
        DatabaseUnavailableError: It cannot be reached.
    """
    database = Database(url, busy_timeout_s=busy_timeout_s)
    try:
        if database.dialect == "sqlite" if embedded is None else embedded:
            _upgrade(database, copy=True)
        found, head = _revision(database), head_revision()
        if found != head:
            raise DatabaseVersionError(
                f"The database is at revision {found or 'none (empty)'}, this program needs {head}. "
                "Run `clickloop db upgrade`.",
                found=found,
                head=head,
            )
    except BaseException:
        database.close()
        raise
    return database


def upgrade_database(url: str) -> tuple[str | None, str]:
    """Bring a database to this program's version; a SQLite file is copied first.

    Returns:
        The revision before (None: it was empty) and after.

    Raises:
        DatabaseVersionError: It is newer than this program, or is another program's.
        DatabaseUnavailableError: It cannot be reached.
    """
    with closing(Database(url)) as database:
        return _upgrade(database, copy=database.dialect == "sqlite"), head_revision()


def database_revision(url: str) -> str | None:
    """The revision that a database is at; None when it is empty.

    Raises:
        DatabaseVersionError: It is newer than this program, or is another program's.
        DatabaseUnavailableError: It cannot be reached.
    """
    with closing(Database(url)) as database:
        return _revision(database)


def head_revision() -> str:
    """The revision that this program needs."""
    return _revisions(MIGRATIONS)[0]


def knows_revision(revision: str) -> bool:
    """Whether this program can read a database of that revision."""
    return revision in _revisions(MIGRATIONS)[1]


def migrate(conn: Connection, revision: str) -> None:
    """Run the migrations up to a revision, "head" for the newest, in the caller's write transaction.

    Raises:
        BadInputError: It is an empty PostgreSQL database that does not hold every name.
    """
    if conn.dialect.name == "postgresql" and MigrationContext.configure(conn).get_current_revision() is None:
        encoding = conn.execute(text("SHOW server_encoding")).scalar_one()
        if encoding != "UTF8":
            raise BadInputError(
                f"The database's encoding is {encoding}, which does not hold every name. Make another one: "
                "CREATE DATABASE clickloop ENCODING 'UTF8' TEMPLATE template0."
            )
    config = _config(MIGRATIONS)
    config.attributes["connection"] = conn
    command.upgrade(config, revision)


@cache
def _revisions(location: str) -> tuple[str, frozenset[str]]:
    """The newest revision and all that are known. Looked up once: it reads and runs every migration's file."""
    scripts = ScriptDirectory.from_config(_config(location))
    head = scripts.get_current_head()
    assert head is not None
    return head, frozenset(script.revision for script in scripts.walk_revisions())


def _config(location: str) -> Config:
    config = Config()
    config.set_main_option("script_location", location)
    return config


def _revision(database: Database) -> str | None:
    with database.connect() as conn:
        found = MigrationContext.configure(conn).get_current_revision()
        if found is None and inspect(conn).get_table_names():
            raise DatabaseVersionError("The database has tables, but not Clickloop's. Name another, or an empty one.")
    if found is not None and found not in _revisions(MIGRATIONS)[1]:
        raise DatabaseVersionError(
            f"The database is at revision {found}, which this program (up to {head_revision()}) does not know: "
            "it is newer. Install the newer clickloop, or restore the copy made before its upgrade.",
            found=found,
            head=head_revision(),
        )
    return found


def _upgrade(database: Database, *, copy: bool) -> str | None:
    found = _revision(database)
    if found == head_revision():
        return found
    if copy and found is not None:
        _copy_sqlite(Path(database.engine.url.database or ""), found)
    with database.begin() as conn:
        if database.dialect == "postgresql":  # two upgrades at once: the second finds nothing to do
            conn.execute(text("SELECT pg_advisory_xact_lock(20261120)"))
        migrate(conn, "head")
    logger.info("database upgraded from=%s to=%s", found, head_revision())
    return found


def _copy_sqlite(path: Path, revision: str) -> None:
    """Copy the database, with what is still in its WAL, to `NAME.bak-REVISION`."""
    target = path.with_name(f"{path.name}.bak-{revision}")
    aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(aside)) as copy:
            source.backup(copy)
        aside.replace(target)
    except (sqlite3.Error, OSError) as error:
        raise DatabaseUnavailableError(f"Cannot copy {path} to {target} before upgrading it: {error}.") from error
    finally:
        aside.unlink(missing_ok=True)
    logger.info("database copied to=%s", target)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise BadInputError("The database URL is not one. Example: sqlite:////data/clickloop.db.") from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise BadInputError("SQLite needs a file: sqlite:////data/clickloop.db.")
        return parsed.set(drivername="sqlite+pysqlite", database=unquote(parsed.database))  # see `sqlite_url`
    if backend in {"postgresql", "postgres"}:  # the latter is what libpq, too, takes
        return parsed.set(drivername="postgresql+psycopg")
    raise BadInputError(f"Databases are SQLite and PostgreSQL; the URL names {backend!r}.")


def _engine(url: URL, busy_timeout_s: float) -> Engine:
    if url.get_backend_name() == "sqlite":
        Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url, connect_args={"timeout": busy_timeout_s}, pool_timeout=busy_timeout_s)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        event.listen(engine, "invalidate", _let_go)
        return engine
    engine = create_engine(
        url,
        connect_args={"connect_timeout": 5, "client_encoding": "utf8", **_NOTICE_A_LOST_HOST},
        pool_pre_ping=True,
        pool_timeout=busy_timeout_s,
        max_overflow=20,
    )

    def prepare(connection: Any, record: Any) -> None:
        connection.execute(f"SET lock_timeout = {int(busy_timeout_s * 1000)}")
        connection.execute("SET timezone = 'UTC'")
        connection.commit()

    event.listen(engine, "connect", prepare)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None  # we begin transactions ourselves, see _begin_sqlite
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        "recursive_triggers = ON",  # else REPLACE would delete a logged event without its trigger
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(conn: Connection) -> None:
    write = conn.get_execution_options().get("clickloop_write", False)
    conn.exec_driver_sql(f"PRAGMA query_only = {'OFF' if write else 'ON'}")
    conn.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _let_go(connection: sqlite3.Connection, record: Any, error: BaseException | None) -> None:
    """After Ctrl-C in a statement SQLAlchemy closes the connection, and SQLite ends its transaction once the
    statement is gone, which the exception's traceback holds: nobody could write until then,
    not even down that the job was interrupted.
    """
    with suppress(sqlite3.Error):
        connection.rollback()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except PoolTimeoutError as error:
        raise DatabaseUnavailableError("All database connections are in use. Try again.") from error
    except (DBAPIError, UnicodeEncodeError) as error:
        if (refused := unstorable(error)) is not None:
            raise refused from error
        if not isinstance(error, DBAPIError) or not _is_outage(error):
            raise
        reason = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
        raise DatabaseUnavailableError(f"The database is not available: {reason}. {_advice(error)}") from error


def unstorable(error: Exception) -> BadInputError | None:
    """What to answer when the database cannot take a value: NUL (PostgreSQL), half a character (either one)."""
    if isinstance(error, UnicodeEncodeError):
        return BadInputError("A text holds half of a character (a lone surrogate). Send valid Unicode.")
    if isinstance(error, DataError):
        return BadInputError(f"The database cannot hold a value: {str(error.orig).strip().splitlines()[0]}.")
    return None


def is_in_use(error: DatabaseUnavailableError) -> bool:
    """Whether it was somebody else's lock that was waited for in vain."""
    origin = getattr(error.__cause__, "orig", None)
    code = getattr(origin, "sqlite_errorcode", 0) & 0xFF
    return code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED} or getattr(origin, "sqlstate", None) in _OF_LOCKS


def _advice(error: DBAPIError) -> str:
    """What to do about an outage: trying again mends no damaged file and no wrong URL."""
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return "Move the file, its -wal and its -shm aside, then bring a backup back with `clickloop restore`."
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}:
        return "Check that its file and folder are there and may be written."
    if code == sqlite3.SQLITE_IOERR:
        return "Look at its disk: it may be full, or broken."
    if _is_read_only(error):
        return _READ_ONLY
    if getattr(error.orig, "sqlstate", None) == _OF_RIGHTS:
        return "Give the user of CLICKLOOP_DATABASE_URL the rights of the tables' owner, or name another user."
    if any(words in str(error.orig) for words in _OF_A_WRONG_URL):
        return "Check CLICKLOOP_DATABASE_URL, or make what it names."
    return "Make room on its disk." if code == sqlite3.SQLITE_FULL else "Try again."


def _is_outage(error: DBAPIError) -> bool:
    """Whether it is the database's state and not our statement that is wrong."""
    if error.connection_invalidated:
        return True
    if isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", 1) & 0xFF
        return code not in {
            sqlite3.SQLITE_ERROR,
            sqlite3.SQLITE_CONSTRAINT,
            sqlite3.SQLITE_MISUSE,
            sqlite3.SQLITE_RANGE,
        }
    if getattr(error.orig, "sqlstate", None) == _OF_RIGHTS or _is_read_only(error):
        return True
    if isinstance(error, ProgrammingError) and error.statement is None:  # the URL's options
        return True
    return isinstance(error, OperationalError | InterfaceError)


def _is_read_only(error: DBAPIError) -> bool:
    """Whether a PostgreSQL takes no writes: default_transaction_read_only is on, or it is a standby."""
    code = getattr(error.orig, "sqlstate", None)
    return code == "25006" or (code == "0A000" and "during recovery" in str(error.orig))
