"""Long jobs as rows: asked for by a client-made id, claimed by one flow runner at a time, cancelled between batches.

Knows nothing about what a job does.
"""

import hashlib
import json
from datetime import timedelta
from typing import Any, get_args

from sqlalchemy import ColumnElement, Connection, Executable, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from pipeline.storage.sql import database_now, fields, one, require_id
from pipeline.storage.tombstones import require_no_purge
from schemas.campaigns import RequestRecord
from schemas.columns import db_now
from schemas.errors import BadInputError, ConflictError, LeaseLostError, NotFoundError, StateError
from schemas.tables import Request, RequestKind

MAX_ATTEMPTS = 3
ACTIVE = ("queued", "running")
STALE = timedelta(seconds=60)
"""Without a heartbeat for so long, a request's owner counts as dead."""


def insert_request(
    conn: Connection, id: str, kind: str, campaign_id: str | None, payload: dict[str, Any]
) -> RequestRecord:
    """Ask for a job; asking again with the same id and payload gives the same one.

    Raises:
        BadInputError: There is no such kind, or the id is no UUID.
        NotFoundError: There is no such campaign.
        ConflictError: The id was used with another payload.
        StateError: The campaign has an active retrain or precompute already; `details["request_id"]` names it. Or
            something of it is being purged; then the transaction is to be rolled back.
    """
    require_id(id, "request")
    if kind not in get_args(RequestKind):
        raise BadInputError(f"Unknown request kind {kind!r}. Known: {', '.join(get_args(RequestKind))}.")
    digest = _digest(kind, campaign_id, payload)
    values = {"id": id, "kind": kind, "campaign_id": campaign_id, "payload": payload, "payload_sha256": digest}
    state = {"state": "queued", "progress": {}, "attempt": 0, "cancel": False}
    known = _known(conn, id, digest)
    if known is not None:
        return known
    try:
        with conn.begin_nested():
            row = {**values, **state, "created_at": db_now(), "updated_at": db_now()}
            conn.execute(insert(Request).values(**row))
    except IntegrityError:
        known = _known(conn, id, digest)  # the same request, just now, by another process
        if known is not None:
            return known
        active = one(conn, _active(campaign_id, kind))
        if active is None:
            raise NotFoundError(f"There is no campaign {campaign_id!r}.") from None
        raise StateError(
            f"A {kind} of this campaign is {active.state} already: request {active.id}.", request_id=active.id
        ) from None
    require_no_purge(conn, campaign_id)
    return get_request(conn, id)


def find_waiting(conn: Connection, kind: str, campaign_id: str | None, payload: dict[str, Any]) -> str | None:
    """Id of a job that waits and was asked for just so, such as one whose process died; None: there is none.

    Args:
        conn: Write transaction; nobody else can claim the job until it ends.
        kind: As for `insert_request`, and so the others.
        campaign_id: Likewise.
        payload: Likewise.
    """
    same = Request.payload_sha256 == _digest(kind, campaign_id, payload), Request.state == "queued"
    oldest = select(Request.id).where(*same).order_by(Request.created_at, Request.id).limit(1)
    row = one(conn, oldest.with_for_update(skip_locked=True))
    return None if row is None else str(row.id)


def claim_request(
    conn: Connection, owner: str, stale: timedelta = STALE, *, request_id: str | None = None
) -> RequestRecord | None:
    """Take the oldest waiting job, or just the named one if it waits.

    Running jobs whose owner has not been heard of for `stale` are put back first, or failed after the third attempt.

    Args:
        conn: Write transaction.
        owner: Who will run it: unique per process, at most 64 characters.
        stale: Without a heartbeat for so long, an owner counts as gone.
        request_id: Claim only this one.

    Returns:
        The job, now running, its attempt counted; None when none waits.
    """
    assert 0 < len(owner) <= 64, owner
    put_back_silent(conn, stale)
    query = select(Request.id, Request.attempt).where(Request.state == "queued")
    if request_id is not None:
        query = query.where(Request.id == request_id)
    row = one(conn, query.order_by(Request.created_at, Request.id).limit(1).with_for_update(skip_locked=True))
    if row is None:
        return None
    conn.execute(
        update(Request)
        .where(Request.id == row.id)
        .values(state="running", owner=owner, attempt=row.attempt + 1, heartbeat_at=db_now(), updated_at=db_now())
    )
    return get_request(conn, row.id)


def heartbeat(conn: Connection, id: str, owner: str, progress: dict[str, Any] | None = None) -> bool:
    """Say that the job is alive, and how far it is.

    Returns:
        Whether it is to stop.

    Raises:
        LeaseLostError: Somebody else runs it, or it is over.
    """
    values: dict[str, Any] = {"heartbeat_at": db_now(), "updated_at": db_now()}
    if progress is not None:
        values["progress"] = progress
    row = conn.execute(_own(id, owner).values(**values).returning(Request.cancel)).one_or_none()
    if row is None:
        raise _lost(id)
    return bool(row.cancel)


