"""How a campaign's work goes."""

from fastapi import APIRouter

from pipeline.storage.statistics import campaign_statistics
from schemas.statistics import CampaignStatistics
from workers.api.deps import CallerDep, ServicesDep

router = APIRouter(prefix="/api/campaigns", tags=["statistics"])


@router.get("/{campaign}/statistics")
async def show(campaign: str, services: ServicesDep, caller: CallerDep) -> CampaignStatistics:
    """Masks, clicks and seconds over time and by adapter, category and annotator, and click latency.

    Annotators are named to callers with the scope review, and by pseudonym to others.
    """
    named = caller.has("review")
    return await services.read(lambda conn: campaign_statistics(conn, campaign, with_names=named))
