"""Long jobs: insert, follow, cancel. The flow runner works them off."""

import json
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from pipeline.storage.campaigns import get_campaign
from pipeline.storage.changes import require_written
from pipeline.storage.requests import cancel_request, get_request, insert_request, list_requests
from schemas.campaigns import RequestRecord
from schemas.errors import BadInputError
from schemas.requests import checked
from schemas.tables import RequestKind
from workers.api.deps import CallerDep, ServicesDep, envelope

router = APIRouter(tags=["requests"])

SCOPES = {
    "ingest": "admin",
    "import": "admin",
    "propose": "admin",
    "precompute": "train",
    "prelabel": "train",
    "order": "train",
    "retrain": "train",
    "export": "export",
    "campaign": "admin",
}
PLACES = {"ingest": "images", "import": "source", "export": "to"}
MAX_PAYLOAD_BYTES = 20_000
MAX_DEPTH = 10


def _storable(payload: dict[str, Any]) -> dict[str, Any]:
    """Refuse what one of the databases cannot keep as JSON: NaN, NUL, halves of characters, towers of lists."""
    try:
        deep = _depth(payload) > MAX_DEPTH
    except RecursionError:
        deep = True
    if deep:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    text = json.dumps(payload, allow_nan=False, ensure_ascii=False).encode()
    if len(text) > MAX_PAYLOAD_BYTES or b"\\u0000" in text:
        raise ValueError(f"over {MAX_PAYLOAD_BYTES} bytes, or with a NUL character")
    return payload


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


class NewRequest(BaseModel):
    """A long job.

    Attributes:
        id: Client-made; the same id and payload give the same request.
    """

    model_config = ConfigDict(extra="forbid")

    id: UUID
    kind: RequestKind
    payload: Annotated[dict[str, Any], AfterValidator(_storable)] = Field(default_factory=dict)


@router.post("/api/campaigns/{campaign}/requests", status_code=202)
async def create(campaign: str, new: NewRequest, services: ServicesDep, caller: CallerDep) -> RequestRecord:
    """Insert a request. At most one retrain and one precompute of a campaign are active at a time.

    Raises:
        NotFoundError, BadInputError: No such campaign, or no snapshot that an export could be a delta of.
    """
    caller.need(SCOPES[new.kind])
    asked = checked(new.kind, new.payload)
    place = new.payload.get(PLACES.get(new.kind, ""))
    if place is not None and not isinstance(place, str):
        raise BadInputError(f"{PLACES[new.kind]}: a path or URL is text.")
    if place is not None and not caller.trusted:
        services.check_place(place)
    if new.payload.get("create") is not None:
        raise BadInputError("Create campaigns by POST /api/campaigns, which checks where their images are.")

    def insert(conn: Connection) -> RequestRecord:
        campaign_id = get_campaign(conn, campaign).id
        if new.kind == "export" and asked["since_snapshot"] is not None:
            require_written(conn, campaign_id, asked["since_snapshot"])
        return insert_request(conn, str(new.id), new.kind, campaign_id, new.payload)

    return await services.write(insert)


@router.get("/api/requests")
async def index(
    services: ServicesDep, caller: CallerDep, campaign: str | None = None, active: bool = False
) -> dict[str, Any]:
    """Requests, newest first; of one campaign if it is named; `active`: only those that wait or run."""

    def load(conn: Connection) -> list[RequestRecord]:
        return list_requests(conn, get_campaign(conn, campaign).id if campaign else None, active=active)

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
