"""Bad frames on the click path: each is answered by name, none is stored, and the connection goes on where it can."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.connection import Connection

from tests.workers.api.gateway import CAMPAIGN, Gateway, Work, gateway_in

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_in(tmp_path_factory.mktemp("frames"), images=12, lease_s=0.5, max_events_per_instance=10) as running:
        yield running


@pytest.fixture(scope="module")
def opened(gateway: Gateway) -> Iterator[tuple[Work, str, Connection]]:
    """A session with an instance and a click, and its socket; no test changes it."""
    with gateway.http("frames") as http:
        work = Work(http)
        instance = work.opened()
        work.click(instance)
        with work.socket() as socket:
            assert take(socket)["type"] == "welcome"
            yield work, instance, socket
        assert work.state()["last_seq"] == 2


def take(socket: Connection) -> dict[str, Any]:
    return dict(json.loads(socket.recv(timeout=20)))


def ask(socket: Connection, event: Any, **more: Any) -> dict[str, Any]:
    """The answer to an event."""
    socket.send(json.dumps({"type": "event", "event": event, "mask": "none", **more}))
    return take(socket)


def closed_with(socket: Connection) -> int:
    with pytest.raises(ConnectionClosed) as closed:
        socket.recv(timeout=20)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"x": 160, "y": 60, "is_positive": True}, "click_outside_image"),
        ({"x": float("nan"), "y": 60, "is_positive": True}, "bad_input"),
        ({"x": float("inf"), "y": 60, "is_positive": True}, "bad_input"),
        ({"x": "5", "y": [], "is_positive": True}, "bad_input"),
        ({"x": 5, "y": 5, "is_positive": True, "\ud800": 1}, "bad_input"),
        ({}, "bad_input"),
        (7, "bad_input"),
    ],
)
def test_bad_click_is_refused_under_its_id(opened: tuple[Work, str, Connection], payload: Any, code: str) -> None:
    work, instance, socket = opened
    event = {**work.event("click", instance), "payload": payload}
    answer = ask(socket, event)
    assert (answer["type"], answer["event_id"], answer["error"]["code"]) == ("error", event["event_id"], code)
    assert set(answer["error"]) == {"code", "message", "details"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "7",
        '{"type": "wave"}',
        '{"type": "event"}',
        '{"type": "event", "event": null}',
        '{"type": "event", "event": {}, "mask": "png"}',
        '{"type": "hello", "epoch": 1}',
        '{"type": ["event"]}',
        "[" * 100_000,
        "1" * 10_000,
        '{"type": "\\ud800"}',
        '{"type": "ping"',
    ],
)
def test_malformed_frame_is_answered(opened: tuple[Work, str, Connection], text: str) -> None:
    socket = opened[2]
    socket.send(text)
    answer = take(socket)
    assert (answer["type"], answer["error"]["code"]) == ("error", "bad_input")
    assert len(json.dumps(answer)) < 1000, "the input is not echoed"
    socket.send('{"type": "ping"}')
    assert take(socket) == {"type": "pong"}


def test_conflicts_and_gaps_carry_what_the_client_lacks(opened: tuple[Work, str, Connection]) -> None:
    work, instance, socket = opened
    click = {"x": 5, "y": 5, "is_positive": True}
    logged = work.http.get(f"{work.path}/events").json()["results"]
    replayed = {**work.event("click", instance, at=2, **click), "event_id": logged[1]["event_id"]}
    answer = ask(socket, replayed)
    assert answer["error"]["code"] == "conflict"
    assert [event["event_id"] for event in answer["error"]["details"]["events"]] == [logged[1]["event_id"]]
    taken = ask(socket, work.event("click", instance, at=2, **click))
    assert taken["error"]["code"] == "conflict" and taken["error"]["details"]["events"][0]["seq"] == 2
    ahead = ask(socket, work.event("click", instance, at=4, **click))
    assert (ahead["error"]["code"], ahead["error"]["details"]["expected"]) == ("gap", 3)
    stale = ask(socket, {**work.event("click", instance, **click), "session_epoch": 9})
    assert stale["error"]["code"] == "stale_epoch"
    foreign = ask(socket, {**work.event("click", instance, **click), "lease_no": 9})
    assert foreign["error"]["code"] == "lease_lost"


def test_binary_frame_closes_the_connection(gateway: Gateway) -> None:
    with gateway.http("binary") as http, Work(http).socket() as socket:
        assert take(socket)["type"] == "welcome"
        socket.send(b"\x00\x01")
        assert take(socket)["error"]["code"] == "bad_input"
        assert closed_with(socket) == 4400


def test_message_over_the_limit_closes_with_1009(gateway: Gateway) -> None:
    with gateway.http("big") as http, Work(http).socket() as socket:
        assert take(socket)["type"] == "welcome"
        with contextlib.suppress(ConnectionClosed):
            socket.send(["x" * 255_999, "xx"])  # the last fragment is small, so that nothing unread is left behind
        assert closed_with(socket) == 1009


@pytest.mark.parametrize("size", [256_001, 2_000_000])
def test_oversized_frame_ends_the_connection_and_nothing_else(gateway: Gateway, size: int) -> None:
    """The close frame itself may be lost: TCP resets a connection that is closed with unread bytes."""
    with gateway.http("big") as http:
        work = Work(http)
        with work.socket() as socket:
            assert take(socket)["type"] == "welcome"
            with contextlib.suppress(ConnectionClosed):
                socket.send("x" * size)
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=20)
            assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
        with work.socket() as socket:
            assert take(socket)["type"] == "welcome"
        assert http.get(f"{work.path}/events").json()["results"] == []


def test_lost_lease_is_told_on_the_socket_and_the_events_stay_readable(gateway: Gateway) -> None:
    with gateway.http("holder") as slow, gateway.http("taker") as quick:
        work = Work(slow)
        instance = work.opened()
        with work.socket() as socket:
            assert take(socket)["type"] == "welcome"
            time.sleep(0.55)
            body = {"claim_id": str(uuid4()), "image_id": work.claim["image"]["id"]}
            assert quick.post(f"/api/campaigns/{CAMPAIGN}/claim", json=body).status_code == 200
            answer = ask(socket, work.event("click", instance, x=80, y=60, is_positive=True))
            assert answer["error"]["code"] == "lease_lost"
        with work.socket() as socket:
            welcome = take(socket)
            assert (welcome["type"], welcome["session"]["state"]) == ("welcome", "lost")
        assert [event["kind"] for event in slow.get(f"{work.path}/events").json()["results"]] == ["open"]


def test_too_many_events_of_an_instance_are_refused(gateway: Gateway) -> None:
    with gateway.http("many") as http:
        work = Work(http)
        instance = work.opened()
        with work.socket() as socket:
            take(socket)
            for seq in range(2, 11):
                assert ask(socket, work.event("click", instance, at=seq, x=80, y=60, is_positive=True))["type"] == "ack"
            more = ask(socket, work.event("click", instance, at=11, x=80, y=60, is_positive=True))
            assert more["error"]["code"] == "too_large"
            assert ask(socket, work.event("delete", instance, at=11))["type"] == "ack"
