"""Small numbers that files show (COCO ids, versions): from 1 in each campaign, never given twice."""

from typing import Any

from sqlalchemy import Connection, func, select

from pipeline.storage.tombstones import purged_images_end, purged_masks_end
from schemas.errors import NotFoundError
from schemas.tables import Adapter, Campaign, Category, Image, MaskRow, Snapshot

_PURGED_END: dict[type, Any] = {Image: purged_images_end, MaskRow: purged_masks_end}


def lock_campaign(conn: Connection, campaign_id: str) -> None:
    """Hold the campaign's row until the transaction ends (on SQLite the transaction holds everything anyway).

    Raises:
        NotFoundError: There is no such campaign.
    """
    query = select(Campaign.id).where(Campaign.id == campaign_id).with_for_update(key_share=True)
    if conn.execute(query).one_or_none() is None:
        raise NotFoundError(f"There is no campaign {campaign_id!r}.")


def next_number(
    conn: Connection, counted: type[Adapter | Category | Image | MaskRow | Snapshot], campaign_id: str
) -> int:
    """The number of the campaign's next row of a table: one more than the largest there is, or that was purged.

    Locks the campaign: nobody else gets the same number.

    Raises:
        NotFoundError: There is no such campaign.
    """
    lock_campaign(conn, campaign_id)
    largest = select(func.max(counted.number)).where(counted.campaign_id == campaign_id)
    numbers = [conn.execute(largest).scalar_one()]
    if counted in _PURGED_END:
        numbers.append(conn.execute(_PURGED_END[counted](campaign_id)).scalar_one())
    return max(number or 0 for number in numbers) + 1
