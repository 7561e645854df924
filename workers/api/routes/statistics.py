"""How the campaigns' work goes."""

from fastapi import APIRouter

from pipeline.storage.statistics import campaign_statistics, progress_of_all
from schemas.statistics import CampaignStatistics, ProgressList
from workers.api.deps import CallerDep, ServicesDep

router = APIRouter(prefix="/api", tags=["statistics"])


@router.get("/campaigns/{campaign}/statistics")
async def show(campaign: str, services: ServicesDep, caller: CallerDep) -> CampaignStatistics:
    """Masks, clicks and seconds over time and by adapter, category and annotator, and click latency.

    Annotators are named to callers with the scope review, and by pseudonym to others.
    """
    named = caller.has("review")
    return await services.read(lambda conn: campaign_statistics(conn, campaign, with_names=named))


@router.get("/progress")
async def progress(services: ServicesDep, caller: CallerDep) -> ProgressList:
    """How far every campaign is: its tasks by state."""
    return ProgressList(results=await services.read(progress_of_all))
