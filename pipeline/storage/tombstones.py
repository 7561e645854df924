"""What was purged, or is being: reading tombstones, and what they forbid. Purging itself: `purge`."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, func, or_, select, update

from pipeline.storage.sql import fields, one
from schemas.catalogue import TombstoneRecord
from schemas.columns import db_now
from schemas.errors import StateError
from schemas.tables import Purge


def tombstones(
    conn: Connection, campaign_id: str | None = None, since: datetime | None = None
) -> list[TombstoneRecord]:
    """Tombstones, oldest first.

    Args:
        conn: Transaction.
        campaign_id: Only of this campaign and its images.
        since: Only of what was purged after this, such as the time of an older snapshot.
    """
    query = select(Purge.__table__)
    if campaign_id is not None:
        query = query.where(Purge.campaign_id == campaign_id)
    if since is not None:
        query = query.where(Purge.started_at > since)
    return [tombstone_record(row) for row in conn.execute(query.order_by(Purge.started_at, Purge.id))]


def tombstone_record(row: Row[Any]) -> TombstoneRecord:
    """The record of a row with the columns of `purges`."""
    return TombstoneRecord(**fields(row, TombstoneRecord))


def require_no_purge(conn: Connection, campaign_id: str | None, images: Sequence[str] | None = None) -> None:
    """Check that a campaign is not being purged, nor any of these images (None: of all its images).

    Called after a row was inserted that names the campaign: its foreign key waits for a purge that is just beginning,
    and such a purge waits for it. So one of the two sees the other.

    Raises:
        StateError: It is; the transaction is to be rolled back.
    """
    query = select(Purge.__table__).where(Purge.campaign_id == campaign_id, Purge.state == "running")
    if images is not None:
        query = query.where(or_(Purge.image_id.is_(None), Purge.image_id.in_(images)))
    row = conn.execute(query.limit(1)).one_or_none()
    if row is not None:
        found = tombstone_record(row)
        raise StateError(
            f"{found.what} is being purged. If that was interrupted, `{found.command}` goes on with it.",
            purge_id=found.id,
        )


def is_purged(conn: Connection, campaign_id: str, sha256: str, *, readmit: bool = False) -> bool:
    """Whether the image with these bytes was purged from the campaign and not admitted again.

    Args:
        conn: Transaction; of the writing kind to `readmit`.
        campaign_id: The campaign.
        sha256: Of the image's bytes.
        readmit: Admit it again, now.
    """
    condition = (Purge.campaign_id == campaign_id, Purge.image_sha256 == sha256, Purge.readmitted_at.is_(None))
    if readmit:
        conn.execute(update(Purge).where(*condition, Purge.state == "done").values(readmitted_at=db_now()))
    return conn.execute(select(Purge.id).where(*condition).limit(1)).one_or_none() is not None


def purged_image(conn: Connection, image_id: str) -> TombstoneRecord | None:
    """The tombstone of an image that is not there any more, None when there is none."""
    return _newest(conn, select(Purge.__table__).where(Purge.image_id == image_id))


def purged_campaign(conn: Connection, id_or_name: str) -> TombstoneRecord | None:
    """The newest tombstone of a campaign with this id or name, None when there is none."""
    named = or_(Purge.campaign_id == id_or_name, Purge.campaign_name == id_or_name)
    return _newest(conn, select(Purge.__table__).where(named, Purge.image_id.is_(None)))


def purged_sessions(conn: Connection, campaign_id: str) -> int:
    """How many sessions went with a campaign's purged images."""
    query = select(Purge.counts).where(Purge.campaign_id == campaign_id)
    return sum(int(counts.get("sessions", 0)) for counts in conn.execute(query).scalars())


def purged_masks_end(campaign_id: str) -> Select[Any]:
    """A query for the largest number of a campaign's purged masks."""
    return select(func.max(Purge.mask_number)).where(Purge.campaign_id == campaign_id)


def purged_images_end(campaign_id: str) -> Select[Any]:
    """A query for the largest number of a campaign's purged images."""
    return select(func.max(Purge.image_number)).where(Purge.campaign_id == campaign_id)


def _newest(conn: Connection, query: Select[Any]) -> TombstoneRecord | None:
    row = one(conn, query.order_by(Purge.started_at.desc(), Purge.id).limit(1))
    return None if row is None else tombstone_record(row)
