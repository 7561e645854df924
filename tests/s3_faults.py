"""An S3 endpoint that can go away: a proxy before the tests' server that answers, cuts, hangs or refuses as it is told.

Use: `from tests.s3_faults import faulty_s3  # noqa: F401` beside the fixtures of `tests.s3`.
"""

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pytest
import s3fs

REFUSALS = {
    "ExpiredToken": (400, "The provided token has expired."),
    "InvalidAccessKeyId": (403, "The AWS Access Key Id you provided does not exist in our records."),
    "AccessDenied": (403, "Access Denied"),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "BadGateway": (502, "Bad Gateway"),
    "ServiceUnavailable": (503, "Service is unable to handle request."),
    "SlowDown": (503, "Please reduce your request rate."),
}


class FaultyS3:
    """What the proxy does with the next requests.

    Attributes:
        url: Of the proxy.
        served: Requests (method, path) that reached the real server.
        failed: How many did not.
    """

    def __init__(self, upstream: str) -> None:
        self.served: list[tuple[str, str]] = []
        self.failed = 0
        self._upstream = urlsplit(upstream).netloc
        self._lock = threading.Lock()
        self._fault, self._after, self._method, self._path, self._count = "", 0, "", "", 0
        outer = self

        class Handler(_Handler):
            proxy = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def go_away(self, fault: str, *, after: int = 0, method: str = "", path: str = "", count: int = 1_000_000) -> None:
        """Fail `count` requests once `after` of `method` (any: "") were served.

        Args:
            fault: "cut" (the connection ends without an answer), "torn" (in the middle of the answer) or one of
                `REFUSALS`.
            after: Requests that still reach the server.
            method: Which requests count towards `after`; then all of them fail.
            path: Only what holds this in its path fails.
            count: How many fail before all is well again.
        """
        with self._lock:
            self._fault, self._after, self._method, self._path, self._count = fault, after, method, path, count

    def come_back(self) -> None:
        """Serve everything."""
        self.go_away("", count=0)

    def reads(self) -> list[str]:
        """Paths of the objects that were read."""
        return [path for method, path in self.served if method == "GET" and "list-type" not in path]

    def decide(self, method: str, path: str) -> str:
        """The fault of a request; "" for none."""
        with self._lock:
            if self._count > 0 and self._after <= 0 and self._path in path:
                self._count -= 1
                self.failed += 1
                return self._fault
            self._after -= not self._method or method == self._method
            self.served.append((method, path))
            return ""

    def forward(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any, bytes]:
        """The real server's answer: status, headers, body."""
        upstream = http.client.HTTPConnection(self._upstream, timeout=30)
        try:
            upstream.request(method, path, body or None, headers | {"Connection": "close"})
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def close(self) -> None:
        """End the proxy."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyS3

    def _answer(self) -> None:
        body = self._body()
        fault = self.proxy.decide(self.command, self.path)
        self.close_connection = True
        if fault == "cut":
            return
        if fault in REFUSALS:
            status, message = REFUSALS[fault]
            text = f'<?xml version="1.0"?><Error><Code>{fault}</Code><Message>{message}</Message></Error>'
            self._send(status, [("Content-Type", "application/xml")], text.encode(), len(text))
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
        status, answer, data = self.proxy.forward(self.command, self.path, body, headers)
        length = next((int(value) for name, value in answer if name.lower() == "content-length"), len(data))
        self._send(status, answer, data[: len(data) // 2] if fault == "torn" else data, length)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in {"connection", "content-length", "transfer-encoding"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer

    def log_message(self, format: str, *args: Any) -> None:
        """Keep stderr quiet."""


@pytest.fixture
def faulty_s3(s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """A proxy before the server; the environment points all clients to it, with the bucket of `s3_bucket`.

    botocore does not try again by itself, which takes it seconds.
    """
    proxy = FaultyS3(s3_server)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"retries": {"total_max_attempts": 1}}})
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    s3fs.S3FileSystem.clear_instance_cache()
    yield proxy
    s3fs.S3FileSystem.clear_instance_cache()
    proxy.close()
