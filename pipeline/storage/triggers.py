"""When a campaign is to be retrained by itself: its settings against the masks that no retrain has seen."""

from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select

from pipeline.storage.masks import is_current
from pipeline.storage.sql import database_now
from pipeline.storage.tallies import tallies
from schemas.campaigns import CampaignRecord
from schemas.tables import EventRow, Image, Instance, Request, Session, Snapshot, Task


def retrain_is_due(conn: Connection, campaign: CampaignRecord) -> bool:
    """Whether enough masks of training images became current, or enough time passed with some, since the last retrain.

    A retrain trains on the masks of submitted sessions when its snapshot is taken: those submitted later are new. One
    that failed or was cancelled counts from its end, so that it is not repeated at once.
    """
    settings = campaign.settings
    if not settings.retrain_every_masks and not settings.retrain_every_s:
        return False
    since = _last_retrain(conn, campaign)
    enough = settings.retrain_every_masks
    if settings.retrain_every_s and database_now(conn) - since >= timedelta(seconds=settings.retrain_every_s):
        enough = 1
    if not enough or sum(tallies(conn, campaign.id, "mask").values()) < enough:
        return False
    return _count_new_masks(conn, campaign.id, since, enough) >= enough


def _last_retrain(conn: Connection, campaign: CampaignRecord) -> datetime:
    """When the last retrain saw the masks, or ended without a result; when the campaign began if there was none."""
    seen = select(func.max(Snapshot.created_at)).where(
        Snapshot.campaign_id == campaign.id, Snapshot.purpose == "retrain"
    )
    ended = select(func.max(Request.updated_at)).where(
        Request.campaign_id == campaign.id, Request.kind == "retrain", Request.state.in_(("failed", "cancelled"))
    )
    times = [conn.execute(query).scalar_one() for query in (seen, ended)]
    return max([campaign.created_at, *(time for time in times if time is not None)])


def _count_new_masks(conn: Connection, campaign_id: str, since: datetime, limit: int) -> int:
    """How many current masks of annotators on training images were submitted later; not counted beyond the limit.

    Starts from the tasks that changed since, which are few; what an annotator submitted changed its task then or later.
    """
    found = (
        select(Instance.id)
        .select_from(Task)
        .join(Image, Image.id == Task.image_id)
        .join(Session, Session.task_id == Task.id)
        .join(EventRow, EventRow.session_id == Session.id)
        .join(Instance, Instance.session_id == Session.id)
        .where(
            Task.campaign_id == campaign_id,
            Task.updated_at > since,
            Image.holdout.is_(False),
            Image.quarantine_reason.is_(None),
            EventRow.kind == "submit",
            EventRow.server_time > since,
            is_current(),
        )
        .limit(limit)
    )
    return int(conn.execute(select(func.count()).select_from(found.subquery())).scalar_one())
