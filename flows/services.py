"""What a job works with: settings, the database, and the Ray actors, which are attached or started when first needed.

While `serve` runs it owns the workspace: a command that only looks opens the database beside it (`reading`), one that
changes something goes through its API, or takes the workspace lock when nobody has it (`owning`).
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from flows.client import read_serve_file
from pipeline.storage import campaigns
from pipeline.storage.database import Database, database_revision, head_revision, open_database
from pipeline.storage.lock import WorkspaceLock, is_there
from schemas.campaigns import CampaignRecord
from schemas.errors import BusyError, NotFoundError, WorkspaceLockedError
from schemas.settings import Settings

if TYPE_CHECKING:
    from workers.pool import Pool

logger = logging.getLogger(__name__)

ATTACH_S = 180.0
"""The owner of the actors may be starting, or starting again."""


class ActorsGoneError(BusyError):
    """The owner of the actors ended, and Ray with it: calls that are under way are never answered."""


class Services:
    """Settings, database and, lazily, actors.

    Args:
        settings: Of this process.
        database: Open.
        beside_serve: The actors belong to a running `serve`; else own ones are started, unless some are there.
    """

    def __init__(self, settings: Settings, database: Database, beside_serve: bool = False) -> None:
        self.settings = settings
        self.database = database
        self.storage_url = settings.resolved_storage_url
        self._beside_serve = beside_serve
        self.is_alone = not beside_serve and database.dialect == "sqlite"
        """Whether no other process works on this database: whatever it says is running is dead."""
        self._stack = ExitStack()
        self._pool: Pool | None = None
        self._generation = ""

    def campaign(self, id_or_name: str) -> CampaignRecord:
        """A campaign's record, as it is now.

        Raises:
            NotFoundError: No such campaign.
        """
        with self.database.connect() as conn:
            return campaigns.get_campaign(conn, id_or_name)

    def pool(self, check: Callable[[], None] = lambda: None) -> "Pool":
        """The actors, all answering.

        Args:
            check: Called while waiting for them; raises to stop.

        Raises:
            BusyError: They are not there and did not come in time.
        """
        from workers import cluster

        if not self._beside_serve:
            if self._pool is None:
                self._pool = self._stack.enter_context(cluster.cluster(self.settings))
            return self._pool
        give_up = time.monotonic() + ATTACH_S
        while True:
            check()
            try:
                return self._attached()
            except BusyError as error:
                if time.monotonic() > give_up:
                    raise
                logger.info("waiting for the actors: %s", error)
                time.sleep(1.0)

    def check_actors(self) -> None:
        """Look whether the actors that were attached to can still answer; Ray itself may never say that they cannot.

        Raises:
            ActorsGoneError: Their owner ended; `pool` waits for its successor.
        """
        if not self._beside_serve or self._pool is None:
            return
        from workers import cluster

        info = cluster.find_info(self.settings)
        if info is None or (info.owner_pid and info.generation != self._generation):
            raise ActorsGoneError("The owner of the actors ended while they worked for this job.")
        if cluster.is_node_gone():
            raise ActorsGoneError("The Ray node of this process ended while actors worked for this job.")

    def _attached(self) -> "Pool":
        """The pool of the owner that runs now; another one than before means connecting anew."""
        import ray

        from workers import cluster

        info = cluster.find_info(self.settings)
        on_cluster = info is not None and not info.owner_pid  # where only a look says if the actors are those of before
        if self._pool is not None and not on_cluster:
            if info is not None and info.generation == self._generation:
                return self._pool
            ray.shutdown()
        self._pool = None
        self._pool = cluster.attach(self.settings)
        self._generation = info.generation if info else ""
        return self._pool

    def close(self) -> None:
        """End what was started here (a local Ray), leave alone what was only attached to."""
        self._pool = None
        self._stack.close()


@contextmanager
def owning(settings: Settings) -> Iterator[Database]:
    """The workspace lock and the database, made or upgraded as needed.

    Raises:
        WorkspaceLockedError: Another process owns the workspace.
    """
    with WorkspaceLock(settings.workspace), _opened(settings) as database:
        yield database


@contextmanager
def reading(settings: Settings) -> Iterator[Database]:
    """The database, to look at while others may own the workspace.

    Raises:
        NotFoundError: There is none yet.
        DatabaseVersionError: It is of another version, and its owner has to upgrade it.
    """
    path = settings.sqlite_path
    if path is not None and not is_there(path):
        raise NotFoundError(
            f"There is no database at {path}. Is --workspace right? `clickloop campaign create` makes one."
        )
    old = path is not None and database_revision(settings.resolved_database_url) != head_revision()
    with owning(settings) if old else _opened(settings, embedded=False) as database:
        yield database


@contextmanager
def small_write(settings: Settings) -> Iterator[Database]:
    """The database for one short transaction from the trusted side, also beside a running `serve`."""
    with ExitStack() as stack:
        try:
            database = stack.enter_context(owning(settings))
        except WorkspaceLockedError:
            database = stack.enter_context(_opened(settings, embedded=False))
        yield database


@contextmanager
def open_services(settings: Settings) -> Iterator[Services]:
    """Services of a process that owns the workspace, or works beside the `serve` that does.

    Raises:
        WorkspaceLockedError: Another command owns it.
    """
    with ExitStack() as stack:
        beside_serve = False
        try:
            database = stack.enter_context(owning(settings))
        except WorkspaceLockedError:
            if read_serve_file(settings.workspace) is None:
                raise
            database = stack.enter_context(_opened(settings, embedded=False))
            beside_serve = True
        services = Services(settings, database, beside_serve)
        stack.callback(services.close)
        yield services


@contextmanager
def attached_services(settings: Settings) -> Iterator[Services]:
    """Services of a child of `serve`, which owns the workspace and the actors."""
    with _opened(settings, embedded=False) as database:
        services = Services(settings, database, beside_serve=True)
        try:
            yield services
        finally:
            services.close()


@contextmanager
def _opened(settings: Settings, **options: Any) -> Iterator[Database]:
    database = open_database(settings.resolved_database_url, **options)
    try:
        yield database
    finally:
        database.close()
