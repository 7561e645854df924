"""Real databases for tests: SQLite files, and one PostgreSQL server per test session (its own, started here).

Use: `from tests.databases import database, postgres_server, ...  # noqa: F401` in a conftest.
"""

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pipeline.storage.database import Database, open_database, upgrade_database
from tests.conftest import need

TEMPLATE = "clickloop_template"
BINARIES = "/usr/lib/postgresql"


def postgres_bin() -> Path | None:
    """Folder of the newest PostgreSQL server binaries, None when there are none."""
    found = sorted(Path(BINARIES).glob("*/bin/postgres"), key=lambda path: int(path.parent.parent.name))
    if found:
        return found[-1].parent
    config = shutil.which("pg_config")
    if config is None:
        return None
    folder = Path(subprocess.run([config, "--bindir"], check=True, capture_output=True, text=True).stdout.strip())
    return folder if (folder / "postgres").exists() else None


class PostgresServer:
    """A throw-away server that listens on a socket in its folder only. It dies with the test process.

    Args:
        binaries: Folder of the programs.
        folder: Empty, with a short path that everybody may enter; None: a new one in /tmp. Removed by `close`.
    """

    def __init__(self, binaries: Path, folder: Path | None = None) -> None:
        self.binaries = binaries
        # Short: a socket's path has < 108 characters.
        self.folder = folder or Path(tempfile.mkdtemp(prefix="clpg-", dir="/tmp"))
        self.account = pwd.getpwnam("postgres") if os.getuid() == 0 else None  # initdb refuses root
        if self.account is not None:
            os.chown(self.folder, self.account.pw_uid, self.account.pw_gid)
        self.process: subprocess.Popen[bytes] | None = None
        self.superuser = self.account.pw_name if self.account else pwd.getpwuid(os.getuid()).pw_name
        self._run("initdb", "-D", f"{self.folder}/data", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C")

    def start(self) -> None:
        """Start and wait until it answers."""
        settings = ("listen_addresses=", f"unix_socket_directories={self.folder}", "fsync=off", "full_page_writes=off")
        settings += ("max_connections=60", "shared_buffers=32MB", "logging_collector=off")
        command = [f"{self.binaries}/postgres", "-D", f"{self.folder}/data"]
        self.process = self._popen([*command, *(part for s in settings for part in ("-c", s))])
        for _ in range(200):
            try:
                self.connect("postgres").close()
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.05)
        raise AssertionError("PostgreSQL did not start:\n" + (self.folder / "log").read_text())

    def stop(self, how: int = signal.SIGQUIT) -> None:
        """Stop at once (SIGQUIT) or as told, and wait."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(timeout=30)
            self.process = None

    def close(self) -> None:
        """Stop and remove everything."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, name: str) -> str:
        """SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://{self.superuser}@/{name}?host={self.folder}"

    def connect(self, name: str) -> psycopg.Connection[Any]:
        """A plain connection that commits each statement."""
        return psycopg.connect(host=str(self.folder), user=self.superuser, dbname=name, autocommit=True)

    def create(self, template: str | None = None) -> str:
        """Create a database (a copy of `template`); returns its name."""
        name = f"t_{uuid.uuid4().hex[:12]}"
        with closing(self.connect("postgres")) as conn:
            conn.execute(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))
        return name

    def drop(self, name: str) -> None:
        """Drop a database, whoever is connected."""
        with closing(self.connect("postgres")) as conn:
            conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def dump_schema(self, name: str) -> str:
        """`pg_dump --schema-only`, without the version table."""
        command = [f"{self.binaries}/pg_dump", "-s", "-h", str(self.folder), "-U", self.superuser]
        command += ["-T", "alembic_version", name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def _run(self, program: str, *arguments: str) -> None:
        done = self._popen([f"{self.binaries}/{program}", *arguments]).wait(timeout=60)
        assert done == 0, (self.folder / "log").read_text()

    def _popen(self, command: list[str]) -> subprocess.Popen[bytes]:
        account = self.account
        rights: dict[str, Any] = (
            {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        )
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, preexec_fn=_die_with_parent, **rights
            )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG


@contextmanager
def running_postgres(folder: Path | None = None) -> Iterator[PostgresServer]:
    """A server of one's own (see `PostgresServer`), for tests that stop it."""
    binaries = postgres_bin()
    need("postgres", binaries is not None, "no PostgreSQL server binaries are installed")
    assert binaries is not None
    server = PostgresServer(binaries, folder)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The session's server, with a migrated template database."""
    with running_postgres() as server:
        with closing(server.connect("postgres")) as conn:
            conn.execute(f"CREATE DATABASE {TEMPLATE}")
        upgrade_database(server.url(TEMPLATE))
        yield server


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy from."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    open_database(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty, migrated database: once on SQLite, once on PostgreSQL."""
    if request.param == "sqlite":
        path = tmp_path / "clickloop.db"
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), path)
        yield f"sqlite:///{path}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.create(TEMPLATE)
    yield server.url(name)
    server.drop(name)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty, migrated database: once on SQLite, once on PostgreSQL."""
    opened = open_database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def postgres_database(postgres_server: PostgresServer) -> Iterator[Database]:
    """An empty, migrated PostgreSQL database."""
    name = postgres_server.create(TEMPLATE)
    opened = open_database(postgres_server.url(name))
    yield opened
    opened.close()
    postgres_server.drop(name)


@pytest.fixture
def sqlite_database(migrated_sqlite: Path, tmp_path: Path) -> Iterator[Database]:
    """An empty, migrated SQLite database."""
    path = tmp_path / "clickloop.db"
    shutil.copyfile(migrated_sqlite, path)
    opened = open_database(f"sqlite:///{path}")
    yield opened
    opened.close()


MakeUrl = Callable[[], str]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeUrl]:
    """Makes URLs of databases without any table."""
    if request.param == "sqlite":
        yield lambda: f"sqlite:///{tmp_path / uuid.uuid4().hex}.db"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    names: list[str] = []

    def make() -> str:
        names.append(server.create())
        return server.url(names[-1])

    yield make
    for name in names:
        server.drop(name)
