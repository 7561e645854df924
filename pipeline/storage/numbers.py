"""Small numbers that files show (COCO ids, versions): from 1 in each campaign, never given twice."""

from sqlalchemy import Connection, func, select

from schemas.errors import NotFoundError
from schemas.tables import Adapter, Campaign, Category, Image, MaskRow, Snapshot


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
    """The number of the campaign's next row of a table. Its rows are never deleted, so the largest plus one is new.

    Locks the campaign: nobody else gets the same number.

    Raises:
        NotFoundError: There is no such campaign.
    """
    lock_campaign(conn, campaign_id)
    largest = select(func.coalesce(func.max(counted.number), 0)).where(counted.campaign_id == campaign_id)
    return int(conn.execute(largest).scalar_one()) + 1
