"""The queue: giving each task to one annotator at a time. Knows nothing about what is done in a session.

A claim takes new tasks in order, then those whose lease has expired. It increments `tasks.lease_no`, the fencing token;
from then on the former holder's session is lost.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from pipeline.storage.images import get_image, image_record
from pipeline.storage.sql import batches, database_now, new_id, require_id
from pipeline.storage.tombstones import require_no_purge
from schemas.campaigns import Claim, ImageRecord
from schemas.columns import db_now
from schemas.errors import ConflictError, NotFoundError, StateError
from schemas.tables import IS_LEASED, Campaign, Image, Lease, Session, Task


def claim_task(
    conn: Connection,
    campaign_id: str,
    annotator_id: str,
    *,
    claim_id: str,
    lease_s: float,
    look_ahead: int = 2,
    image_id: str | None = None,
) -> Claim | None:
    """Give an annotator the next task, or that of one image.

    Args:
        conn: Write transaction.
        campaign_id: The campaign.
        annotator_id: Who claims.
        claim_id: Client-made UUID; claiming again with it gives the same claim.
        lease_s: Seconds that the lease lasts without an event.
        look_ahead: How many images that will probably come next to name.
        image_id: Ask for this image's task: also a skipped or finished one, to correct it; the annotator's own running
            lease is given back as it is.

    Returns:
        The claim; None when nothing is left.

    Raises:
        NotFoundError: There is no such campaign, or no task of that image in it.
        StateError: The campaign is paused, something of it is being purged, or somebody else holds that image's task.
        ConflictError: The claim id was used by somebody else or in another campaign.
    """
    again = _claimed_before(conn, require_id(claim_id, "claim"), campaign_id, annotator_id)
    if again is not None:
        return _claim(conn, again, lease_s, look_ahead)
    state = conn.execute(select(Campaign.state).where(Campaign.id == campaign_id)).scalar_one_or_none()
    if state is None:
        raise NotFoundError(f"There is no campaign {campaign_id!r}.")
    if state != "active":
        raise StateError("The campaign is paused; no tasks are given out.", state=state)
    now = database_now(conn)
    if image_id is None:
        task = _next_free(conn, campaign_id, now)
        if task is None:
            return None
    else:
        task = _of_image(conn, campaign_id, image_id)
        own = _own_lease(conn, task, annotator_id, now, lease_s)
        if own is not None:
            return _claim(conn, own, lease_s, look_ahead)
    try:
        with conn.begin_nested():
            session_id = _lease(conn, task, annotator_id, claim_id, now + timedelta(seconds=lease_s))
    except IntegrityError:  # the same claim, just now, through another gateway
        again = _claimed_before(conn, claim_id, campaign_id, annotator_id)
        if again is None:
            raise
        session_id = again
    return _claim(conn, session_id, lease_s, look_ahead)


def peek_tasks(conn: Connection, campaign_id: str, n: int) -> list[ImageRecord]:
    """Images of the next `n` tasks that would be given out, were nobody else to claim."""
    query = _queue(campaign_id, Image.__table__).where(Task.state == "new").limit(n)
    return [image_record(row) for row in conn.execute(query)]


def task_order(conn: Connection, campaign_id: str, *, new: bool) -> list[tuple[str, ImageRecord]]:
    """(task id, image) of all tasks that are new, or of all others, by position; quarantined images left out."""
    query = (
        select(Task.id.label("task_id"), Image.__table__)
        .join(Image, Image.id == Task.image_id)
        .where(Task.campaign_id == campaign_id, Image.quarantine_reason.is_(None))
        .where(Task.state == "new" if new else Task.state != "new")
    )
    return [(row.task_id, image_record(row)) for row in conn.execute(query.order_by(Task.position))]


def set_priorities(conn: Connection, priorities: Mapping[str, float]) -> None:
    """Give tasks (id to priority, smaller first) their place in the queue; those that are not new stay as they are."""
    by_task = update(Task).where(Task.id == bindparam("task"), Task.state == "new")
    statement = by_task.values(priority=bindparam("rank"), updated_at=db_now())
    for batch in batches(priorities.items()):
        conn.execute(statement, [{"task": task, "rank": rank} for task, rank in batch])


def expired_leases(conn: Connection, campaign_id: str | None = None) -> list[tuple[str, str]]:
    """(task id, annotator id) of leases that are over but that nobody took yet."""
    query = select(Task.id, Task.annotator_id).where(text(f"tasks.{IS_LEASED}"), Task.lease_expires_at < db_now())
    if campaign_id is not None:
        query = query.where(Task.campaign_id == campaign_id)
    return [(row[0], str(row[1])) for row in conn.execute(query.order_by(Task.lease_expires_at))]


def end_lease(conn: Connection, task_id: str, lease_no: int, state: str, reason: str) -> None:
    """Move a leased task on (new, submitted, skipped, done) and close its lease's row."""
    conn.execute(
        update(Task)
        .where(Task.id == task_id, Task.lease_no == lease_no)
        .values(state=state, annotator_id=None, lease_expires_at=None, updated_at=db_now())
    )
    _close_lease(conn, task_id, lease_no, reason)


