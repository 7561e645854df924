"""Generated frames on the click path: nothing uncaught in the log, the session goes on, its log has no hole."""

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.hostile_json import json_values, mutated
from tests.workers.api.gateway import Gateway, Work, gateway_in

pytestmark = pytest.mark.timeout(90)
BOUNDED = settings(
    max_examples=150,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_in(tmp_path_factory.mktemp("fuzz"), images=20) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_unexpected(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No error and no failed background work in the gateway's log."""
    caplog.set_level(logging.WARNING)
    yield
    names = ("workers", "uvicorn", "asyncio", "websockets.server")
    loud = [record for record in caplog.records if record.name.startswith(names)]
    assert not [(record.name, record.getMessage(), record.exc_text) for record in loud]


def valid_events(work: Work, instance: str) -> list[dict[str, Any]]:
    """Frames that the session would take now."""
    stroke = {"box": [0, 0, 6, 4], "rle": {"size": [4, 6], "counts": "0h0"}, "is_positive": True, "radius": 2.0}
    payloads: list[tuple[str, str | None, dict[str, Any]]] = [
        ("click", instance, {"x": 80.0, "y": 60.0, "is_positive": True}),
        ("box", instance, {"x0": 10, "y0": 10, "x1": 90, "y1": 90}),
        ("brush", instance, {**stroke, "polyline": [[0, 0], [5, 3]]}),
        ("candidate", instance, {"index": 0}),
        ("category", instance, {"category": 1}),
        ("flag", instance, {"unsure": True, "note": "?"}),
        ("undo", instance, {"event_id": str(uuid4())}),
        ("accept", instance, {"seq": work.seq, "mask_sha256": "0" * 64, "category": 1}),
        ("open", str(uuid4()), {}),
        ("submit", instance, {}),
        ("skip", instance, {"reason": "blurred"}),
    ]
    events = [work.event(kind, target, **payload) for kind, target, payload in payloads]
    return [{"type": "event", "event": event, "mask": "rle"} for event in events]


def frame(draw: Any, work: Work, instance: str) -> str | bytes:
    """A frame: mostly a valid one with something wrong in it."""
    message = draw(st.sampled_from([{"type": "ping"}, {"type": "hello"}, *valid_events(work, instance)]))
    kind = draw(st.sampled_from(["value"] * 5 + ["text", "double", "deep", "long number", "raw", "any"]))
    text = json.dumps(mutated(draw, message) if kind == "value" else message)
    if kind == "text":
        at = draw(st.integers(0, 500)) % len(text)
        return text[:at] + draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=3)) + text[at + 1 :]
    if kind == "double":
        return text[:-1] + ', "type": "event", "event": {"seq": 1}, "type": ' + json.dumps(draw(json_values)) + "}"
    if kind == "deep":
        opening, times = draw(st.sampled_from(["[", '{"event":'])), draw(st.sampled_from([50, 900, 20_000]))
        return text.replace("{}", opening * times) if "{}" in text else opening * times
    if kind == "long number":
        return text.replace("1", "1" * draw(st.sampled_from([20, 400, 5000])))
    if kind == "raw":
        return bytes(draw(st.binary(min_size=1, max_size=40)))
    return json.dumps(draw(json_values)) if kind == "any" else text


def until_pong(socket: ClientConnection, sent: str | bytes) -> list[dict[str, Any]]:
    """What the server answered before it answered a ping; the frame that was sent before may have been one itself."""
    socket.send('{"type": "ping"}')
    answers: list[dict[str, Any]] = []
    while answers.count({"type": "pong"}) < 1 + is_ping(sent):
        answers.append(json.loads(socket.recv(timeout=20)))
    return answers


def is_ping(sent: str | bytes) -> bool:
    try:
        message = json.loads(sent)
    except (ValueError, RecursionError):
        return False
    return isinstance(message, dict) and message.get("type") == "ping"


def test_any_frames_leave_the_session_usable_and_its_log_whole(gateway: Gateway) -> None:
    with gateway.http("fuzz") as http, contextlib.ExitStack() as open_sockets:
        work = Work(http)
        instance = work.opened()
        work.click(instance)

        def connected() -> ClientConnection:
            socket = open_sockets.enter_context(work.socket())
            assert json.loads(socket.recv(timeout=20))["type"] == "welcome"
            return socket

        socket, seen = connected(), set[str]()

        @BOUNDED
        @given(st.data())
        def run(data: st.DataObject) -> None:
            nonlocal socket
            sent = frame(data.draw, work, instance)
            try:
                # Bytes in a text frame: seldom valid UTF-8, which the protocol forbids.
                socket.send(sent, text=isinstance(sent, str) or data.draw(st.booleans()))
                answers = until_pong(socket, sent)
            except ConnectionClosed as closed:
                if not isinstance(sent, bytes) or closed.rcvd is None or closed.rcvd.code not in (1007, 4400):
                    raise
                socket = connected()
                return
            seen.update(answer.get("error", {}).get("code", answer["type"]) for answer in answers)
            work.seq = work.state()["last_seq"]

        run()
        assert {"ack", "bad_input", "mask"} <= seen
        logged = http.get(f"{work.path}/events").json()["results"]
        assert [event["seq"] for event in logged] == list(range(1, work.seq + 1)) and work.seq > 2
        socket.send(json.dumps({"type": "event", "event": work.event("open", str(uuid4())), "mask": "none"}))
        assert json.loads(socket.recv(timeout=20))["seq"] == work.seq + 1
        assert work.state()["state"] == "open"


def test_any_first_frame_is_answered_or_closed_by_name(gateway: Gateway) -> None:
    with gateway.http("greeter") as http:
        work = Work(http)
    url = gateway.url.replace("http", "ws", 1) + f"{work.path}/ws"
    hello = {"type": "hello", "epoch": 1, "annotator": "greeter"}

    @settings(BOUNDED, max_examples=60)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        message = {**hello, "token": "clk_x"} if data.draw(st.booleans()) else hello
        sent = json.dumps(mutated(data.draw, message))
        with connect(url, compression=None, proxy=None) as socket:
            socket.send(sent)
            answer = json.loads(socket.recv(timeout=20))
            if answer["type"] == "welcome":
                return
            assert answer["error"]["code"] in ("bad_input", "unauthorized", "forbidden")
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=20)
            assert closed.value.rcvd is not None and closed.value.rcvd.code in (4400, 4401, 4403)

    run()
    with gateway.http("greeter") as http:
        assert http.get(work.path).json()["last_seq"] == 0


@pytest.mark.parametrize("token", ["\ud800", "clk_\udfff", "\0", "é" * 3000, "x" * 100_000])
def test_odd_tokens_are_unauthorized(gateway: Gateway, token: str) -> None:
    with gateway.http("greeter") as http:
        work = Work(http)
        with work.socket(token=token) as socket:
            assert json.loads(socket.recv(timeout=20))["error"]["code"] == "unauthorized"
