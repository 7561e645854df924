"""Long jobs: asked for once, run by one, taken over from the dead, cancelled."""

import threading
from datetime import UTC, datetime

import pytest
from sqlalchemy import update

from pipeline.storage.database import Database
from pipeline.storage.requests import (
    cancel_request,
    claim_request,
    finish_request,
    get_request,
    heartbeat,
    insert_request,
    list_requests,
    put_back_of,
)
from schemas.campaigns import RequestRecord
from schemas.errors import BadInputError, ConflictError, LeaseLostError, NotFoundError, StateError
from schemas.tables import Request
from tests.pipeline.storage.catalogues import Catalogue, new_uuid


def _insert(catalogue: Catalogue, kind: str = "ingest", **payload: object) -> RequestRecord:
    with catalogue.database.begin() as conn:
        return insert_request(conn, new_uuid(), kind, catalogue.campaign_id, payload)


def _claim(database: Database, owner: str = "runner", request_id: str | None = None) -> RequestRecord | None:
    with database.begin() as conn:
        return claim_request(conn, owner, request_id=request_id)


def _silence(catalogue: Catalogue, request_id: str) -> None:
    """Let the owner have been silent for long."""
    with catalogue.database.begin() as conn:
        long_ago = datetime(2020, 1, 1, tzinfo=UTC)
        conn.execute(update(Request).where(Request.id == request_id).values(heartbeat_at=long_ago))


def test_request_runs_to_its_end(catalogue: Catalogue) -> None:
    made = _insert(catalogue, images="/x")
    assert (made.state, made.attempt, made.payload) == ("queued", 0, {"images": "/x"})
    running = _claim(catalogue.database)
    assert running is not None
    assert (running.id, running.state, running.attempt) == (made.id, "running", 1)
    assert _claim(catalogue.database) is None
    with catalogue.database.begin() as conn:
        assert heartbeat(conn, made.id, "runner", {"done": 3}) is False
        assert get_request(conn, made.id).progress == {"done": 3}
        finish_request(conn, made.id, "runner", "done", {"images": 3})
        found = get_request(conn, made.id)
        assert (found.state, found.result, found.error) == ("done", {"images": 3}, None)
        with pytest.raises(LeaseLostError):
            heartbeat(conn, made.id, "runner")


def test_asking_again_is_safe_and_another_payload_a_conflict(catalogue: Catalogue) -> None:
    made = _insert(catalogue, a=1)
    with catalogue.database.begin() as conn:
        assert insert_request(conn, made.id, "ingest", catalogue.campaign_id, {"a": 1}) == made
        for kind, payload in (("ingest", {"a": 2}), ("export", {"a": 1})):
            with pytest.raises(ConflictError):
                insert_request(conn, made.id, kind, catalogue.campaign_id, payload)
        with pytest.raises(BadInputError):
            insert_request(conn, new_uuid(), "nonsense", catalogue.campaign_id, {})
        with pytest.raises(NotFoundError):
            insert_request(conn, new_uuid(), "ingest", new_uuid(), {})
        with pytest.raises(NotFoundError):
            get_request(conn, new_uuid())
        assert insert_request(conn, new_uuid(), "campaign", None, {"create": {}}).campaign_id is None


@pytest.mark.parametrize("kind", ["retrain", "precompute"])
def test_one_active_retrain_or_precompute_per_campaign(catalogue: Catalogue, kind: str) -> None:
    first = _insert(catalogue, kind)
    with pytest.raises(StateError) as caught:
        _insert(catalogue, kind)
    assert caught.value.details == {"request_id": first.id}
    _insert(catalogue, "export")
    _insert(catalogue, "export")
    claimed = _claim(catalogue.database, request_id=first.id)
    assert claimed is not None
    with pytest.raises(StateError):
        _insert(catalogue, kind)
    with catalogue.database.begin() as conn:
        finish_request(conn, first.id, "runner", "failed", error="no images")
    _insert(catalogue, kind)


