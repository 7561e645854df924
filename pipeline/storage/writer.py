"""Group commit: one thread commits whatever has queued while the last commit ran. Knows nothing of what is written.

One commit per click is bound by fsync; and two SQLite writers starve each other. There is no timer: a lone write is
committed at once.
"""

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from pipeline.storage.database import Database, unstorable
from schemas.errors import BusyError, ClickloopError, DatabaseUnavailableError

logger = logging.getLogger(__name__)
T = TypeVar("T")
Write = Callable[[Connection], Any]
MAX_BATCH = 256


class GroupWriter:
    """Runs writes one after the other, each in a savepoint of a common transaction.

    A write that raises fails alone and leaves nothing behind. A future is resolved only after the commit that made it
    durable; when that fails, every write of the batch fails. A batch that lost a deadlock is done once more, so a write
    may run twice (its first run left nothing).

    Args:
        database: Where to write.
        capacity: Writes that may wait.
    """

    def __init__(self, database: Database, *, capacity: int = 4096) -> None:
        self._database = database
        self._queue: queue.Queue[tuple[Write, Future[Any]] | None] = queue.Queue(capacity)
        self._closing = threading.Lock()
        self._closed = False
        self.commits = 0
        """Transactions committed so far."""
        self._thread = threading.Thread(target=self._run, name="clickloop-writer", daemon=True)
        self._thread.start()

    def submit(self, write: Callable[[Connection], T]) -> "Future[T]":
        """Queue a write.

        Args:
            write: Gets the open connection; must not commit, block or do I/O of its own.

        Returns:
            Its result, once durable; or its error; or DatabaseUnavailableError.

        Raises:
            BusyError: The queue is full, or the writer is closed.
        """
        future: Future[T] = Future()
        with self._closing:
            if self._closed:
                raise BusyError("The server is shutting down. Try again.")
            try:
                self._queue.put_nowait((write, future))
            except queue.Full:
                raise BusyError("Too many writes are waiting. Try again.", waiting=self._queue.qsize()) from None
        return future

    @property
    def waiting(self) -> int:
        """Writes in the queue."""
        return self._queue.qsize()

    def close(self) -> None:
        """Take no more writes, finish those that wait, and end the thread."""
        with self._closing:
            already, self._closed = self._closed, True
        if not already:
            self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        last = False
        while not last:
            item = self._queue.get()
            batch: list[tuple[Write, Future[Any]]] = []
            while item is not None:
                if item[1].set_running_or_notify_cancel():
                    batch.append(item)
                if len(batch) == MAX_BATCH:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            last = item is None
            if batch:
                self._commit(batch)

    def _commit(self, batch: list[tuple[Write, Future[Any]]]) -> None:
        try:
            try:
                outcomes = self._transaction(batch)
            except DatabaseUnavailableError as error:
                if not _lost_deadlock(error):
                    raise
                outcomes = self._transaction(batch)
        except BaseException as error:
            if not isinstance(error, ClickloopError):
                logger.exception("writing a batch failed size=%d", len(batch))
            for _, future in batch:
                future.set_exception(_unavailable(error))
            return
        self.commits += 1
        for (_, future), (result, failure) in zip(batch, outcomes, strict=True):
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)

    def _transaction(self, batch: list[tuple[Write, Future[Any]]]) -> list[tuple[Any, BaseException | None]]:
        outcomes: list[tuple[Any, BaseException | None]] = []
        with self._database.begin() as conn:
            for write, _ in batch:
                try:
                    with conn.begin_nested():
                        outcomes.append((write(conn), None))
                except Exception as error:
                    if isinstance(error, DBAPIError) and not isinstance(error, IntegrityError | DataError):
                        raise  # the database's state, not this row's fault
                    outcomes.append((None, unstorable(error) or error))
        return outcomes


def _lost_deadlock(error: DatabaseUnavailableError) -> bool:
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and getattr(cause.orig, "sqlstate", None) in {"40P01", "40001"}


def _unavailable(error: BaseException) -> DatabaseUnavailableError:
    if isinstance(error, DatabaseUnavailableError):
        return error
    failure = DatabaseUnavailableError("The write failed. Try again.")
    failure.__cause__ = error
    return failure
