"""The client against a small real HTTP server that answers what each test says."""

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.cli import TerminatedError, main
from flows.client import Client, error_from, read_serve_file
from pipeline.storage.lock import WorkspaceLock
from schemas.errors import BusyError, ClickloopError, GapError, NotFoundError


class _Server(ThreadingHTTPServer):
    answers: list[tuple[int, Any]]
    seen: list[tuple[str, str, Any, str | None]]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.seen.append((self.command, self.path, body, self.headers.get("Authorization")))
        status, answer = self.server.answers.pop(0)
        payload = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = _answer

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as running:
        running.answers, running.seen = [], []
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def client(server: _Server, **options: Any) -> Client:
    return Client(f"http://127.0.0.1:{server.server_port}", **options)


def test_an_error_comes_back_as_the_class_that_was_raised(server: _Server) -> None:
    error = {"error": {"code": "gap", "message": "Event has seq 5, expected 3.", "details": {"expected": 3}}}
    server.answers = [(409, error)]
    with client(server) as speaking, pytest.raises(GapError) as caught:
        speaking.call("GET", "/x")
    assert caught.value.details == {"expected": 3}
    assert isinstance(error_from(404, {"error": {"code": "not_found", "message": "no"}}), NotFoundError)
    assert type(error_from(500, "<html>")) is ClickloopError


def test_a_busy_server_is_asked_again_and_the_token_goes_along(server: _Server) -> None:
    busy = {"error": {"code": "busy", "message": "later", "details": {}}}
    server.answers = [(503, busy), (200, {"id": "c"})]
    with client(server, token="secret") as speaking:
        assert speaking.call("GET", "/api/campaigns/c") == {"id": "c"}
    assert [seen[3] for seen in server.seen] == ["Bearer secret"] * 2


def test_nobody_there_is_busy_in_the_end() -> None:
    with Client("http://127.0.0.1:9", retry_s=0.0) as speaking, pytest.raises(BusyError, match="does not answer"):
        speaking.call("GET", "/")


def test_following_a_request_tells_its_progress_until_it_ends(server: _Server) -> None:
    server.answers = [
        (200, {"state": "running", "progress": {"done": 1}}),
        (200, {"state": "done", "progress": {"done": 2}, "result": {"n": 2}}),
    ]
    told: list[dict[str, Any]] = []
    with client(server) as speaking:
        record = speaking.follow("r", told.append)
    assert record["result"] == {"n": 2}
    assert told == [{"done": 1}, {"done": 2}]


def test_a_request_that_waits_for_long_is_said_to(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.client.SOON_S", 0.0)
    queued, done = {"state": "queued", "progress": {}}, {"state": "done", "progress": {"done": 2}}
    server.answers = [(200, queued), (200, done)]
    told: list[dict[str, Any]] = []
    with client(server) as speaking:
        speaking.follow("r", told.append)
    assert told == [{"step": "waits for the flow runner"}, {"done": 2}]


@pytest.mark.parametrize("signal", [KeyboardInterrupt, TerminatedError])
def test_interrupting_cancels_the_request(server: _Server, signal: type[BaseException]) -> None:
    server.answers = [(200, {"state": "running", "progress": {}}), (200, {})]

    def interrupt(progress: dict[str, Any]) -> None:
        raise signal

    with client(server) as speaking, pytest.raises(signal):
        speaking.follow("r", interrupt)
    assert server.seen[-1][:2] == ("POST", "/api/requests/r/cancel")


def test_a_serve_file_counts_only_while_its_process_lives(tmp_path: Path) -> None:
    assert read_serve_file(tmp_path) is None
    (tmp_path / "serve.json").write_text(json.dumps({"pid": os.getpid(), "url": "http://127.0.0.1:1"}))
    assert read_serve_file(tmp_path) is None  # a killed one left it, and its number is another process's by now
    with WorkspaceLock(tmp_path):
        assert read_serve_file(tmp_path) == {"pid": os.getpid(), "url": "http://127.0.0.1:1"}
        (tmp_path / "serve.json").write_text(json.dumps({"pid": 2**22 + 1, "url": "http://127.0.0.1:1"}))
        assert read_serve_file(tmp_path) is None
        (tmp_path / "serve.json").write_text("{")
        assert read_serve_file(tmp_path) is None


def test_a_serve_file_of_another_user_is_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    assert read_serve_file(tmp_path) is None


@pytest.mark.parametrize("words", ["campaign pause", "precompute"])
def test_a_campaign_is_asked_for_by_its_whole_name(server: _Server, tmp_path: Path, words: str) -> None:
    serving = {"pid": os.getpid(), "url": f"http://127.0.0.1:{server.server_port}"}
    (tmp_path / "serve.json").write_text(json.dumps(serving))
    server.answers = [(404, {"error": {"code": "not_found", "message": "There is none.", "details": {}}})]
    with WorkspaceLock(tmp_path):
        assert main([*words.split(), "cats?#50% b/w", "--workspace", str(tmp_path)]) == 2
    assert server.seen[0][1].removesuffix("/pause") == "/api/campaigns/cats%3F%2350%25%20b%2Fw"