def _queue(campaign_id: str, *columns: Any) -> Select[Any]:
    return (
        select(*columns)
        .select_from(Task)
        .join(Image, Image.id == Task.image_id)
        .where(Task.campaign_id == campaign_id, Image.quarantine_reason.is_(None))
        .order_by(Task.priority, Task.position)
    )


def _next_free(conn: Connection, campaign_id: str, now: datetime) -> Row[Any] | None:
    """Lock and return the next task; those that others are just locking are waited for only if there is no other."""
    first = _queue(campaign_id, Task.__table__).limit(1)
    new, expired = first.where(Task.state == "new"), first.where(Task.state == "leased", Task.lease_expires_at < now)
    for skip_locked in (True, False):
        for query in (new, expired):
            locking = query.with_for_update(skip_locked=skip_locked, key_share=True, of=Task.__table__)
            task = conn.execute(locking).one_or_none()
            if task is not None:
                return task
    return None


def _of_image(conn: Connection, campaign_id: str, image_id: str) -> Row[Any]:
    query = (
        select(Task.__table__)
        .where(Task.campaign_id == campaign_id, Task.image_id == image_id)
        .with_for_update(key_share=True)
    )
    task = conn.execute(query).one_or_none()
    if task is None:
        raise NotFoundError(f"There is no task of image {image_id!r} in this campaign.")
    return task


def _own_lease(conn: Connection, task: Row[Any], annotator_id: str, now: datetime, lease_s: float) -> str | None:
    """The session of the annotator's own running lease, renewed; None when the task may be taken."""
    if task.state != "leased":
        return None
    if task.annotator_id == annotator_id:
        expires = now + timedelta(seconds=lease_s)
        conn.execute(update(Task).where(Task.id == task.id).values(lease_expires_at=expires))
        session = select(Session.id).where(Session.task_id == task.id, Session.lease_no == task.lease_no)
        return str(conn.execute(session).scalar_one())
    if task.lease_expires_at > now:
        raise StateError("Somebody else is working on this image.", task_id=task.id)
    return None


def _lease(conn: Connection, task: Row[Any], annotator_id: str, claim_id: str, expires: datetime) -> str:
    if task.state == "leased":
        lost = update(Session).where(
            Session.task_id == task.id, Session.lease_no == task.lease_no, Session.state == "open"
        )
        conn.execute(lost.values(state="lost"))
        _close_lease(conn, task.id, task.lease_no, "expired")
    lease_no, session_id = task.lease_no + 1, new_id()
    conn.execute(
        update(Task)
        .where(Task.id == task.id)
        .values(
            state="leased",
            lease_no=lease_no,
            annotator_id=annotator_id,
            lease_expires_at=expires,
            updated_at=db_now(),
        )
    )
    conn.execute(
        insert(Session).values(
            id=session_id,
            campaign_id=task.campaign_id,
            task_id=task.id,
            image_id=task.image_id,
            annotator_id=annotator_id,
            lease_no=lease_no,
            epoch=1,
            last_seq=0,
            state="open",
            created_at=db_now(),
            image_number=task.position,
        )
    )
    conn.execute(
        insert(Lease).values(
            task_id=task.id,
            lease_no=lease_no,
            claim_id=claim_id,
            annotator_id=annotator_id,
            session_id=session_id,
            acquired_at=db_now(),
        )
    )
    require_no_purge(conn, task.campaign_id, [task.image_id])
    return session_id


def _claimed_before(conn: Connection, claim_id: str, campaign_id: str, annotator_id: str) -> str | None:
    query = (
        select(Lease.session_id, Lease.annotator_id, Session.campaign_id)
        .join(Session, Session.id == Lease.session_id)
        .where(Lease.claim_id == claim_id)
    )
    row = conn.execute(query).one_or_none()
    if row is None:
        return None
    if (row.annotator_id, row.campaign_id) != (annotator_id, campaign_id):
        raise ConflictError("This claim id was used for another claim. Make a new UUID.", claim_id=claim_id)
    return str(row.session_id)


def _close_lease(conn: Connection, task_id: str, lease_no: int, reason: str) -> None:
    open_lease = update(Lease).where(Lease.task_id == task_id, Lease.lease_no == lease_no, Lease.ended_at.is_(None))
    conn.execute(open_lease.values(ended_at=db_now(), end_reason=reason))


def _claim(conn: Connection, session_id: str, lease_s: float, look_ahead: int) -> Claim:
    session = conn.execute(select(Session.__table__).where(Session.id == session_id)).one()
    return Claim(
        task_id=session.task_id,
        campaign_id=session.campaign_id,
        session_id=session.id,
        lease_no=session.lease_no,
        epoch=session.epoch,
        last_seq=session.last_seq,
        lease_s=lease_s,
        image=get_image(conn, session.image_id),
        look_ahead=peek_tasks(conn, session.campaign_id, look_ahead) if look_ahead else [],
    )
