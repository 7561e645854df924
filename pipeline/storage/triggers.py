"""When a campaign is to be retrained by itself: its settings against the masks accepted since the last time."""

from datetime import timedelta

from sqlalchemy import Connection, func, select, text

from pipeline.storage.sql import database_now
from schemas.campaigns import CampaignRecord
from schemas.tables import BY_ANNOTATOR, Image, MaskRow, Request


def retrain_is_due(conn: Connection, campaign: CampaignRecord) -> bool:
    """Whether enough masks of training images were accepted, or enough time passed with some, since the last retrain.

    The last retrain counts from when it was asked for, whatever became of it, so that a failing one is not repeated at
    once.
    """
    settings = campaign.settings
    if not settings.retrain_every_masks and not settings.retrain_every_s:
        return False
    asked = select(func.max(Request.created_at)).where(
        Request.campaign_id == campaign.id, Request.kind == "retrain", Request.state != "cancelled"
    )
    since = conn.execute(asked).scalar_one() or campaign.created_at
    fresh = int(
        conn.execute(
            select(func.count())
            .select_from(MaskRow)
            .join(Image, Image.id == MaskRow.image_id)
            .where(
                MaskRow.campaign_id == campaign.id,
                text(f"masks.{BY_ANNOTATOR}"),
                MaskRow.created_at > since,
                Image.holdout.is_(False),
            )
        ).scalar_one()
    )
    if settings.retrain_every_masks and fresh >= settings.retrain_every_masks:
        return True
    late = database_now(conn) - since >= timedelta(seconds=settings.retrain_every_s)
    return bool(settings.retrain_every_s and fresh and late)
