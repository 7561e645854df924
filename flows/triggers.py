"""Request a retrain where a campaign's triggers say so. Only inserts requests; the flow runner works them off."""

import logging
from uuid import uuid4

from pipeline.storage import campaigns, requests, triggers
from pipeline.storage.database import Database
from schemas.errors import StateError

logger = logging.getLogger(__name__)


def fire_triggers(database: Database) -> list[str]:
    """Look at every active campaign.

    Returns:
        Ids of the campaigns for which a retrain was requested.
    """
    with database.connect() as conn:
        active = [campaign for campaign in campaigns.list_campaigns(conn) if campaign.state == "active"]
        due = [campaign.id for campaign in active if triggers.retrain_is_due(conn, campaign)]
    fired = []
    for campaign_id in due:
        try:
            with database.begin() as conn:
                requests.insert_request(conn, str(uuid4()), "retrain", campaign_id, {})
        except StateError:
            continue  # one is active
        logger.info("retrain triggered campaign_id=%s", campaign_id)
        fired.append(campaign_id)
    return fired