def finish_request(
    conn: Connection,
    id: str,
    owner: str,
    state: str,
    result: dict[str, Any] | None = None,
    error: str | None = None,
) -> None:
    """End a job as done, failed or cancelled.

    Raises:
        LeaseLostError: Somebody else runs it, or it is over.
    """
    assert state in {"done", "failed", "cancelled"}, state
    values = {"state": state, "result": result, "error": error, "updated_at": db_now()}
    if conn.execute(_own(id, owner).values(**values)).rowcount == 0:
        raise _lost(id)


def put_back(conn: Connection, id: str, owner: str, *, count_attempt: bool = False) -> None:
    """Let a running job wait again; by default its attempt does not count: its runner ends, the job is not to blame.

    Raises:
        LeaseLostError: Somebody else runs it, or it is over.
    """
    attempt = Request.attempt if count_attempt else Request.attempt - 1
    values = {"state": "queued", "owner": None, "attempt": attempt, "updated_at": db_now()}
    if conn.execute(_own(id, owner).values(**values)).rowcount == 0:
        raise _lost(id)


def put_back_silent(conn: Connection, stale: timedelta) -> None:
    """Let running jobs whose owner has not been heard of for `stale` wait again; fail them after the third attempt."""
    _put_back(conn, Request.heartbeat_at < database_now(conn) - stale)


def put_back_of(conn: Connection, owner: str) -> None:
    """Let the running jobs of an owner known to be dead wait again, as `claim_request` does with silent ones."""
    _put_back(conn, Request.owner == owner)


def cancel_request(conn: Connection, id: str) -> RequestRecord:
    """Cancel a waiting job at once, or ask a running one to stop; one that is over stays as it is.

    Raises:
        NotFoundError: There is no such request.
    """
    waiting = update(Request).where(Request.id == id, Request.state == "queued")
    conn.execute(waiting.values(state="cancelled", cancel=True, updated_at=db_now()))
    running = update(Request).where(Request.id == id, Request.state == "running")
    conn.execute(running.values(cancel=True, updated_at=db_now()))
    return get_request(conn, id)


def get_request(conn: Connection, id: str) -> RequestRecord:
    """A job.

    Raises:
        NotFoundError: There is no such request.
    """
    row = one(conn, select(Request.__table__).where(Request.id == id))
    if row is None:
        raise NotFoundError(f"There is no request {id!r}.")
    return _record(row)


def list_requests(
    conn: Connection,
    campaign_id: str | None = None,
    *,
    kind: str | None = None,
    state: str | None = None,
    active: bool = False,
    limit: int | None = 100,
) -> list[RequestRecord]:
    """Jobs, newest first; None: of all campaigns and kinds, in all states; `active`: only waiting and running ones."""
    query = select(Request.__table__)
    if campaign_id is not None:
        query = query.where(Request.campaign_id == campaign_id)
    if state is not None:
        query = query.where(Request.state == state)
    if kind is not None:
        query = query.where(Request.kind == kind)
    if active:
        query = query.where(Request.state.in_(ACTIVE))
    return [_record(row) for row in conn.execute(query.order_by(Request.created_at.desc(), Request.id).limit(limit))]


def _put_back(conn: Connection, of_dead: ColumnElement[bool]) -> None:
    dead = update(Request).where(Request.state == "running", of_dead)
    now = {"owner": None, "updated_at": db_now()}
    conn.execute(dead.where(Request.cancel).values(state="cancelled", **now))
    failure = f"Its runner died {MAX_ATTEMPTS} times."
    conn.execute(dead.where(Request.attempt >= MAX_ATTEMPTS).values(state="failed", error=failure, **now))
    conn.execute(dead.values(state="queued", **now))


def _digest(kind: str, campaign_id: str | None, payload: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([kind, campaign_id, payload], sort_keys=True).encode()).hexdigest()


def _known(conn: Connection, id: str, digest: str) -> RequestRecord | None:
    row = one(conn, select(Request.__table__).where(Request.id == id))
    if row is None:
        return None
    if row.payload_sha256 != digest:
        raise ConflictError("This request id was used for another request. Make a new UUID.", request_id=id)
    return _record(row)


def _active(campaign_id: str | None, kind: str) -> Executable:
    query = select(Request.id, Request.state).where(Request.campaign_id == campaign_id, Request.kind == kind)
    return query.where(Request.state.in_(ACTIVE)).limit(1)


def _own(id: str, owner: str) -> Any:
    return update(Request).where(Request.id == id, Request.owner == owner, Request.state == "running")


def _lost(id: str) -> LeaseLostError:
    return LeaseLostError(f"Request {id} is run by another process by now, or over. Stop.", request_id=id)


def _record(row: Row[Any]) -> RequestRecord:
    return RequestRecord(**fields(row, RequestRecord))
