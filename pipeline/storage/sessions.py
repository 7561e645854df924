"""Reading sessions and their events; opening a session again. Writing events: `click_log`."""

from typing import Any

from sqlalchemy import Connection, Row, Select, and_, select, text, update

from pipeline.storage.sql import fields, one
from schemas.campaigns import OpenSession, SessionRecord
from schemas.catalogue import EventResultRecord, InstanceRecord
from schemas.errors import NotFoundError
from schemas.events import Event
from schemas.tables import IS_LEASED, Campaign, EventResult, EventRow, Image, Instance, Session, Task


def get_session(conn: Connection, session_id: str) -> SessionRecord:
    """A session.

    Raises:
        NotFoundError: There is none.
    """
    row = one(conn, select(Session.__table__).where(Session.id == session_id))
    if row is None:
        raise NotFoundError(f"There is no session {session_id!r}.")
    return session_record(row)


def list_sessions(conn: Connection, campaign_id: str, *, state: str | None = None) -> list[SessionRecord]:
    """Sessions of a campaign, oldest first; `state` None: all."""
    query = select(Session.__table__).where(Session.campaign_id == campaign_id)
    if state is not None:
        query = query.where(Session.state == state)
    return [session_record(row) for row in conn.execute(query.order_by(Session.created_at, Session.id))]


def open_sessions(conn: Connection, annotator_id: str, *, limit: int = 20) -> list[OpenSession]:
    """What an annotator has claimed and neither finished nor lost; first what was worked on last (by its lease)."""
    campaign = Campaign.name.label("campaign")
    query = (
        select(Session.id, Session.campaign_id, campaign, Session.image_number, Image.file_name)
        .select_from(Task)
        .join(Session, and_(Session.task_id == Task.id, Session.lease_no == Task.lease_no))
        .join(Image, Image.id == Task.image_id)
        .join(Campaign, Campaign.id == Task.campaign_id)
        .where(text(f"tasks.{IS_LEASED}"), Task.annotator_id == annotator_id)
        .order_by(Task.lease_expires_at.desc(), Task.position)
        .limit(limit)
    )
    return [OpenSession(**row._asdict()) for row in conn.execute(query)]


def reopen_session(conn: Connection, session_id: str) -> SessionRecord:
    """Open an open session again: its epoch goes up, so that older connections turn read-only.

    A session that is over is returned as it is.

    Raises:
        NotFoundError: There is none.
    """
    lock = select(Task.id).join(Session, Session.task_id == Task.id).where(Session.id == session_id)
    conn.execute(lock.with_for_update(key_share=True, of=Task.__table__))  # the order in which appends lock
    again = update(Session).where(Session.id == session_id, Session.state == "open").values(epoch=Session.epoch + 1)
    conn.execute(again)
    return get_session(conn, session_id)


def session_events(conn: Connection, session_id: str, after_seq: int = 0, *, limit: int | None = None) -> list[Event]:
    """Events of a session with seq > `after_seq`, in order."""
    query = select(EventRow.__table__).where(EventRow.session_id == session_id, EventRow.seq > after_seq)
    return [event_record(row) for row in conn.execute(query.order_by(EventRow.seq).limit(limit))]


def event_by_id(conn: Connection, event_id: str) -> Event | None:
    """An event, or None."""
    row = one(conn, select(EventRow.__table__).where(EventRow.event_id == event_id))
    return None if row is None else event_record(row)


def session_instances(conn: Connection, session_id: str) -> list[InstanceRecord]:
    """The projected instances of a session."""
    query = select(Instance.__table__).where(Instance.session_id == session_id).order_by(Instance.id)
    return [_as(InstanceRecord, row) for row in conn.execute(query)]


def session_results(conn: Connection, session_id: str) -> dict[str, EventResultRecord]:
    """What computing added to the session's events, by event id."""
    query: Select[Any] = (
        select(EventResult.__table__)
        .join(EventRow, EventRow.event_id == EventResult.event_id)
        .where(EventRow.session_id == session_id)
    )
    return {row.event_id: _as(EventResultRecord, row) for row in conn.execute(query)}


def session_record(row: Row[Any]) -> SessionRecord:
    """The record of a row with the columns of `sessions`."""
    return SessionRecord(**fields(row, SessionRecord))


def event_record(row: Row[Any]) -> Event:
    """The record of a row with the columns of `events`. The log was validated when it was written."""
    return Event.model_construct(**fields(row, Event))


def _as(record: Any, row: Row[Any]) -> Any:
    return record(**fields(row, record))