def test_requests_are_claimed_once_and_oldest_first(catalogue: Catalogue) -> None:
    made = [_insert(catalogue, n=n).id for n in range(12)]
    claimed: list[str] = []

    def work(owner: str) -> None:
        while (found := _claim(catalogue.database, owner)) is not None:
            claimed.append(found.id)

    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(made)
    with catalogue.database.connect() as conn:
        assert {found.id for found in list_requests(conn, catalogue.campaign_id)} == set(made)
        assert len(list_requests(conn, state="running", limit=5)) == 5
        assert list_requests(conn, new_uuid()) == []


def test_named_request_is_claimed_even_if_it_is_not_the_oldest(catalogue: Catalogue) -> None:
    _insert(catalogue, n=1)
    second = _insert(catalogue, n=2)
    claimed = _claim(catalogue.database, request_id=second.id)
    assert claimed is not None
    assert claimed.id == second.id
    assert _claim(catalogue.database, request_id=second.id) is None


def test_silent_owner_loses_its_request(catalogue: Catalogue) -> None:
    made = _insert(catalogue)
    _claim(catalogue.database, "dead")
    assert _claim(catalogue.database, "next") is None
    _silence(catalogue, made.id)
    taken = _claim(catalogue.database, "next")
    assert taken is not None
    assert (taken.id, taken.attempt) == (made.id, 2)
    with catalogue.database.begin() as conn:
        with pytest.raises(LeaseLostError):
            heartbeat(conn, made.id, "dead")
        with pytest.raises(LeaseLostError):
            finish_request(conn, made.id, "dead", "done")
        assert heartbeat(conn, made.id, "next") is False


def test_an_owner_known_to_be_dead_need_not_be_silent(catalogue: Catalogue) -> None:
    made, other = _insert(catalogue, n=1), _insert(catalogue, n=2)
    _claim(catalogue.database, "dead", request_id=made.id)
    _claim(catalogue.database, "alive", request_id=other.id)
    with catalogue.database.begin() as conn:
        put_back_of(conn, "dead")
        assert (get_request(conn, made.id).state, get_request(conn, other.id).state) == ("queued", "running")
    taken = _claim(catalogue.database, "next")
    assert taken is not None
    assert (taken.id, taken.attempt) == (made.id, 2)


def test_third_death_fails_the_request(catalogue: Catalogue) -> None:
    made = _insert(catalogue)
    for attempt in (1, 2, 3):
        claimed = _claim(catalogue.database, str(attempt))
        assert claimed is not None
        assert claimed.attempt == attempt
        _silence(catalogue, made.id)
    assert _claim(catalogue.database) is None
    with catalogue.database.connect() as conn:
        found = get_request(conn, made.id)
    assert (found.state, found.error) == ("failed", "Its runner died 3 times.")


def test_waiting_request_is_cancelled_at_once_and_a_running_one_told(catalogue: Catalogue) -> None:
    waiting, running = _insert(catalogue, n=1), _insert(catalogue, n=2)
    _claim(catalogue.database, request_id=running.id)
    with catalogue.database.begin() as conn:
        assert cancel_request(conn, waiting.id).state == "cancelled"
        told = cancel_request(conn, running.id)
        assert (told.state, told.cancel) == ("running", True)
        assert heartbeat(conn, running.id, "runner") is True
        finish_request(conn, running.id, "runner", "cancelled")
        assert cancel_request(conn, running.id).state == "cancelled"
        with pytest.raises(NotFoundError):
            cancel_request(conn, new_uuid())
    assert _claim(catalogue.database) is None


def test_cancelled_request_of_a_dead_owner_is_not_run_again(catalogue: Catalogue) -> None:
    made = _insert(catalogue)
    _claim(catalogue.database, "dead")
    with catalogue.database.begin() as conn:
        cancel_request(conn, made.id)
    _silence(catalogue, made.id)
    assert _claim(catalogue.database) is None
    with catalogue.database.connect() as conn:
        assert get_request(conn, made.id).state == "cancelled"
