"""Writing the event log: one event, all its checks and all its effects in the caller's transaction.

Knows the rules of the log (who may append, in which order, what a repeated id means); nothing about what an event means
for a mask: that is the session fold's business, which hands over the effects. Statements are built once: this is the
path of every click.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select, update
from sqlalchemy.exc import IntegrityError

from pipeline.storage.effects import Effects, InstanceChange, NewMask, apply_effects
from pipeline.storage.sessions import event_by_id, session_events
from pipeline.storage.sql import batches, insert_into
from schemas.catalogue import EventResultRecord
from schemas.columns import db_now
from schemas.errors import (
    ClickloopError,
    ConflictError,
    ForbiddenError,
    GapError,
    LeaseLostError,
    NotFoundError,
    StaleEpochError,
    StateError,
)
from schemas.events import Event, EventIn, normalise_payload
from schemas.tables import EventResult, EventRow, Session, Task

__all__ = ["Appended", "Effects", "InstanceChange", "NewMask", "append_event", "record_results"]
MAX_LACKING = 500
"""Events that a conflict's details carry at most; the client asks for the rest."""

_LOCK = (
    select(Session.__table__, Task.lease_no.label("task_lease_no"), db_now().label("now"))
    .select_from(Task)
    .join(Session, Session.task_id == Task.id)
    .where(Session.id == bindparam("session"))
    .with_for_update(key_share=True)
)
"""The session with its task's lease and the time. Both rows stay locked, the task's first, as a claim locks them:
appends come one by one, and none after a claim."""
_ADVANCE = update(Session).where(Session.id == bindparam("session")).values(last_seq=bindparam("seq"))


@dataclass(frozen=True, slots=True)
class Appended:
    """The acknowledgement of an event: durable once the transaction has committed."""

    event_id: str
    seq: int
    duplicate: bool


def append_event(
    conn: Connection,
    session_id: str,
    event: EventIn,
    annotator_id: str,
    *,
    lease_s: float,
    pins: dict[str, Any] | None = None,
    effects: Effects | None = None,
) -> Appended:
    """Append one event to a session, or acknowledge it again.

    Args:
        conn: Write transaction; to be rolled back (to a savepoint) when this raises.
        session_id: The session.
        event: As the client sent it.
        annotator_id: Who sent it.
        lease_s: Seconds by which the lease is renewed.
        pins: What the instance's masks are computed with, for its first event.
        effects: What else changes.

    Raises:
        BadInputError: The payload does not fit the kind.
        NotFoundError: There is no such session, or an opened mask is none of this image's.
        ForbiddenError: The session is somebody else's.
        ConflictError: The event id is known with other content, or the seq is another event's; `details["events"]`
            are the events that the client lacks.
        LeaseLostError: Somebody else holds the task.
        StaleEpochError: The session was opened elsewhere; `details["epoch"]` is the current one.
        StateError: The session is over.
        GapError: `details["expected"]` is the seq that is due.
    """
    payload, digest = normalise_payload(event.kind, event.payload)
    session = conn.execute(_LOCK, {"session": session_id}).one_or_none()
    if session is None:
        raise NotFoundError(f"There is no session {session_id!r}.")
    if session.annotator_id != annotator_id:
        raise ForbiddenError("This session is somebody else's.")
    if _is_due(session, event) and _insert(conn, session, event, payload, digest, pins):
        conn.execute(_ADVANCE, {"session": session_id, "seq": event.seq})
        apply_effects(conn, session, event, payload, effects or Effects(), lease_s)
        return Appended(str(event.event_id), event.seq, duplicate=False)
    known = event_by_id(conn, str(event.event_id))
    if known is None:
        raise _refusal(conn, session, event)
    if (known.session_id, known.instance_id, known.payload_sha256) != (session_id, _text(event.instance_id), digest):
        raise _conflict(conn, session, event, "This event id is known with other content")
    return Appended(known.event_id, known.seq, duplicate=True)


