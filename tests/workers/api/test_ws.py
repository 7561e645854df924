"""The click path over a real WebSocket: acks apart from masks, read-only tabs, bad frames, resumption."""

import asyncio
import json
import socket as sockets
import threading
import time
from typing import Any
from uuid import uuid4

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from schemas.errors import AuthError, BusyError
from schemas.predictions import MaskReply, RefineRequest
from tests.workers.api.gateway import Gateway, Work, code_of
from workers.api import live


def take(socket: ClientConnection) -> dict[str, Any]:
    return dict(json.loads(socket.recv(timeout=20)))


def frame(work: Work, kind: str, instance: str, at: int, **payload: Any) -> str:
    return json.dumps({"type": "event", "event": work.event(kind, instance, at=at, **payload)})


@pytest.fixture
def socket(work: Work) -> Any:
    with work.socket() as connection:
        assert take(connection)["type"] == "welcome"
        yield connection


def test_ack_then_mask_for_a_click(work: Work, socket: ClientConnection) -> None:
    instance = str(uuid4())
    socket.send(frame(work, "open", instance, 1))
    assert [take(socket)["type"] for _ in range(2)] == ["ack", "mask"]
    socket.send(frame(work, "click", instance, 2, x=80, y=60, is_positive=True))
    ack, mask = take(socket), take(socket)
    assert (ack["type"], ack["seq"], ack["durable_seq"]) == ("ack", 2, 2)
    assert (mask["type"], mask["seq"], mask["instance_id"]) == ("mask", 2, instance)
    assert mask["bits"]["size"] == [120, 160] and mask["latency_ms"]
    assert work.http.get(f"{work.path}/instances/{instance}/mask").json()["mask_sha256"] == mask["mask_sha256"]


def test_hurried_clicks_are_all_logged_and_the_newest_mask_arrives(work: Work, socket: ClientConnection) -> None:
    instance = str(uuid4())
    socket.send(frame(work, "open", instance, 1))
    for seq in range(2, 12):
        socket.send(frame(work, "click", instance, seq, x=70 + seq, y=60, is_positive=True))
    messages = []
    while not (messages and messages[-1]["type"] == "mask" and messages[-1]["seq"] == 11):
        messages.append(take(socket))
    assert [m["seq"] for m in messages if m["type"] == "ack"] == list(range(1, 12))
    masks = [m["seq"] for m in messages if m["type"] == "mask"]
    assert masks == sorted(masks)


def test_refused_event_leaves_the_connection_open(work: Work, socket: ClientConnection) -> None:
    instance = str(uuid4())
    event = work.event("click", instance, at=1, x=1, y=1, is_positive=True)
    socket.send(json.dumps({"type": "event", "event": event}))
    refused = take(socket)
    assert (refused["type"], refused["event_id"]) == ("error", event["event_id"])
    assert refused["error"]["code"] == "wrong_state"
    socket.send('{"type": "ping"}')
    assert take(socket) == {"type": "pong"}


