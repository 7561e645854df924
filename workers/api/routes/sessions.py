"""What somebody has open, a session's state, its events so far, opening it again, and the mask of an instance."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from sqlalchemy import Connection

from pipeline.storage.masks import current_masks, proposed_masks, session_masks
from pipeline.storage.sessions import get_session, open_sessions, reopen_session, session_events
from schemas.campaigns import SessionRecord
from schemas.catalogue import MaskRecord
from schemas.errors import ForbiddenError, NotFoundError
from workers.api.auth import Caller
from workers.api.deps import MAX_NUMBER, CallerDep, ServicesDep, envelope
from workers.api.live import LiveSession
from workers.api.replies import mask_json

router = APIRouter(prefix="/api/sessions", tags=["sessions"])

PAGE = 1000


def may_read(caller: Caller, record: SessionRecord) -> None:
    """Refuse reading somebody else's session without the scope review.

    Raises:
        ForbiddenError: It is somebody else's.
    """
    if record.annotator_id != caller.id and not {"review", "admin"} & caller.annotator.scopes:
        raise ForbiddenError("This session belongs to another annotator.")


async def _readable(services: ServicesDep, caller: Caller, session_id: str) -> LiveSession:
    live = await services.hub.fresh(session_id)
    may_read(caller, live.record)
    return live


@router.get("")
async def unfinished(services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """The caller's open sessions, in whatever browser they were begun; first what was worked on last."""
    found = await services.read(lambda conn: open_sessions(conn, caller.id))
    return envelope([session.model_dump() for session in found], len(found))


@router.get("/{session_id}")
async def show(session_id: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """Where the session stands: everything a client needs to go on."""
    return (await _readable(services, caller, session_id)).to_json()


@router.post("/{session_id}/open")
async def open_again(session_id: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """Take the session over on this connection: its epoch goes up and older connections turn read-only."""
    caller.need("label")
    live = await services.hub.get(session_id)
    live.own(caller.id)

    def reopen(conn: Connection) -> SessionRecord:
        return reopen_session(conn, session_id)

    async with live.lock:
        live.record = await services.write(reopen)
        await services.hub.refresh(live)
    for watcher in list(live.watchers):
        await watcher.superseded(live.record.epoch)
    return live.to_json()


@router.get("/{session_id}/events")
async def events(
    session_id: str, services: ServicesDep, caller: CallerDep, after: Annotated[int, Query(ge=0, le=MAX_NUMBER)] = 0
) -> dict[str, Any]:
    """The session's events after a seq, in order."""

    def load(conn: Connection) -> dict[str, Any]:
        record = get_session(conn, session_id)
        may_read(caller, record)
        found = session_events(conn, session_id, after, limit=PAGE)
        following = f"/api/sessions/{session_id}/events?after={found[-1].seq}" if len(found) == PAGE else None
        return envelope([event.model_dump(mode="json") for event in found], record.last_seq, following)

    return await services.read(load)


@router.get("/{session_id}/masks")
async def masks(
    session_id: str, services: ServicesDep, caller: CallerDep, after: Annotated[int, Query(ge=0, le=MAX_NUMBER)] = 0
) -> dict[str, Any]:
    """The masks that the session accepted and did not change since, as they are stored: many objects in few calls.

    Args:
        after: Number of the last stored mask that is known already.
    """
    live = await _readable(services, caller, session_id)
    unchanged = {
        instance.accepted.mask_id: instance
        for instance in live.state.instances.values()
        if instance.accepted and not instance.deleted and instance.mask_seq <= instance.accepted.seq
    }

    def load(conn: Connection) -> dict[str, Any]:
        found = session_masks(conn, session_id, after, limit=PAGE)
        following = f"/api/sessions/{session_id}/masks?after={found[-1].number}" if len(found) == PAGE else None
        results = [
            {"seq": unchanged[mask.id].mask_seq, "instance_id": mask.instance_id, **_stored(mask)}
            for mask in found
            if mask.id in unchanged
        ]
        return envelope(results, len(unchanged), following)

    return await services.read(load)


@router.get("/{session_id}/standing")
async def standing(
    session_id: str, services: ServicesDep, caller: CallerDep, after: Annotated[int, Query(ge=0, le=MAX_NUMBER)] = 0
) -> dict[str, Any]:
    """Masks of the session's image that come from elsewhere: current ones, and proposals that wait to be accepted.

    An `open` with a `mask_id` corrects one: accepted or deleted and submitted, the new instance takes its place.
    """
    live = await _readable(services, caller, session_id)

    def load(conn: Connection) -> dict[str, Any]:
        campaign, image = live.record.campaign_id, live.image.id
        standing = current_masks(conn, campaign, image_id=image, after=after, limit=PAGE)
        proposed = proposed_masks(conn, campaign, image, after=after, limit=PAGE)
        found = sorted([*standing, *proposed], key=lambda mask: mask.number)[:PAGE]
        following = f"/api/sessions/{session_id}/standing?after={found[-1].number}" if len(found) == PAGE else None
        proposals = {mask.id for mask in proposed}
        results = [
            {
                "mask_id": mask.id,
                "category": mask.category_number,
                "is_proposal": mask.id in proposals,
                "annotator": mask.pseudonym,
                **_stored(mask),
            }
            for mask in found
            if mask.session_id != session_id
        ]
        return envelope(results, len(results), following)

    return await services.read(load)


def _stored(mask: MaskRecord) -> dict[str, Any]:
    return {
        "mask_sha256": mask.mask_sha256,
        "rle": mask.rle.model_dump(mode="json"),
        "box_xywh": mask.bbox,
        "area": mask.area,
    }


@router.get("/{session_id}/instances/{instance_id}/mask")
async def mask(
    session_id: str,
    instance_id: str,
    services: ServicesDep,
    caller: CallerDep,
    format: Literal["rle", "bits"] = "rle",
    seq: Annotated[int | None, Query(ge=1, le=MAX_NUMBER)] = None,
) -> dict[str, Any]:
    """The instance's mask now, or as of one of the session's events."""
    live = await _readable(services, caller, session_id)
    if seq is not None and seq > live.state.last_seq:
        raise NotFoundError(f"The session has no event {seq} yet; its last is {live.state.last_seq}.")
    question = await services.hub.question(live, live.state, instance_id, seq, format)
    shown = live.state.instances[instance_id].mask_seq if seq is None else seq
    return mask_json(await services.refining.ask(question), shown, instance_id)
