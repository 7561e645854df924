"""Claiming work."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from pipeline.storage.campaigns import get_campaign
from pipeline.storage.tasks import claim_task
from schemas.campaigns import CampaignRecord, Claim
from schemas.errors import BusyError
from schemas.predictions import Pins
from workers.api.deps import CallerDep, ServicesDep

router = APIRouter(prefix="/api/campaigns", tags=["tasks"])


class NewClaim(BaseModel):
    """A claim.

    Attributes:
        claim_id: Client-made; sending it again gives the same claim.
        image_id: Claim this image's task (also a finished one, to correct it); None: the next in the queue.
    """

    model_config = ConfigDict(extra="forbid")

    claim_id: UUID
    image_id: str | None = None


@router.post("/{campaign}/claim")
async def claim(campaign: str, wanted: NewClaim, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """The next task under a lease, or {"task": null} when nothing is left.

    The answer is the claim with "task" set to its task_id. Images that will probably come next are warmed.
    """
    caller.need("label")
    if services.draining:
        raise BusyError("The server is shutting down. Claim again in a moment.")

    def take(conn: Connection) -> tuple[CampaignRecord, Claim | None]:
        record = get_campaign(conn, campaign)
        return record, claim_task(
            conn,
            record.id,
            caller.id,
            claim_id=str(wanted.claim_id),
            lease_s=record.settings.lease_s or services.settings.lease_s,
            image_id=wanted.image_id,
        )

    record, given = await services.write(take)
    if given is None:
        return {"task": None}
    pins = Pins(model_digest=record.model_digest, model_key=record.model_key, adapter_digest=record.live_adapter)
    upcoming = [given.image.ref, *(image.ref for image in given.look_ahead)]
    services.background(services.refining.warm(upcoming, pins), droppable=True)
    return {"task": given.task_id, **given.model_dump(mode="json")}
