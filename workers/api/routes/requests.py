"""Long jobs: insert, follow, cancel. The flow runner works them off."""

from typing import Any, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from pipeline.storage.campaigns import get_campaign
from pipeline.storage.requests import cancel_request, get_request, insert_request, list_requests
from schemas.campaigns import RequestRecord
from workers.api.deps import CallerDep, ServicesDep, envelope

router = APIRouter(tags=["requests"])

SCOPES = {"ingest": "admin", "precompute": "train", "retrain": "train", "export": "export", "campaign": "admin"}
PLACES = {"ingest": "images", "export": "to"}


class NewRequest(BaseModel):
    """A long job.

    Attributes:
        id: Client-made; the same id and payload give the same request.
    """

    model_config = ConfigDict(extra="forbid")

    id: UUID
    kind: Literal["ingest", "precompute", "retrain", "export", "campaign"]
    payload: dict[str, Any] = Field(default_factory=dict)


@router.post("/api/campaigns/{campaign}/requests", status_code=202)
async def create(campaign: str, new: NewRequest, services: ServicesDep, caller: CallerDep) -> RequestRecord:
    """Insert a request. At most one retrain and one precompute of a campaign are active at a time."""
    caller.need(SCOPES[new.kind])
    place = new.payload.get(PLACES.get(new.kind, ""))
    if place is not None and not caller.trusted:
        services.check_place(str(place))

    def insert(conn: Connection) -> RequestRecord:
        return insert_request(conn, str(new.id), new.kind, get_campaign(conn, campaign).id, new.payload)

    return await services.write(insert)


@router.get("/api/requests")
async def index(services: ServicesDep, caller: CallerDep, campaign: str | None = None) -> dict[str, Any]:
    """Requests, newest last; of one campaign if it is named."""

    def load(conn: Connection) -> list[RequestRecord]:
        return list_requests(conn, get_campaign(conn, campaign).id if campaign else None)

    records = await services.read(load)
    return envelope([record.model_dump(mode="json") for record in records], len(records))


@router.get("/api/requests/{request_id}")
async def show(request_id: str, services: ServicesDep, caller: CallerDep) -> RequestRecord:
    """State, progress and result of a request."""
    return await services.read(lambda conn: get_request(conn, request_id))


@router.post("/api/requests/{request_id}/cancel")
async def cancel(request_id: str, services: ServicesDep, caller: CallerDep) -> RequestRecord:
    """Ask a request to stop at its next batch. Safe to repeat."""
    record = await services.read(lambda conn: get_request(conn, request_id))
    caller.need(SCOPES[record.kind])

    def change(conn: Connection) -> RequestRecord:
        cancel_request(conn, request_id)
        return get_request(conn, request_id)

    return await services.write(change)
