"""Group commit: durable before resolved, a refused write fails alone, a failed commit fails all."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, text

from pipeline.storage.annotators import get_or_create_annotator
from pipeline.storage.campaigns import get_campaign
from pipeline.storage.click_log import append_event
from pipeline.storage.database import Database
from pipeline.storage.sessions import session_events
from pipeline.storage.writer import GroupWriter
from schemas.errors import BadInputError, BusyError, DatabaseUnavailableError, GapError, NotFoundError
from tests.pipeline.storage.catalogues import LEASE_S, Catalogue, event


class Held:
    """A write that keeps the writer busy until let go, so that what follows becomes one batch."""

    def __init__(self, writer: GroupWriter) -> None:
        self.started, self.go = threading.Event(), threading.Event()
        self.future = writer.submit(self._wait)
        assert self.started.wait(10)

    def _wait(self, conn: Connection) -> None:
        self.started.set()
        assert self.go.wait(10)


def _names(database: Database) -> list[str]:
    with database.connect() as conn:
        return list(conn.execute(text("SELECT name FROM annotators ORDER BY name")).scalars())


def test_writes_return_their_results_once_durable(database: Database) -> None:
    writer = GroupWriter(database)
    record = writer.submit(lambda conn: get_or_create_annotator(conn, "ann")).result(10)
    assert record.name == "ann"
    assert _names(database) == ["ann"]
    writer.close()


def test_refused_write_fails_alone_in_a_common_transaction(catalogue: Catalogue) -> None:
    writer = GroupWriter(catalogue.database)
    claim = catalogue.claim()

    def append(seq: int) -> Future[Any]:
        sent = event(claim, seq)
        return writer.submit(
            lambda conn: append_event(conn, claim.session_id, sent, catalogue.annotator_id, lease_s=LEASE_S)
        )

    held = Held(writer)
    futures = [append(1), append(2), append(9), append(3)]
    held.go.set()
    assert [futures[index].result(10).seq for index in (0, 1, 3)] == [1, 2, 3]
    with pytest.raises(GapError):
        futures[2].result(10)
    assert writer.commits == 2
    writer.close()
    with catalogue.database.connect() as conn:
        assert [found.seq for found in session_events(conn, claim.session_id)] == [1, 2, 3]


def test_a_broken_write_leaves_nothing_and_hurts_no_other(database: Database) -> None:
    writer = GroupWriter(database)

    def broken(conn: Connection) -> None:
        get_or_create_annotator(conn, "half")
        raise ZeroDivisionError

    held = Held(writer)
    bad = writer.submit(broken)
    good = writer.submit(lambda conn: get_or_create_annotator(conn, "whole"))
    held.go.set()
    with pytest.raises(ZeroDivisionError):
        bad.result(10)
    assert good.result(10).name == "whole"
    writer.close()
    assert _names(database) == ["whole"]


@pytest.mark.parametrize("name", ["a\0b", "half \ud800"])
def test_a_text_that_a_database_cannot_hold_hurts_no_other(database: Database, name: str) -> None:
    writer = GroupWriter(database)
    held = Held(writer)
    bad = writer.submit(lambda conn: get_campaign(conn, name))
    good = writer.submit(lambda conn: get_or_create_annotator(conn, "whole"))
    held.go.set()
    with pytest.raises((BadInputError, NotFoundError)):  # SQLite can look for NUL
        bad.result(10)
    assert good.result(10).name == "whole"
    writer.close()
    with pytest.raises((BadInputError, NotFoundError)), database.connect() as conn:
        get_campaign(conn, name)


def test_unavailable_database_fails_the_batch_and_the_next_one_works(sqlite_database: Database) -> None:
    impatient = Database(sqlite_database.url, busy_timeout_s=0.1)
    writer = GroupWriter(impatient)
    with sqlite_database.begin():
        futures = [writer.submit(lambda conn, n=n: get_or_create_annotator(conn, f"a{n}")) for n in range(3)]  # type: ignore[misc]
        for future in futures:
            with pytest.raises(DatabaseUnavailableError):
                future.result(10)
    assert _names(sqlite_database) == []
    assert writer.submit(lambda conn: get_or_create_annotator(conn, "later")).result(10).name == "later"
    writer.close()
    impatient.close()


def test_commit_that_fails_acknowledges_nothing(database: Database) -> None:
    """A deferred constraint, or a full disk, is only found out by the commit."""
    writer = GroupWriter(database)

    def doomed(conn: Connection) -> str:
        get_or_create_annotator(conn, "never")
        conn.invalidate()
        return "acknowledged"

    future = writer.submit(doomed)
    with pytest.raises(DatabaseUnavailableError):
        future.result(10)
    assert _names(database) == []
    writer.close()


def test_full_queue_is_busy(database: Database) -> None:
    writer = GroupWriter(database, capacity=2)
    held = Held(writer)
    queued = [writer.submit(lambda conn: None) for _ in range(2)]
    with pytest.raises(BusyError):
        writer.submit(lambda conn: None)
    assert writer.waiting == 2
    held.go.set()
    for future in queued:
        future.result(10)
    writer.close()


def test_close_finishes_what_waits_and_refuses_more(database: Database) -> None:
    writer = GroupWriter(database)
    held = Held(writer)
    waiting = [writer.submit(lambda conn, n=n: get_or_create_annotator(conn, f"a{n}")) for n in range(5)]  # type: ignore[misc]
    held.go.set()
    writer.close()
    writer.close()
    assert all(future.done() for future in waiting)
    assert len(_names(database)) == 5
    with pytest.raises(BusyError):
        writer.submit(lambda conn: None)


def test_cancelled_write_is_not_done(database: Database) -> None:
    writer = GroupWriter(database)
    held = Held(writer)
    future = writer.submit(lambda conn: get_or_create_annotator(conn, "cancelled"))
    assert future.cancel()
    held.go.set()
    writer.close()
    assert _names(database) == []


def test_many_threads_share_commits(database: Database) -> None:
    writer = GroupWriter(database)

    def one(index: int) -> None:
        writer.submit(lambda conn: get_or_create_annotator(conn, f"a{index}")).result(30)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(200)))
    writer.close()
    assert len(_names(database)) == 200
    assert writer.commits < 200


@pytest.mark.postgres
def test_lost_deadlock_is_done_again(postgres_database: Database) -> None:
    catalogue = Catalogue(postgres_database, images=2)
    first, second = (text(f"UPDATE images SET size_bytes = size_bytes + 1 WHERE number = {n}") for n in (1, 2))
    writer = GroupWriter(catalogue.database)
    met = threading.Barrier(2)
    runs = 0

    def cross(conn: Connection) -> None:
        nonlocal runs
        runs += 1
        conn.execute(text("SET LOCAL deadlock_timeout = '20ms'"))  # it is this one that finds the deadlock and loses
        conn.execute(second)
        if runs == 1:
            met.wait(10)
        conn.execute(first)

    with catalogue.database.begin() as conn:
        conn.execute(text("SET LOCAL deadlock_timeout = '30s'"))
        conn.execute(first)
        future = writer.submit(cross)
        met.wait(10)
        conn.execute(second)
    future.result(10)
    writer.close()
    assert runs == 2
