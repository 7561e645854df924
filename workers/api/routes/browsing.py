"""Looking through a campaign's images with their masks."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import Connection

from pipeline.storage.browsing import BrowseFilter, browse_image, browse_images
from pipeline.storage.campaigns import get_campaign
from schemas.browsing import BrowsedImage, BrowsePage
from schemas.campaigns import TaskState
from workers.api.deps import MAX_NUMBER, CallerDep, ServicesDep

router = APIRouter(prefix="/api/campaigns", tags=["browsing"])

Side = Annotated[int, Query(ge=32, le=1600, description="Longest side of the previews in pixels.")]


@router.get("/{campaign}/browse")
async def index(
    campaign: str,
    services: ServicesDep,
    caller: CallerDep,
    state: TaskState | None = None,
    category: Annotated[int | None, Query(ge=0, le=MAX_NUMBER)] = None,
    annotator: Annotated[str | None, Query(max_length=36, description="An annotator's id.")] = None,
    unsure: Annotated[bool, Query(description="Only images with an object that was flagged as unsure.")] = False,
    after: Annotated[int, Query(ge=0, le=MAX_NUMBER)] = 0,
    limit: Annotated[int, Query(ge=1, le=60)] = 24,
    preview: Side = 320,
) -> BrowsePage:
    """A page of images with their current masks at the size of `/api/images/{image}/thumbnail`."""
    caller.need("review")

    def load(conn: Connection) -> BrowsePage:
        wanted = BrowseFilter(state, category, annotator, unsure)
        campaign_id = get_campaign(conn, campaign).id
        return browse_images(conn, campaign_id, wanted, after=after, limit=limit, preview=preview)

    return await services.read(load)


@router.get("/{campaign}/browse/{image_id}")
async def show(
    campaign: str, image_id: str, services: ServicesDep, caller: CallerDep, preview: Side = 1280
) -> BrowsedImage:
    """One image with its current masks."""
    caller.need("review")
    return await services.read(
        lambda conn: browse_image(conn, get_campaign(conn, campaign).id, image_id, preview=preview)
    )
