"""Writing the event log: one event, all its checks and all its effects in the caller's transaction.

Knows the rules of the log (who may append, in which order, what a repeated id means); nothing about what an event means
for a mask: that is the session fold's business, which hands over the effects.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from pipeline.storage.numbers import next_number
from pipeline.storage.sessions import session_events
from pipeline.storage.sql import batches, insert_into
from pipeline.storage.tasks import end_lease
from schemas.catalogue import EventResultRecord
from schemas.columns import db_now
from schemas.errors import (
    ConflictError,
    ForbiddenError,
    GapError,
    LeaseLostError,
    NotFoundError,
    StaleEpochError,
    StateError,
)
from schemas.events import EventIn, normalise_payload
from schemas.tables import EventResult, EventRow, Instance, MaskRow, Session, Task

MAX_LACKING = 500
"""Events that a conflict's details carry at most; the client asks for the rest."""
_AFTER = {"submit": ("submitted", "done"), "skip": ("skipped", "skipped"), "release": ("released", "new")}
"""Session state and task state after a session's last event. Submitted tasks are done at once until there is review."""


@dataclass(frozen=True, slots=True)
class InstanceChange:
    """What an instance is after the event."""

    instance_id: str
    state: str = "open"
    category_number: int | None = None
    unsure: bool = False
    mask_id: str | None = None


@dataclass(frozen=True, slots=True)
class NewMask:
    """A mask that the event accepts. Number, version and parent are given when it is written.

    Attributes:
        seq: Newest event whose mask this is.
        rle_counts: COCO compressed counts, ASCII.
        bbox: (x, y, width, height) in pixels.
    """

    mask_id: str
    instance_id: str
    seq: int
    category_number: int | None
    height: int
    width: int
    rle_counts: str
    mask_sha256: str
    area: int
    bbox: tuple[int, int, int, int]
    num_clicks: int
    model_digest: str | None = None
    adapter_digest: str | None = None
    embedding_digest: str | None = None
    engine: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Effects:
    """What else an event changes, in the same transaction. `session_state` None: what its kind implies."""

    instances: list[InstanceChange] = field(default_factory=list)
    new_mask: NewMask | None = None
    session_state: str | None = None


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
        conn: Write transaction.
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
    event_id = str(event.event_id)
    session = _session_and_task(conn, session_id)
    if session.annotator_id != annotator_id:
        raise ForbiddenError("This session is somebody else's.")
    known = conn.execute(select(EventRow.__table__).where(EventRow.event_id == event_id)).one_or_none()
    if known is not None:
        return _again(conn, session, known, event, digest)
    _check(conn, session, event)
    try:
        with conn.begin_nested():
            conn.execute(
                insert(EventRow).values(
                    event_id=event_id,
                    session_id=session_id,
                    seq=event.seq,
                    session_epoch=event.session_epoch,
                    lease_no=event.lease_no,
                    instance_id=_text(event.instance_id),
                    kind=event.kind,
                    payload=payload,
                    payload_sha256=digest,
                    pins=pins,
                    client_time=_aware(event),
                    server_time=db_now(),
                    annotator_id=annotator_id,
                )
            )
    except IntegrityError:  # the same event id, just now, in another session
        raise _conflict(conn, session, event, "Another event has this id") from None
    conn.execute(update(Session).where(Session.id == session_id).values(last_seq=event.seq))
    _apply(conn, session, event, payload, effects or Effects(), lease_s)
    return Appended(event_id, event.seq, duplicate=False)


def record_results(conn: Connection, results: Iterable[EventResultRecord]) -> None:
    """Write (or write again) what computing added to events.

    Raises:
        NotFoundError: One of the events is not in the log.
    """
    for rows in batches(results):
        unique = {row.event_id: row.model_dump(mode="json") for row in rows}
        statement = insert_into(conn, EventResult).values(list(unique.values()))
        fresh = {name: statement.excluded[name] for name in EventResultRecord.model_fields if name != "event_id"}
        try:
            with conn.begin_nested():
                conn.execute(statement.on_conflict_do_update(index_elements=["event_id"], set_=fresh))
        except IntegrityError:
            raise NotFoundError("Results were given for an event that is not in the log.") from None


def _session_and_task(conn: Connection, session_id: str) -> Row[Any]:
    """The session with its task's lease and the time.

    Both rows stay locked, the task's first, as a claim locks them: so appends come one by one, and none after a claim.
    """
    row = conn.execute(
        select(
            Session.__table__,
            Task.lease_no.label("task_lease_no"),
            db_now().label("now"),
        )
        .select_from(Task)
        .join(Session, Session.task_id == Task.id)
        .where(Session.id == session_id)
        .with_for_update(key_share=True)
    ).one_or_none()
    if row is None:
        raise NotFoundError(f"There is no session {session_id!r}.")
    return row


def _again(conn: Connection, session: Row[Any], known: Row[Any], event: EventIn, digest: str) -> Appended:
    same = (known.session_id, known.instance_id, known.payload_sha256) == (
        session.id,
        _text(event.instance_id),
        digest,
    )
    if not same:
        raise _conflict(conn, session, event, "This event id is known with other content")
    return Appended(known.event_id, known.seq, duplicate=True)


