"""The outermost ASGI layers: request ids and access log, Host and Origin, and bodies of bounded size.

Pure ASGI, so that WebSocket upgrades pass through the same checks as requests.
"""

import logging
import re
import time
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workers.api.logs import request_id
from workers.api.metrics import Metrics

logger = logging.getLogger("workers.api.access")

_GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def _refusal(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message, "details": {}}}, status)


class RequestId:
    """Gives every request an id (the client's own if it is harmless), counts it and writes one line when it ends.

    Answers what nobody foresaw here, so that this answer, too, has the id under which the log tells what happened.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        rid = given if _GOOD_ID.fullmatch(given) else uuid4().hex
        request_id.set(rid)
        scope["clickloop.request_id"] = rid
        started, status = time.monotonic(), 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = rid
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            elif message["type"] == "websocket.accept":
                status = 101
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = rid
            await send(message)

        try:
            await self.app(scope, receive, tagged)
        except Exception:
            logger.exception("unexpected error")
            if scope["type"] != "http" or status:
                raise
            scope["clickloop.code"] = "error"
            message = "Something went wrong on the server. Its log has the details under this answer's X-Request-Id."
            await _refusal(500, "error", message)(scope, receive, tagged)
        finally:
            self._done(scope, status, (time.monotonic() - started) * 1e3)

    def _done(self, scope: Scope, status: int, elapsed_ms: float) -> None:
        route: Any = scope.get("route")
        name = getattr(route, "path", "other")
        method = scope.get("method", "WS")
        self.metrics.requests.labels(method, name, str(status)).inc()
        if scope["type"] == "http":
            self.metrics.request_ms.labels(name).observe(elapsed_ms)
        if name in ("/healthz", "/readyz", "/metrics"):
            return
        logger.info(
            "%s %s %s",
            method,
            scope["path"],
            status,
            extra={
                "route": name,
                "status": status,
                "ms": round(elapsed_ms, 2),
                "annotator": scope.get("clickloop.annotator", ""),
                "code": scope.get("clickloop.code", ""),
            },
        )


class SameOrigin:
    """Answers only to our own host names, and only to pages that we served.

    WebSockets ignore CORS and DNS rebinding reaches loopback, so both headers are checked on every request and upgrade:
    421 for a foreign Host, 403 for a foreign Origin. Clients that are no browsers send no Origin.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Iterable[str]) -> None:
        self.app = app
        self.allowed = {_bare(name) for name in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            refusal = self._check(Headers(scope=scope))
            if refusal is not None:
                if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
                    await send({"type": "websocket.close", "code": 1008})
                    return
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, headers: Headers) -> JSONResponse | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _name(hosts[0]) not in self.allowed:
            return _refusal(421, "forbidden", "This server does not answer to that Host. See CLICKLOOP_ALLOWED_HOSTS.")
        for origin in headers.getlist("origin"):
            scheme, _, place = origin.lower().partition("://")
            if scheme not in ("http", "https") or place != hosts[0].lower():
                return _refusal(403, "forbidden", "Requests from pages of another origin are refused.")
        return None


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]@/]*)(:\d{1,5})?", host)
    return _bare(match.group(1)) if match else ""


def _bare(name: str) -> str:
    return name.lower().strip("[]").rstrip(".")


class BodyLimit:
    """Refuses bodies over the limit with 413: by their Content-Length, or while they stream in."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        message = f"The body is over {self.max_bytes} bytes. Send fewer events at a time."
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdigit() and int(length) > self.max_bytes:
            await _refusal(413, "too_large", message)(scope, receive, send)
            return
        received, started, refused = 0, False, False

        async def counted() -> Message:
            nonlocal received, refused
            part = await receive()
            received += len(part.get("body", b""))
            if received > self.max_bytes:
                refused = True
                return {"type": "http.disconnect"}
            return part

        async def watched(part: Message) -> None:
            nonlocal started
            if not refused:
                started = started or part["type"] == "http.response.start"
                await send(part)

        try:
            await self.app(scope, counted, watched)
        except Exception:
            if not refused:
                raise
        if refused and not started:
            await _refusal(413, "too_large", message)(scope, receive, send)
