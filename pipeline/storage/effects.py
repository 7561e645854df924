"""What an event changes besides the log: instances, accepted masks, the states of session and task.

Knows nothing about what an event means for a mask: the session fold hands over the outcome. All in the caller's
transaction.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, func, insert, select, update

from pipeline.storage.numbers import next_number
from pipeline.storage.sql import insert_into
from pipeline.storage.tallies import counted
from pipeline.storage.tasks import end_lease
from schemas.columns import db_now
from schemas.errors import ConflictError, NotFoundError
from schemas.events import EventIn
from schemas.tables import Instance, MaskRow, Session, Task

_AFTER = {"submit": ("submitted", "done"), "skip": ("skipped", "skipped"), "release": ("released", "new")}
"""Session state and task state after a session's last event. Submitted tasks are done at once until there is review."""


_RENEW = update(Task).where(Task.id == bindparam("task")).values(lease_expires_at=bindparam("expires"))
_CHANGE = (
    update(Instance)
    .where(Instance.id == bindparam("instance"), Instance.session_id == bindparam("session"))
    .values(
        state=bindparam("to_state"),
        category_number=bindparam("to_category_number"),
        unsure=bindparam("to_unsure"),
        mask_id=bindparam("to_mask_id"),
    )
)


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
        score: The IoU that the model states, in [0, 1]; None where it predicted nothing: that of the mask it was made
            from is kept then, if the pixels are the same.
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
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Effects:
    """What else an event changes, in the same transaction. `session_state` None: what its kind implies."""

    instances: list[InstanceChange] = field(default_factory=list)
    new_mask: NewMask | None = None
    session_state: str | None = None


def apply_effects(
    conn: Connection, session: Row[Any], event: EventIn, payload: Mapping[str, Any], effects: Effects, lease_s: float
) -> None:
    """Apply what an event that was just appended changes, and renew the lease or end it.

    Args:
        conn: Write transaction.
        session: Row of `sessions` with `now`, as locked by the append.
        event: The event.
        payload: Its stored payload.
        effects: What the session fold says.
        lease_s: Seconds by which the lease is renewed.

    Raises:
        NotFoundError: An opened mask is none of this image's.
        ConflictError: An instance id is another session's.
    """
    instance_id = None if event.instance_id is None else str(event.instance_id)
    opened = payload["mask_id"] if event.kind == "open" else None
    if opened is not None:
        opened = _newest(conn, session, opened)
    if effects.new_mask is not None:
        _write_mask(conn, session, str(event.event_id), effects.new_mask)
    for change in effects.instances:
        _put_instance(conn, session, change, opened if change.instance_id == instance_id else None)
    session_state, task_state = _AFTER.get(event.kind, (None, None))
    session_state = effects.session_state or session_state
    if session_state is not None and session_state != session.state:
        ended = update(Session).where(Session.id == session.id).values(state=session_state)
        if session_state == "submitted":  # now its masks are current, and those that it replaced no longer
            with counted(conn, session.campaign_id, [session.image_id]):
                conn.execute(ended)
        else:
            conn.execute(ended)
    if task_state is None:
        expires = session.now + timedelta(seconds=lease_s)
        conn.execute(_RENEW, {"task": session.task_id, "expires": expires})
    else:
        end_lease(conn, session.task_id, session.lease_no, task_state, reason=session_state or task_state)


def _newest(conn: Connection, session: Row[Any], mask_id: str) -> str:
    """The opened mask, or the version that an import has made of it since: that one is replaced."""
    imported = and_(Instance.id == MaskRow.instance_id, Instance.session_id.is_(None))
    query = select(func.coalesce(Instance.mask_id, MaskRow.id)).select_from(MaskRow).outerjoin(Instance, imported)
    newest = conn.execute(query.where(MaskRow.id == mask_id, MaskRow.image_id == session.image_id)).scalar_one_or_none()
    if newest is None:
        raise NotFoundError(f"There is no mask {mask_id!r} of this image.")
    return str(newest)


def _put_instance(conn: Connection, session: Row[Any], change: InstanceChange, opened_mask_id: str | None) -> None:
    values = {
        "state": change.state,
        "category_number": change.category_number,
        "unsure": change.unsure,
        "mask_id": change.mask_id,
    }
    to = {f"to_{name}": value for name, value in values.items()}
    if conn.execute(_CHANGE, {"instance": change.instance_id, "session": session.id, **to}).rowcount:
        return
    statement = insert_into(conn, Instance).values(
        id=change.instance_id,
        campaign_id=session.campaign_id,
        image_id=session.image_id,
        session_id=session.id,
        opened_mask_id=opened_mask_id,
        image_number=session.image_number,
        **values,
    )
    added = conn.execute(statement.on_conflict_do_nothing(index_elements=["id"]).returning(Instance.id))
    if added.one_or_none() is None:
        raise ConflictError("This instance id is another session's. Make a new UUID.", instance_id=change.instance_id)


def _write_mask(conn: Connection, session: Row[Any], event_id: str, mask: NewMask) -> None:
    columns = select(MaskRow.id, MaskRow.version, MaskRow.mask_sha256, MaskRow.score)
    own = columns.where(MaskRow.instance_id == mask.instance_id).order_by(MaskRow.version.desc()).limit(1)
    previous = conn.execute(own).one_or_none()
    opened = select(Instance.opened_mask_id).where(Instance.id == mask.instance_id).scalar_subquery()
    parent = previous or conn.execute(columns.where(MaskRow.id == opened)).one_or_none()
    # Of pixels that nobody changed holds what a model said of them before.
    score = parent.score if mask.score is None and parent and parent.mask_sha256 == mask.mask_sha256 else mask.score
    conn.execute(
        insert(MaskRow).values(
            id=mask.mask_id,
            campaign_id=session.campaign_id,
            number=next_number(conn, MaskRow, session.campaign_id),
            image_id=session.image_id,
            instance_id=mask.instance_id,
            version=1 if previous is None else previous.version + 1,
            parent_id=parent.id if parent else None,
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
            score=score,
            created_at=db_now(),
        )
    )
