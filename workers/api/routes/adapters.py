"""Adapters of a campaign: list, promote, roll back."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from pipeline.storage.adapters import get_adapter, list_adapters, problem_of_live, promote, require_file, rollback
from pipeline.storage.campaigns import get_campaign
from schemas.campaigns import CampaignRecord
from schemas.errors import BadCheckpointError, BusyError, NotFoundError
from workers.api.deps import CallerDep, ServicesDep, envelope

router = APIRouter(prefix="/api/campaigns", tags=["adapters"])


class Promotion(BaseModel):
    """The version of the campaign's live adapter that the caller saw."""

    model_config = ConfigDict(extra="forbid")

    expected_version: int


@router.get("/{campaign}/adapters")
async def index(campaign: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """The campaign's adapters, oldest first."""
    records = await services.read(lambda conn: list_adapters(conn, get_campaign(conn, campaign).id))
    return envelope([record.model_dump(mode="json") for record in records], len(records))


@router.post("/{campaign}/adapters/{digest}/promote")
async def make_live(
    campaign: str, digest: str, promotion: Promotion, services: ServicesDep, caller: CallerDep
) -> dict[str, Any]:
    """Make an adapter live for instances that open from now on, if the live one is still the one that was seen."""
    caller.need("train")

    def look(conn: Connection) -> CampaignRecord:
        require_file(get_adapter(conn, digest))
        return get_campaign(conn, campaign)

    def change(conn: Connection) -> int:
        now = get_campaign(conn, campaign)
        if (now.live_adapter, now.live_version) == (digest, promotion.expected_version + 1):
            return now.live_version  # sent again
        return promote(conn, now.id, digest, promotion.expected_version)

    record = await services.read(look)
    await services.refining.load(record.model_digest, digest)
    return {"live_adapter": digest, "live_version": await services.write(change)}


@router.post("/{campaign}/rollback")
async def go_back(
    campaign: str, services: ServicesDep, caller: CallerDep, seen: Promotion | None = None
) -> dict[str, Any]:
    """Make the previous live adapter (or the bare model) live again.

    With a body, only if the live version is still the one that was seen: then it is safe to send again. `problem` says
    so where what is live now does not load.
    """
    caller.need("train")

    def change(conn: Connection) -> tuple[str, int, str | None]:
        expected = seen.expected_version if seen is not None else None
        record = get_campaign(conn, campaign)
        return record.model_digest, *rollback(conn, record.id, expected)

    model, version, digest = await services.write(change)
    problem = None
    try:
        await services.refining.load(model, digest)
    except (NotFoundError, BadCheckpointError) as error:
        problem = problem_of_live(error)
    except BusyError:
        pass  # nobody knows yet
    return {"live_adapter": digest, "live_version": version, "problem": problem}