def _check(conn: Connection, session: Row[Any], event: EventIn) -> None:
    if session.state == "lost" or session.task_lease_no != session.lease_no:
        raise LeaseLostError(
            "Somebody else holds this task now. Your events are kept; claim a task to go on.",
            lease_no=session.task_lease_no,
        )
    if session.state != "open":
        raise StateError(f"The session is {session.state}; it takes no more events.", state=session.state)
    if event.lease_no != session.lease_no:
        raise LeaseLostError(
            f"The event names lease {event.lease_no}, the session's is {session.lease_no}.", lease_no=session.lease_no
        )
    if event.session_epoch != session.epoch:
        raise StaleEpochError(
            "The session was opened elsewhere; here it is read-only. Open it again to go on here.",
            epoch=session.epoch,
            last_seq=session.last_seq,
        )
    if event.seq <= session.last_seq:
        raise _conflict(conn, session, event, f"Event {event.seq} of this session is another one")
    if event.seq > session.last_seq + 1:
        expected = session.last_seq + 1
        raise GapError(f"Event {event.seq} came, {expected} is due. Send the missing ones first.", expected=expected)


def _conflict(conn: Connection, session: Row[Any], event: EventIn, message: str) -> ConflictError:
    lacking = session_events(conn, session.id, event.seq - 1, limit=MAX_LACKING)
    return ConflictError(
        f"{message}. Take over the events in the details, then send yours with a new id and seq.",
        event_id=str(event.event_id),
        last_seq=session.last_seq,
        events=[found.model_dump(mode="json") for found in lacking],
    )


def _apply(
    conn: Connection, session: Row[Any], event: EventIn, payload: dict[str, Any], effects: Effects, lease_s: float
) -> None:
    opened = payload["mask_id"] if event.kind == "open" else None
    if opened is not None:
        _check_opened(conn, session, opened)
    if effects.new_mask is not None:
        _write_mask(conn, session, str(event.event_id), effects.new_mask)
    for change in effects.instances:
        _put_instance(conn, session, change, opened if change.instance_id == _text(event.instance_id) else None)
    session_state, task_state = _AFTER.get(event.kind, (None, None))
    session_state = effects.session_state or session_state
    if session_state is not None and session_state != session.state:
        conn.execute(update(Session).where(Session.id == session.id).values(state=session_state))
    if task_state is None:
        expires = session.now + timedelta(seconds=lease_s)
        conn.execute(update(Task).where(Task.id == session.task_id).values(lease_expires_at=expires))
    else:
        end_lease(conn, session.task_id, session.lease_no, task_state, reason=session_state or task_state)


def _check_opened(conn: Connection, session: Row[Any], mask_id: str) -> None:
    query = select(MaskRow.id).where(MaskRow.id == mask_id, MaskRow.image_id == session.image_id)
    if conn.execute(query).one_or_none() is None:
        raise NotFoundError(f"There is no mask {mask_id!r} of this image.")


def _put_instance(conn: Connection, session: Row[Any], change: InstanceChange, opened_mask_id: str | None) -> None:
    values = {
        "state": change.state,
        "category_number": change.category_number,
        "unsure": change.unsure,
        "mask_id": change.mask_id,
    }
    own = update(Instance).where(Instance.id == change.instance_id, Instance.session_id == session.id)
    if conn.execute(own.values(**values)).rowcount:
        return
    row = {"campaign_id": session.campaign_id, "image_id": session.image_id, "session_id": session.id, **values}
    statement = insert_into(conn, Instance).values(id=change.instance_id, opened_mask_id=opened_mask_id, **row)
    added = conn.execute(statement.on_conflict_do_nothing(index_elements=["id"]).returning(Instance.id))
    if added.one_or_none() is None:
        raise ConflictError("This instance id is another session's. Make a new UUID.", instance_id=change.instance_id)


def _write_mask(conn: Connection, session: Row[Any], event_id: str, mask: NewMask) -> None:
    previous = conn.execute(
        select(MaskRow.id, MaskRow.version)
        .where(MaskRow.instance_id == mask.instance_id)
        .order_by(MaskRow.version.desc())
        .limit(1)
    ).one_or_none()
    opened = select(Instance.opened_mask_id).where(Instance.id == mask.instance_id)
    parent_id = previous.id if previous is not None else conn.execute(opened).scalar_one_or_none()
    conn.execute(
        insert(MaskRow).values(
            id=mask.mask_id,
            campaign_id=session.campaign_id,
            number=next_number(conn, MaskRow, session.campaign_id),
            image_id=session.image_id,
            instance_id=mask.instance_id,
            version=1 if previous is None else previous.version + 1,
            parent_id=parent_id,
            source="annotator",
            session_id=session.id,
            event_id=event_id,
            seq=mask.seq,
            annotator_id=session.annotator_id,
            category_number=mask.category_number,
            height=mask.height,
            width=mask.width,
            rle_counts=mask.rle_counts,
            mask_sha256=mask.mask_sha256,
            area=mask.area,
            bbox=list(mask.bbox),
            num_clicks=mask.num_clicks,
            model_digest=mask.model_digest,
            adapter_digest=mask.adapter_digest,
            embedding_digest=mask.embedding_digest,
            engine=mask.engine,
            created_at=db_now(),
        )
    )


def _text(value: object | None) -> str | None:
    return None if value is None else str(value)


def _aware(event: EventIn) -> datetime | None:
    time = event.client_time
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time