def record_results(conn: Connection, results: Iterable[EventResultRecord]) -> None:
    """Write (or write again) what computing added to events.

    Raises:
        NotFoundError: One of the events is not in the log.
    """
    for rows in batches(results):
        unique = {row.event_id: row.model_dump(mode="json") for row in rows}
        try:
            with conn.begin_nested():
                conn.execute(_put_result(conn.dialect.name), list(unique.values()))
        except IntegrityError:
            raise NotFoundError("Results were given for an event that is not in the log.") from None


def _is_due(session: Row[Any], event: EventIn) -> bool:
    """Whether the event may be the session's next one."""
    held = session.state == "open" and session.task_lease_no == session.lease_no == event.lease_no
    return bool(held and event.session_epoch == session.epoch and event.seq == session.last_seq + 1)


def _insert(
    conn: Connection,
    session: Row[Any],
    event: EventIn,
    payload: dict[str, Any],
    digest: str,
    pins: dict[str, Any] | None,
) -> bool:
    """Insert the event unless its id is known; never without looking at the known one afterwards."""
    values = {
        "event_id": str(event.event_id),
        "session_id": session.id,
        "seq": event.seq,
        "session_epoch": event.session_epoch,
        "lease_no": event.lease_no,
        "instance_id": _text(event.instance_id),
        "kind": event.kind,
        "payload": payload,
        "payload_sha256": digest,
        "pins": pins,
        "client_time": event.client_time,
        "annotator_id": session.annotator_id,
    }
    inserted = conn.execute(_insert_unknown(conn.dialect.name), values).one_or_none()
    return inserted is not None


@cache
def _insert_unknown(dialect: str) -> Any:
    statement = insert_into(dialect, EventRow).values(server_time=db_now())
    return statement.on_conflict_do_nothing(index_elements=["event_id"]).returning(EventRow.event_id)


@cache
def _put_result(dialect: str) -> Any:
    statement = insert_into(dialect, EventResult)
    fresh = {name: statement.excluded[name] for name in EventResultRecord.model_fields if name != "event_id"}
    return statement.on_conflict_do_update(index_elements=["event_id"], set_=fresh)


def _refusal(conn: Connection, session: Row[Any], event: EventIn) -> ClickloopError:
    """Why an event that is not known cannot be appended."""
    if session.state == "lost" or session.task_lease_no != session.lease_no:
        return LeaseLostError(
            "Somebody else holds this task now. Your events are kept; claim a task to go on.",
            lease_no=session.task_lease_no,
        )
    if session.state != "open":
        return StateError(f"The session is {session.state}; it takes no more events.", state=session.state)
    if event.lease_no != session.lease_no:
        return LeaseLostError(
            f"The event names lease {event.lease_no}, the session's is {session.lease_no}.", lease_no=session.lease_no
        )
    if event.session_epoch != session.epoch:
        message = "The session was opened elsewhere; here it is read-only. Open it again to go on here."
        if event.session_epoch > session.epoch:
            message = f"The session was opened {session.epoch} times, the event names opening {event.session_epoch}. "
            message += "Open it again."
        return StaleEpochError(
            message,
            epoch=session.epoch,
            last_seq=session.last_seq,
        )
    if event.seq <= session.last_seq:
        return _conflict(conn, session, event, f"Event {event.seq} of this session is another one")
    expected = session.last_seq + 1
    return GapError(f"Event {event.seq} came, {expected} is due. Send the missing ones first.", expected=expected)


def _conflict(conn: Connection, session: Row[Any], event: EventIn, message: str) -> ConflictError:
    lacking: list[Event] = session_events(conn, session.id, event.seq - 1, limit=MAX_LACKING)
    return ConflictError(
        f"{message}. Take over the events in the details, then send yours with a new id and seq.",
        event_id=str(event.event_id),
        last_seq=session.last_seq,
        events=[found.model_dump(mode="json") for found in lacking],
    )


def _text(value: object | None) -> str | None:
    return None if value is None else str(value)
