"""Campaigns: list, show, create (a request), pause and resume, images, snapshots."""

from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from pipeline.storage.campaigns import campaign_status, get_campaign, id_to_create, list_campaigns, set_campaign_state
from pipeline.storage.images import count_images, images_of
from pipeline.storage.requests import insert_request
from pipeline.storage.snapshots import list_snapshots
from schemas.campaigns import CampaignName, CampaignSettings, CampaignStatus
from schemas.requests import checked
from workers.api.deps import MAX_NUMBER, CallerDep, ServicesDep, envelope

router = APIRouter(prefix="/api/campaigns", tags=["campaigns"])

Label = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]


def _each_once(labels: list[str]) -> list[str]:
    if len(set(labels)) < len(labels):
        raise ValueError("each label is named once")
    return labels


class NewCampaign(BaseModel):
    """What to create.

    Attributes:
        id: Client-made; sending the same again is safe.
        images: fsspec URL of a folder, glob or file.
        annotations: COCO file whose masks are imported, None for none.
        model: Model id.
        checkpoint: Path of its weights on this machine (.safetensors), None for those that ship.
    """

    model_config = ConfigDict(extra="forbid")

    id: UUID
    name: CampaignName
    images: str = Field(min_length=1, max_length=4000)
    labels: Annotated[list[Label], Field(max_length=1000), AfterValidator(_each_once)] = Field(default_factory=list)
    annotations: str | None = Field(default=None, min_length=1, max_length=4000)
    model: str = Field(default="default", max_length=100, pattern=r"^[\w.:-]+$")
    checkpoint: str | None = Field(default=None, min_length=1, max_length=4000)
    settings: CampaignSettings = CampaignSettings()


@router.get("")
async def index(services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """All campaigns."""
    records = await services.read(list_campaigns)
    return envelope([record.model_dump(mode="json") for record in records], len(records))


@router.post("", status_code=202)
async def create(new: NewCampaign, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """Create a campaign and ingest its images: a request that the flow runner works off.

    Goes on with what the same request (its id aside) began, if that was cancelled or failed.
    """
    caller.need("admin")
    wanted = new.model_dump(mode="json")
    checked("campaign", {"create": wanted})
    if not caller.trusted:
        for url in filter(None, (new.images, new.annotations, new.checkpoint)):
            services.check_place(url)

    def insert(conn: Connection) -> dict[str, Any]:
        own_id = id_to_create(conn, wanted)
        request = insert_request(conn, str(new.id), "campaign", None, {"create": wanted | {"id": own_id}})
        return {"id": own_id, "request": request.model_dump(mode="json")}

    return await services.write(insert)


@router.get("/{campaign}")
async def show(campaign: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """One campaign, by id or name."""
    record = await services.read(lambda conn: get_campaign(conn, campaign))
    return record.model_dump(mode="json")


@router.get("/{campaign}/status")
async def status(campaign: str, services: ServicesDep, caller: CallerDep) -> CampaignStatus:
    """The campaign's figures."""
    return await services.read(lambda conn: campaign_status(conn, get_campaign(conn, campaign).id))


@router.post("/{campaign}/pause")
async def pause(campaign: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """Give out no more tasks. Safe to repeat."""
    return await _set_state(campaign, "paused", services, caller)


@router.post("/{campaign}/resume")
async def resume(campaign: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """Give out tasks again. Safe to repeat."""
    return await _set_state(campaign, "active", services, caller)


async def _set_state(campaign: str, state: Any, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    caller.need("admin")

    def change(conn: Connection) -> dict[str, Any]:
        campaign_id = get_campaign(conn, campaign).id
        set_campaign_state(conn, campaign_id, state)
        return get_campaign(conn, campaign_id).model_dump(mode="json")

    return await services.write(change)


@router.get("/{campaign}/images")
async def images(
    campaign: str,
    services: ServicesDep,
    caller: CallerDep,
    after: Annotated[int, Query(ge=0, le=MAX_NUMBER)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> dict[str, Any]:
    """The campaign's images by number."""

    def load(conn: Connection) -> tuple[list[dict[str, Any]], int]:
        campaign_id = get_campaign(conn, campaign).id
        records = images_of(conn, campaign_id, after_number=after, limit=limit)
        return [record.model_dump(mode="json") for record in records], count_images(conn, campaign_id)

    results, count = await services.read(load)
    following = None
    if len(results) == limit:
        last = results[-1]["number"]
        following = f"/api/campaigns/{quote(campaign, safe='')}/images?after={last}&limit={limit}"
    return envelope(results, count, following)


@router.get("/{campaign}/snapshots")
async def snapshots(campaign: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """The campaign's snapshots, oldest first."""
    records = await services.read(lambda conn: list_snapshots(conn, get_campaign(conn, campaign).id))
    return envelope([record.model_dump(mode="json") for record in records], len(records))
