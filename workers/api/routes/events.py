"""Sending events over HTTP: acknowledged one by one, with the mask after the last."""

import asyncio
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from pipeline.storage.click_log import Appended
from schemas.errors import BadInputError, ClickloopError
from schemas.events import EventIn
from schemas.predictions import MaskReply, RefineRequest
from workers.api.deps import CallerDep, Services, ServicesDep
from workers.api.errors import error_body
from workers.api.intake import MASK_KINDS, Plan
from workers.api.live import LiveSession
from workers.api.replies import mask_json

router = APIRouter(prefix="/api/sessions", tags=["events"])

MAX_EVENTS = 500


class NewEvents(BaseModel):
    """Events of one session, in order.

    Attributes:
        mask: Encoding of the mask wanted after the last event; "none" for acknowledgements only.
    """

    model_config = ConfigDict(extra="forbid")

    events: list[EventIn] = Field(min_length=1, max_length=MAX_EVENTS)
    mask: Literal["rle", "bits", "none"] = "rle"


@router.post("/{session_id}/events")
async def send(session_id: str, new: NewEvents, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """Append events. Sending the same again is safe.

    Each is acknowledged once it is durable, whatever the refiners do: a mask that could not be computed is reported in
    `mask_error`. When an event is refused, the error's details carry the `acks` of those before it.
    """
    caller.need("label")
    live = await services.hub.get(session_id)
    acks: list[Appended] = []
    asked: list[tuple[Plan, asyncio.Task[MaskReply]]] = []

    def ask(plan: Plan, question: RefineRequest) -> None:
        asked.append((plan, asyncio.create_task(services.refining.ask(question))))

    try:
        for event in new.events:
            wanted = event is new.events[-1] and new.mask != "none"
            acks.append(await services.intake.append(live, caller.id, event, new.mask, ask if wanted else None))
    except ClickloopError as error:
        for _, task in asked:
            task.cancel()
        if acks:
            error.details["acks"] = [_ack(ack) for ack in acks]
        raise
    answer: dict[str, Any] = {
        "acks": [_ack(ack) for ack in acks],
        "durable_seq": live.state.last_seq,
        "mask": None,
        "mask_error": None,
    }
    last = new.events[-1]
    if new.mask == "none" or last.kind not in MASK_KINDS or last.instance_id is None:
        return answer
    try:
        if asked:
            reply = await asked[0][1]
            services.background(services.intake.save_result(acks[-1].event_id, reply))
        else:
            reply = await _stored(services, live, str(last.instance_id), acks[-1].seq, new.mask)
        answer["mask"] = mask_json(reply, acks[-1].seq, str(last.instance_id))
    except ClickloopError as error:
        answer["mask_error"] = error_body(error)["error"]
    return answer


async def _stored(services: Services, live: LiveSession, instance_id: str, seq: int, mask_format: str) -> MaskReply:
    """The mask after an event that was in the log already, or that left the mask as it was."""
    if instance_id not in live.state.instances:
        raise BadInputError(f"The session has no instance {instance_id}.")
    return await services.refining.ask(await services.hub.question(live, live.state, instance_id, seq, mask_format))


def _ack(ack: Appended) -> dict[str, Any]:
    return {"event_id": ack.event_id, "seq": ack.seq, "duplicate": ack.duplicate}
