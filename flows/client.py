"""HTTP client of a running `clickloop serve`: finds it by the workspace's serve.json, speaks its public API.

Knows nothing about the database. Every mutation carries a client-made id and is resent while the gateway restarts.
"""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from pipeline.storage.lock import is_held
from schemas.errors import BusyError, ClickloopError
from schemas.settings import Settings

RETRY_S = 20.0
"""Seconds that a call is repeated while the gateway is restarting (it is back in less than 5)."""
POLL_S = 0.5
SOON_S = 2.0
"""Seconds in which a job that waits for nobody begins."""
FINISHED = frozenset({"done", "failed", "cancelled"})


def _classes(base: type[ClickloopError]) -> dict[str, type[ClickloopError]]:
    known = {base.code: base}
    for sub in base.__subclasses__():
        known |= _classes(sub)
    return known


def error_from(status: int, body: Any) -> ClickloopError:
    """The error that an answer carries, as the class that the server raised."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return ClickloopError(f"The server answered HTTP {status}: {body!r}"[:300])
    cls = _classes(ClickloopError).get(str(error.get("code")), ClickloopError)
    details = error.get("details")
    return cls(str(error.get("message")), **(details if isinstance(details, dict) else {}))


class Client:
    """Calls of the API that the commands need.

    Args:
        url: Of the gateway, such as http://127.0.0.1:8700.
        token: Bearer token, None on loopback without one.
        retry_s: Seconds to repeat a call that found nobody listening or a busy server.
    """

    def __init__(self, url: str, token: str | None = None, retry_s: float = RETRY_S) -> None:
        self.url = url.rstrip("/")
        self.token = token
        self._retry_s = retry_s
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=30.0, trust_env=False)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One call; the JSON that it answers.

        Raises:
            ClickloopError: What the server refused, as its own class; BusyError when nobody answers in time.
        """
        give_up = time.monotonic() + self._retry_s
        while True:
            try:
                answer = self._http.request(method, path, json=body)
            except httpx.TransportError as error:
                if time.monotonic() > give_up:
                    raise BusyError(f"The server at {self.url} does not answer ({error}). Is it running?") from error
            else:
                if answer.is_success:
                    return answer.json() if answer.content else {}
                if answer.status_code != 503 or time.monotonic() > give_up:
                    raise error_from(answer.status_code, _json(answer))
            time.sleep(0.5)

    def is_ready(self) -> bool:
        """Whether every part of the server is ready now."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def start(self, campaign_id: str, kind: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Insert a request; its record."""
        body = {"id": str(uuid4()), "kind": kind, "payload": payload}
        return dict(self.call("POST", f"/api/campaigns/{campaign_id}/requests", body))

    def follow(self, request_id: str, on_progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Wait for a request to end, showing its progress; cancels it when interrupted.

        Returns:
            The finished request's record (state done, failed or cancelled).
        """
        late = time.monotonic() + SOON_S
        try:
            while True:
                record = dict(self.call("GET", f"/api/requests/{request_id}"))
                if record["state"] == "queued" and time.monotonic() > late:
                    on_progress({"step": "waits for the flow runner"})
                else:
                    on_progress(record["progress"])
                if record["state"] in FINISHED:
                    return record
                time.sleep(POLL_S)
        except BaseException as raised:
            if not isinstance(raised, Exception):  # Ctrl-C or SIGTERM
                self.call("POST", f"/api/requests/{request_id}/cancel")
            raise

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return answer.text[:300]


def read_serve_file(workspace: Path) -> dict[str, Any] | None:
    """What a live `serve` of this workspace wrote down, or None when there is none (or its process is gone).

    A process with its number is not enough: after a power cut, or in a new container, another one has it.
    """
    try:
        facts = json.loads((workspace / "serve.json").read_text())
        with suppress(PermissionError):  # it lives, under another user
            os.kill(int(facts["pid"]), 0)
    except (FileNotFoundError, NotADirectoryError, PermissionError, ProcessLookupError, ValueError, KeyError):
        return None  # PermissionError: only who serves may read it
    return dict(facts) if is_held(workspace) else None


def find_server(settings: Settings) -> Client | None:
    """A client of the `serve` that owns this workspace, or None when none is running."""
    facts = read_serve_file(settings.workspace)
    if facts is None:
        return None
    token_file = facts.get("token_file")
    token = Path(token_file).read_text().strip() if token_file and Path(token_file).exists() else None
    return Client(str(facts["url"]), token)
