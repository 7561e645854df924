"""The click path: one WebSocket per open session.

Client: first {"type": "hello", "epoch": N, "token"?, "annotator"?}, then {"type": "event", "event": {...}}.
Server: {"type": "welcome", "session"}; per event {"type": "ack", event_id, seq, durable_seq, duplicate} once it is
durable, or {"type": "error", event_id, error}; {"type": "mask", seq, instance_id, ..., latency_ms} when it is computed
(milliseconds by stage; `server`: from the event's arrival);
{"type": "superseded", "epoch"} when the session was opened elsewhere. An ack never waits for a mask.
"""

import asyncio
import json
import logging
import time
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.storage.click_log import Appended
from schemas.errors import AuthError, BadInputError, BusyError, ClickloopError, first_problem
from schemas.events import EventIn
from schemas.predictions import MaskReply, RefineRequest
from workers.api.auth import Caller, address, bearer
from workers.api.deps import Services
from workers.api.errors import error_body
from workers.api.intake import MASK_KINDS, Plan
from workers.api.live import LiveSession
from workers.api.replies import Preview, Previews, mask_json

logger = logging.getLogger(__name__)
router = APIRouter()

HELLO_S = 10.0
"""Seconds that a new connection has to say hello."""
TOO_BIG, GOING_AWAY, REFUSED = 1009, 1001, 4400
_GONE = (RuntimeError, WebSocketDisconnect)
"""What sending raises when the client has closed the connection."""
_UNFORESEEN = BusyError("Something went wrong on the server; its log has the details.")
"""Told as what may pass: the client keeps the event, says so and sends it again."""
_CLOSE = {"unauthorized": 4401, "too_many_attempts": 4401, "forbidden": 4403, "not_found": 4404}


