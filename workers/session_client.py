"""A client of one session over the public API: sends events, waits for acks and masks, survives a restarted gateway.

An event that was not acknowledged is sent again with the same id, so it is in the log once whatever happened. Used by
the simulated annotators; knows nothing about truth or clicks.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

import httpx
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from schemas.errors import BusyError, ClickloopError
from schemas.predictions import MaskReply

T = TypeVar("T")
PATIENCE_S = 30.0
"""Seconds for which a call is repeated while the gateway restarts or is busy."""
_PAUSE_S = 0.2
_AWAY = frozenset({502, 503, 504})
"""What a proxy answers while the gateway behind it is away."""
_RETRYABLE = frozenset({"busy", "database_unavailable", "embedding_missing"})


class RefusedError(ClickloopError):
    """The server refused something; `refusal` is its error code."""

    code = "error"

    def __init__(self, message: str, refusal: str, **details: Any) -> None:
        super().__init__(message, **details)
        self.refusal = refusal


@dataclass(frozen=True)
class Answer:
    """What came back for an event.

    Attributes:
        mask: None where the event changes none.
        latency_ms: From sending the event to having its mask (or its ack).
    """

    seq: int
    event_id: str
    mask: MaskReply | None
    latency_ms: float


class Api:
    """JSON over HTTP with retries while the gateway is away.

    Args:
        base_url: Such as http://127.0.0.1:8700.
        annotator: Name to act under where no token names it.
        token: Bearer token, None on loopback.
    """

    def __init__(self, base_url: str, annotator: str = "local", token: str | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self.headers = {"X-Annotator": annotator}
        if token:
            self.headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.Client(base_url=self.base_url, headers=self.headers, timeout=60.0, trust_env=False)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One call; the JSON that it answers.

        Raises:
            RefusedError: The server refused it.
            BusyError: It did not answer for long.
        """
        return patiently(lambda: self._once(method, path, body))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _once(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        answer = self._http.request(method, path, json=body)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if isinstance(found, dict) and answer.is_success:
            return found
        if isinstance(found, dict) and isinstance(found.get("error"), dict):
            raise _refused(found["error"])
        said = f"{self.base_url}{path} answered {answer.status_code} with something else than Clickloop's JSON"
        refusal = "busy" if answer.status_code in _AWAY else "error"
        raise RefusedError(f"{said}. Check the address, and what stands between here and the gateway.", refusal)


def patiently(attempt: Callable[[], T]) -> T:
    """Repeat an attempt while the other side is away or busy.

    Raises:
        BusyError: It stayed away for `PATIENCE_S` seconds.
    """
    give_up = time.monotonic() + PATIENCE_S
    while True:
        try:
            return attempt()
        except RefusedError as error:
            if error.refusal not in _RETRYABLE or time.monotonic() > give_up:
                raise
        except (httpx.TransportError, WebSocketException, OSError) as error:
            if time.monotonic() > give_up:
                raise BusyError(f"The server does not answer: {error}") from error
        time.sleep(_PAUSE_S)


class SessionClient:
    """One session, from its claim on.

    Args:
        api: Where, and as whom.
        claim: What POST .../claim answered.
        mask_format: Encoding of masks: bits or rle.
    """

    def __init__(self, api: Api, claim: dict[str, Any], mask_format: str = "bits") -> None:
        self._api = api
        self.session_id = str(claim["session_id"])
        self.lease_no = int(claim["lease_no"])
        self.epoch = int(claim["epoch"])
        self.seq = int(claim["last_seq"])
        self._mask_format = mask_format
        self._socket: ClientConnection | None = None
        self._lost = False

    def send(self, kind: str, instance_id: str | None = None, **payload: Any) -> Answer:
        """Send one event and wait for its ack and, where it changes a mask, for the mask.

        Raises:
            RefusedError: The event was refused; nothing is stored.
            BusyError: The server stayed away.
        """
        event = {
            "event_id": str(uuid4()),
            "seq": self.seq + 1,
            "lease_no": self.lease_no,
            "instance_id": instance_id,
            "kind": kind,
            "payload": payload,
        }
        answer = patiently(lambda: self._send_once(event))
        self.seq += 1
        return answer

    def close(self) -> None:
        """Close the connection; the session stays as it is."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send_once(self, event: dict[str, Any]) -> Answer:
        try:
            socket = self._connected()
            started = time.perf_counter()
            frame = {"type": "event", "mask": self._mask_format, "event": {**event, "session_epoch": self.epoch}}
            socket.send(json.dumps(frame))
            mask = self._await(socket, event)
        except (WebSocketException, OSError):
            self._lost, self._socket = True, None
            raise
        return Answer(event["seq"], event["event_id"], mask, (time.perf_counter() - started) * 1e3)

    def _await(self, socket: ClientConnection, event: dict[str, Any]) -> MaskReply | None:
        wants_mask = event["kind"] in ("open", "click", "box", "brush", "mask_edit", "candidate", "undo", "redo")
        acked = False
        while True:
            message = json.loads(socket.recv(timeout=PATIENCE_S))
            match message["type"]:
                case "ack" if message["event_id"] == event["event_id"]:
                    acked = True
                    if not wants_mask:
                        return None
                case "error" if message["event_id"] in (event["event_id"], None):
                    raise _refused(message["error"])
                case "mask" if acked and message["seq"] == event["seq"]:
                    return MaskReply.model_validate(message)
                case "mask_error" if acked and message["seq"] == event["seq"]:
                    raise _refused(message["error"])

    def _connected(self) -> ClientConnection:
        if self._socket is None:
            if self._lost:
                self.epoch = int(self._api.call("POST", f"/api/sessions/{self.session_id}/open")["epoch"])
            url = f"{self._api.base_url.replace('http', 'ws', 1)}/api/sessions/{self.session_id}/ws"
            socket = connect(
                url, additional_headers=self._api.headers, compression=None, max_size=None, proxy=None, open_timeout=10
            )
            socket.send(json.dumps({"type": "hello", "epoch": self.epoch}))
            welcome = json.loads(socket.recv(timeout=PATIENCE_S))
            if welcome["type"] != "welcome":
                raise _refused(welcome["error"])
            self._socket = socket
        return self._socket


def _refused(error: dict[str, Any]) -> RefusedError:
    return RefusedError(str(error["message"]), str(error["code"]), **error.get("details", {}))