def test_what_nobody_foresaw_is_told_and_the_event_is_taken_when_it_comes_again(
    gateway: Gateway, work: Work, socket: ClientConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection broke without a word, again and again, while the page sent the event anew."""
    instance = str(uuid4())
    sent = frame(work, "open", instance, 1)
    with monkeypatch.context() as patch:
        patch.setattr(gateway.services.intake, "append", lambda *_: 1 / 0)
        socket.send(sent)
        refused = take(socket)
    assert (refused["type"], refused["event_id"]) == ("error", json.loads(sent)["event"]["event_id"])
    assert (refused["error"]["code"], "log has the details" in refused["error"]["message"]) == ("busy", True)
    socket.send(sent)
    assert take(socket)["type"] == "ack"


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"type": "dance"}', '{"type": "event"}', "[" * 20_000])
def test_malformed_frame_is_answered_and_the_connection_goes_on(socket: ClientConnection, text: str) -> None:
    socket.send(text)
    assert take(socket)["error"]["code"] == "bad_input"
    socket.send('{"type": "ping"}')
    assert take(socket)["type"] == "pong"


def test_oversized_frame_closes_with_1009(gateway: Gateway, socket: ClientConnection) -> None:
    socket.send("x" * (gateway.services.settings.max_frame_bytes + 1))
    with pytest.raises(ConnectionClosed) as caught:
        take(socket)
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1009


def test_opening_elsewhere_tells_the_older_connection(work: Work, socket: ClientConnection) -> None:
    epoch = work.http.post(f"{work.path}/open").json()["epoch"]
    assert take(socket) == {"type": "superseded", "epoch": epoch}
    socket.send(frame(work, "open", str(uuid4()), 1))
    assert take(socket)["error"]["code"] == "stale_epoch"


def test_sessions_with_connections_do_not_push_out_the_one_that_is_asked_for(
    gateway: Gateway, work: Work, socket: ClientConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many connections as sessions that are kept, another session was answered by a 500."""
    monkeypatch.setattr(live, "MAX_LIVE", 1)
    with gateway.http() as http:
        other = Work(http)
        assert other.state()["id"] == other.session_id
    socket.send(frame(work, "open", str(uuid4()), 1))
    assert take(socket)["type"] == "ack"


def test_reconnected_client_resends_and_gets_ack_and_mask_again(work: Work) -> None:
    instance = str(uuid4())
    click = frame(work, "click", instance, 2, x=80, y=60, is_positive=True)
    with work.socket() as first:
        take(first)
        first.send(frame(work, "open", instance, 1))
        first.send(click)
        while take(first)["type"] != "mask":
            pass
    with work.socket() as second:
        assert take(second)["session"]["last_seq"] == 2
        second.send(click)
        ack = take(second)
        assert (ack["type"], ack["seq"], ack["duplicate"]) == ("ack", 2, True)
        assert take(second)["seq"] == 2
    assert work.state()["last_seq"] == 2


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        ('{"type": "event"}', "bad_input"),
        ("no json", "bad_input"),
        ('{"type": "hello", "token": "clk_wrong"}', "unauthorized"),
        ('{"type": "hello", "annotator": "somebody else"}', "forbidden"),
    ],
)
def test_bad_hello_is_answered_and_closed(work: Work, hello: str, code: str) -> None:
    url = str(work.http.base_url).rstrip("/").replace("http", "ws", 1)
    with connect(f"{url}{work.path}/ws", additional_headers={"X-Annotator": "ann"}, proxy=None) as socket:
        socket.send(hello)
        assert take(socket)["error"]["code"] == code
        with pytest.raises(ConnectionClosed):
            take(socket)


def test_a_client_that_is_gone_before_its_refusal_is_no_error_of_the_server(
    gateway: Gateway, work: Work, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone, asked = threading.Event(), threading.Event()

    async def refuse(*_args: object) -> None:
        asked.set()
        await asyncio.to_thread(gone.wait, 10)
        await asyncio.sleep(0.1)
        raise AuthError("The token is not valid.")

    monkeypatch.setattr(gateway.services.auth, "caller", refuse)
    socket = work.socket()
    assert asked.wait(10)
    socket.close_socket()
    gone.set()
    open_sockets = gateway.services.metrics.sockets._value
    give_up = time.monotonic() + 10
    while open_sockets.get() > 0 and time.monotonic() < give_up:
        time.sleep(0.02)
    assert "unexpected error" not in caplog.text


def test_unknown_session_is_answered_and_closed(work: Work) -> None:
    work.session_id = str(uuid4())
    with work.socket() as socket:
        assert take(socket)["error"]["code"] == "not_found"


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}])
def test_upgrade_with_a_foreign_host_or_origin_is_refused(work: Work, headers: dict[str, str]) -> None:
    with work.socket() as own:
        host, port = own.remote_address[:2]
    name = headers.pop("Host", host)
    url = f"ws://{name}:{port}{work.path}/ws"
    with sockets.create_connection((host, port)) as tcp, pytest.raises(InvalidStatus) as caught:
        connect(url, sock=tcp, additional_headers=headers, proxy=None)
    assert caught.value.response.status_code in (403, 421)


def test_ack_does_not_wait_for_a_refiner_that_fails(gateway: Gateway, work: Work, monkeypatch: Any) -> None:
    release = threading.Event()

    async def stuck(request: RefineRequest) -> MaskReply:
        await asyncio.to_thread(release.wait, 20)
        raise BusyError("no refiner")

    monkeypatch.setattr(gateway.services.refining._service, "refine", stuck)
    instance = str(uuid4())
    with work.socket() as socket:
        take(socket)
        socket.send(frame(work, "open", instance, 1))
        assert take(socket)["type"] == "ack"
        release.set()
        message = take(socket)
        assert (message["type"], message["error"]["code"]) == ("mask_error", "busy")
    work.seq = 1
    answer = work.post(work.event("click", instance, x=80, y=60, is_positive=True))
    assert answer.status_code == 200 and answer.json()["mask_error"]["code"] == "busy"
    refused = work.post(work.event("accept", instance, seq=2, mask_sha256="0" * 64))
    assert (refused.status_code, code_of(refused), refused.headers["Retry-After"]) == (503, "busy", "1")
    monkeypatch.undo()
    assert work.state()["last_seq"] == 2