class Hello(BaseModel):
    """The first frame."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["hello"]
    epoch: int | None = None
    token: str | None = None
    annotator: str | None = None


class EventFrame(BaseModel):
    """An event.

    Attributes:
        mask: Encoding of the mask wanted after it.
    """

    model_config = ConfigDict(extra="forbid")

    type: Literal["event"]
    event: EventIn
    mask: Literal["bits", "rle", "none"] = "bits"


class Ping(BaseModel):
    """Answered by {"type": "pong"}."""

    type: Literal["ping"]


Frame = Annotated[EventFrame | Ping, Field(discriminator="type")]
_FRAME: TypeAdapter[EventFrame | Ping] = TypeAdapter(Frame)
_HELLO: TypeAdapter[Hello] = TypeAdapter(Hello)


class Oversized(Exception):
    """A frame was over the limit."""


@router.websocket("/api/sessions/{session_id}/ws")
async def session_socket(socket: WebSocket, session_id: str) -> None:
    """Serve one connection until either side closes it."""
    services: Services = socket.app.state.services
    await socket.accept()
    with services.metrics.sockets.track_inprogress():
        try:
            connection = await _welcome(socket, services, session_id)
            await connection.serve()
        except ClickloopError as error:
            with suppress(*_GONE):
                await socket.send_text(json.dumps({"type": "error", "event_id": None, **error_body(error)}))
                await socket.close(_CLOSE.get(error.code, REFUSED), error.code)
        except Oversized:
            await socket.close(TOO_BIG, "frame too big")
        except (WebSocketDisconnect, TimeoutError):
            pass


async def _welcome(socket: WebSocket, services: Services, session_id: str) -> "Connection":
    async with asyncio.timeout(HELLO_S):
        hello = _parse(_HELLO, await _receive(socket, services))
    token = hello.token or bearer(socket.headers.get("authorization"))
    name = hello.annotator or socket.headers.get("x-annotator")
    caller = await services.auth.caller(token, name, address(socket))
    caller.need("label")
    socket.scope["clickloop.annotator"] = caller.id
    live = await services.hub.fresh(session_id)
    live.own(caller.id)
    connection = Connection(socket, services, live, caller, (token, name), hello.epoch or live.record.epoch)
    await connection.send({"type": "welcome", "session": live.to_json(), "durable_seq": live.state.last_seq})
    return connection


async def _receive(socket: WebSocket, services: Services) -> str:
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", GOING_AWAY))
    text = message.get("text")
    if text is None:
        raise BadInputError("Frames are text: one JSON object each.")
    if len(text) > services.settings.max_frame_bytes:
        raise Oversized
    return str(text)


def _parse(adapter: TypeAdapter[Any], text: str) -> Any:
    try:
        return adapter.validate_python(json.loads(text))
    except ValidationError as error:
        raise BadInputError(f"{first_problem(error.errors(), 'frame')}.") from error
    except (ValueError, RecursionError) as error:
        raise BadInputError("The frame is not a JSON object.") from error


class Connection:
    """One client on one session.

    Args:
        credentials: Token and annotator's name, as the hello gave them.
    """

    def __init__(
        self,
        socket: WebSocket,
        services: Services,
        live: LiveSession,
        caller: Caller,
        credentials: tuple[str | None, str | None],
        epoch: int,
    ) -> None:
        self._socket = socket
        self._services = services
        self._live = live
        self._caller = caller
        self._token, self._name = credentials
        self._epoch = epoch
        self._previews = Previews(services.refining, self._show, self._fail)
        self._started: dict[str, float] = {}

    async def serve(self) -> None:
        """Take frames until the client leaves."""
        self._live.watchers.add(self)
        try:
            while True:
                await self._take(await _receive(self._socket, self._services))
        finally:
            self._live.watchers.discard(self)
            self._previews.close()

    async def send(self, message: dict[str, Any]) -> None:
        """Send one frame; a client that is gone is noticed by the reading side."""
        try:
            await self._socket.send_text(json.dumps(message, separators=(",", ":")))
        except _GONE:
            logger.debug("frame dropped: the connection is closed")

    async def superseded(self, epoch: int) -> None:
        """Tell the client that the session was opened elsewhere."""
        if epoch > self._epoch:
            await self.send({"type": "superseded", "epoch": epoch})

    async def _take(self, text: str) -> None:
        try:
            frame = _parse(_FRAME, text)
        except BadInputError as error:
            await self.send({"type": "error", "event_id": _event_id(text), **error_body(error)})
            return
        if isinstance(frame, Ping):
            await self.send({"type": "pong"})
            return
        await self._event(frame)

    async def _event(self, frame: EventFrame) -> None:
        event, begun = frame.event, []
        started = time.monotonic()

        def begin(plan: Plan, question: RefineRequest) -> None:
            preview = Preview(plan.event.event_id, str(plan.event.instance_id), plan.event.seq, question)
            begun.append(preview)
            self._started[preview.event_id] = started
            self._previews.begin(preview)

        on_question = begin if frame.mask != "none" else None
        try:
            await self._check_token()
            self._live = await self._services.hub.get(self._live.id)
            ack = await self._services.intake.append(self._live, self._caller.id, event, frame.mask, on_question)
        except AuthError:
            raise
        except Exception as error:
            self._settle(begun, acknowledged=False)
            if not isinstance(error, ClickloopError):
                logger.exception("unexpected error")
                error = _UNFORESEEN
            await self.send({"type": "error", "event_id": str(event.event_id), **error_body(error)})
            return
        except BaseException:
            self._settle(begun, acknowledged=False)
            raise
        await self.send(
            {
                "type": "ack",
                "event_id": ack.event_id,
                "seq": ack.seq,
                "durable_seq": self._live.state.last_seq,
                "duplicate": ack.duplicate,
            }
        )
        self._settle(begun, acknowledged=True)
        if not begun and frame.mask != "none" and event.kind in MASK_KINDS and event.instance_id is not None:
            await self._show_again(ack, str(event.instance_id), frame.mask)

    async def _check_token(self) -> None:
        """Refuse a token that was revoked or has expired since the hello; closes the connection."""
        if self._token:
            (await self._services.auth.caller(self._token, self._name, address(self._socket))).need("label")

    async def _show_again(self, ack: Appended, instance_id: str, mask_format: str) -> None:
        """The mask of an event that was in the log already, or that left the mask as it was."""
        hub = self._services.hub
        if instance_id not in self._live.state.instances:
            return
        try:
            question = await hub.question(self._live, self._live.state, instance_id, ack.seq, mask_format)
        except ClickloopError as error:
            await self._send_mask_error(ack.seq, instance_id, error_body(error)["error"])
            return
        preview = Preview(ack.event_id, instance_id, ack.seq, question)
        preview.committed.set_result(True)
        self._previews.begin(preview)

    @staticmethod
    def _settle(previews: list[Preview], acknowledged: bool) -> None:
        for preview in previews:
            preview.committed.set_result(acknowledged)

    async def _show(self, preview: Preview, reply: MaskReply) -> None:
        message = {"type": "mask", "event_id": preview.event_id, **mask_json(reply, preview.seq, preview.instance_id)}
        started = self._started.pop(preview.event_id, None)
        if started is not None:
            server_ms = (time.monotonic() - started) * 1e3
            message["latency_ms"] = {**reply.latency_ms, "server": round(server_ms, 1)}
            self._services.metrics.observe_stages({"total": server_ms})
        await self.send(message)
        self._services.background(self._services.intake.save_result(preview.event_id, reply))

    async def _fail(self, preview: Preview, error: dict[str, Any]) -> None:
        self._started.pop(preview.event_id, None)
        await self._send_mask_error(preview.seq, preview.instance_id, error)

    async def _send_mask_error(self, seq: int, instance_id: str, error: dict[str, Any]) -> None:
        await self.send({"type": "mask_error", "seq": seq, "instance_id": instance_id, "error": error})


def _event_id(text: str) -> str | None:
    """The id of a malformed event frame, if it can be found."""
    try:
        found = json.loads(text)["event"]["event_id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) and len(found) <= 64 else None
