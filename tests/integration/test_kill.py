"""kill -9 of the gateway and of the refiner under a real `serve`, in the middle of an annotator's session.

Whatever was acknowledged stands in the log once and in order, whatever was resent is acknowledged as what it is, the
masks come out as they were shown, and SIGTERM ends everything.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
from sqlalchemy import text
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from flows.cli import main
from flows.client import read_serve_file
from pipeline.storage import masks, sessions
from pipeline.storage.database import open_database
from schemas.events import normalise_payload
from schemas.settings import Settings
from tests.flows.scenes import SIZE, make_campaign, write_pictures
from tests.rays import descendants, wait_gone

START_S = 300.0
BACK_S = 120.0
"""Limits for a loaded machine: a gateway is back in 3 s and a refiner in 5 on a quiet one."""
DRAIN_S = 10.0
MARK = "CLICKLOOP_TEST_RUN"
CENTRE = (SIZE[1] / 2, SIZE[0] / 2)


def wait_until(what: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def _answers_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=10, trust_env=False).is_success
    except httpx.TransportError:
        return False


@contextmanager
def serving(workspace: Path, mark: str) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """`clickloop serve`, ready; the test ends it, and what it leaves is ended here."""
    command = [sys.executable, "-m", "flows.cli", "serve", "--port", "0", "--workspace", str(workspace)]
    with (workspace.parent / "serve.log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, MARK: mark})
    try:

        def is_ready() -> bool:
            assert server.poll() is None, "serve ended"
            facts = read_serve_file(workspace)
            return facts is not None and _answers_ready(facts["url"])

        wait_until(is_ready, START_S)
        facts = read_serve_file(workspace)
        assert facts is not None
        yield server, facts["url"]
    finally:
        family = descendants(server.pid)
        server.kill()
        server.wait()
        wait_gone(family)


def process_of(server: "subprocess.Popen[bytes]", words: str) -> psutil.Process:
    """The one process below `serve` whose command line has these words."""
    found = []
    for process in descendants(server.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            if words in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    assert len(found) == 1, f"{words}: {found}"
    return found[0]


def marked(mark: str) -> list[psutil.Process]:
    """Every process of this machine that `serve` started, whoever its parent is now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


class Person:
    """An annotator on one session, who keeps every event made, every ack and every mask seen."""

    def __init__(self, url: str, campaign: str) -> None:
        self.http = httpx.Client(base_url=url, headers={"X-Annotator": "ann"}, timeout=60.0, trust_env=False)
        claim = self.http.post(f"/api/campaigns/{campaign}/claim", json={"claim_id": str(uuid4())}).json()
        self.path, self.session_id = f"/api/sessions/{claim['session_id']}", claim["session_id"]
        self.epoch, self.lease_no = claim["epoch"], claim["lease_no"]
        self.made: list[dict[str, Any]] = []
        self.acks: dict[str, list[bool]] = {}
        """Event id -> of each ack, whether it said `duplicate`."""
        self.shown: dict[int, dict[str, Any]] = {}
        self.failed: set[int] = set()
        self.socket = self._connect()

    def make(self, kind: str, instance: str | None = None, /, **payload: Any) -> dict[str, Any]:
        """The session's next event, not sent."""
        event = {
            "event_id": str(uuid4()),
            "seq": len(self.made) + 1,
            "lease_no": self.lease_no,
            "instance_id": instance,
            "kind": kind,
            "payload": payload,
        }
        self.made.append(event)
        return event

    def click(self, instance: str, dx: float, dy: float = 0.0, is_positive: bool = True) -> dict[str, Any]:
        return self.make("click", instance, x=CENTRE[0] + dx, y=CENTRE[1] + dy, is_positive=is_positive)

    def push(self, *events: dict[str, Any]) -> None:
        """Send, and wait for nothing."""
        for event in events:
            frame = {"type": "event", "mask": "rle", "event": {**event, "session_epoch": self.epoch}}
            self.socket.send(json.dumps(frame))

    def hear(self) -> None:
        """Note one message."""
        message = json.loads(self.socket.recv(timeout=BACK_S))
        match message["type"]:
            case "ack":
                event = next(e for e in self.made if e["event_id"] == message["event_id"])
                assert message["seq"] == event["seq"], "an ack names the seq that was given"
                self.acks.setdefault(message["event_id"], []).append(message["duplicate"])
            case "mask":
                self.shown[message["seq"]] = message
            case "mask_error":
                assert message["error"]["code"] == "busy", message
                self.failed.add(message["seq"])
            case other:
                raise AssertionError(f"{other}: {message}")

    def hear_rest(self) -> None:
        """Note what still comes out of a connection whose other end is dead."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.hear()

    def wait_acks(self, *events: dict[str, Any]) -> None:
        while not all(event["event_id"] in self.acks for event in events):
            self.hear()

    def wait_mask(self, event: dict[str, Any]) -> dict[str, Any]:
        """The mask of an acknowledged event; asked for again while nobody can compute it."""
        end = time.monotonic() + BACK_S
        while event["seq"] not in self.shown:
            assert time.monotonic() < end, "no mask"
            self.hear()
            if event["seq"] in self.failed:
                self.failed.discard(event["seq"])
                time.sleep(0.5)
                self.push(event)
        return self.shown[event["seq"]]

    def tell(self, event: dict[str, Any], has_mask: bool = True) -> dict[str, Any]:
        """Send an event, wait for its ack and mask; the event."""
        self.push(event)
        self.wait_acks(event)
        if has_mask:
            self.wait_mask(event)
        return event

    def accept(self, instance: str, seen: dict[str, Any]) -> dict[str, Any]:
        """Accept the mask that was shown for an event; not sent."""
        digest = self.shown[seen["seq"]]["mask_sha256"]
        return self.make("accept", instance, seq=seen["seq"], mask_sha256=digest, category=1)

    def mask_as_of(self, instance: str, seq: int) -> str:
        """Digest of the mask that the server computes now for an earlier event."""
        answer = self.http.get(f"{self.path}/instances/{instance}/mask", params={"seq": seq})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["mask_sha256"])

    def last_seq(self) -> int:
        return int(self.http.get(self.path).json()["last_seq"])

    def close(self) -> None:
        self.socket.close()
        self.http.close()

    def take_over(self) -> int:
        """Open the session again once the gateway answers; the log's last seq, as it says."""
        self.socket.close()
        end = time.monotonic() + BACK_S
        while True:
            try:
                state = self.http.post(f"{self.path}/open").json()
                break
            except httpx.TransportError:
                assert time.monotonic() < end, "the gateway does not come back"
                time.sleep(0.1)
        assert state["epoch"] == self.epoch + 1
        self.epoch = state["epoch"]
        self.socket = self._connect()
        return int(state["last_seq"])

    def _connect(self) -> ClientConnection:
        url = f"{str(self.http.base_url).rstrip('/').replace('http', 'ws', 1)}{self.path}/ws"
        socket = connect(
            url, additional_headers={"X-Annotator": "ann"}, compression=None, proxy=None, open_timeout=BACK_S
        )
        socket.send(json.dumps({"type": "hello", "epoch": self.epoch}))
        assert json.loads(socket.recv(timeout=BACK_S))["type"] == "welcome"
        return socket


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_no_kill_loses_or_doubles_what_was_acknowledged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(workspace=tmp_path / "workspace", min_free_bytes=0)
    database = open_database(settings.resolved_database_url)
    make_campaign(settings, database, write_pictures(tmp_path, 2))
    database.close()
    mark = uuid4().hex
    with serving(settings.workspace, mark) as (server, url):
        person = Person(url, "discs")
        first, second, third = (str(uuid4()) for _ in range(3))
        accepted = {
            first: _gateway_dies_then_refiner_then_gateway(person, server, first),
            second: _undo_and_accept(person, second),
        }
        person.tell(person.make("open", third))
        person.tell(person.click(third, 5))
        person.tell(person.make("delete", third), has_mask=False)
        person.tell(person.make("submit"), has_mask=False)
        person.close()
        _ends_in_time(server, mark)

    database = open_database(settings.resolved_database_url)
    with database.connect() as conn:
        logged = sessions.session_events(conn, person.session_id)
        stored = masks.session_masks(conn, person.session_id)
        instances = {i.id: i for i in sessions.session_instances(conn, person.session_id)}
        assert conn.execute(text("SELECT count(*) FROM events")).scalar_one() == len(person.made)
        assert sessions.get_session(conn, person.session_id).state == "submitted"
    database.close()
    assert person.acks.keys() == {event["event_id"] for event in person.made}
    assert [event.seq for event in logged] == list(range(1, len(person.made) + 1))
    assert [event.event_id for event in logged] == [event["event_id"] for event in person.made]
    for made, event in zip(person.made, logged, strict=True):
        assert event.payload == normalise_payload(made["kind"], made["payload"])[0]
    assert {mask.instance_id: (mask.id, mask.mask_sha256) for mask in stored} == accepted
    assert len(stored) == 2
    assert {name: i.state for name, i in instances.items()} == {
        first: "accepted", second: "accepted", third: "deleted"
    }  # fmt: skip

    assert main(["replay", "discs", "--json", "--workspace", str(settings.workspace)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["masks"], report["identical"], report["mismatches"]) == (2, 2, [])
    assert report["events"] == report["events_identical"] > 0


def _gateway_dies_then_refiner_then_gateway(
    person: Person, server: "subprocess.Popen[bytes]", instance: str
) -> tuple[str, str]:
    """Label one instance through three kills; the id and digest of the mask that was accepted."""
    person.tell(person.make("open", instance))
    person.tell(person.click(instance, 0))
    refiner = process_of(server, "_RefinerShell")

    # The gateway dies within a burst: some events acknowledged, some perhaps durable, the last one surely not.
    burst = [person.click(instance, dx) for dx in range(1, 9)]
    person.push(*burst)
    person.wait_acks(*burst[:2])
    gateway = process_of(server, "workers.api")
    gateway.suspend()
    unseen = person.click(instance, 9)
    person.push(unseen)
    gateway.kill()
    person.hear_rest()
    before = [event for event in burst if event["event_id"] in person.acks]
    assert unseen["event_id"] not in person.acks
    durable = person.take_over()
    assert before[-1]["seq"] <= durable < unseen["seq"]
    person.push(*burst, unseen)
    person.wait_acks(*burst, unseen)
    person.wait_mask(unseen)
    for event in (*burst, unseen):
        assert person.acks[event["event_id"]][-1] is (event["seq"] <= durable), "a duplicate is called one"
    assert process_of(server, "_RefinerShell") == refiner, "the refiner outlives the gateway"
    warm = person.tell(person.click(instance, 0, 2))
    assert person.shown[warm["seq"]]["steps"] == 1, "and stays warm"

    # The refiner dies within a call: the ack comes all the same, the mask once there is another one.
    refiner.suspend()
    click = person.click(instance, 0, -2, is_positive=True)
    person.push(click)
    person.wait_acks(click)
    assert click["seq"] not in person.shown
    refiner.kill()
    assert person.wait_mask(click)["steps"] == click["seq"], "its memory was lost: every edit is computed again"
    assert process_of(server, "_RefinerShell") != refiner
    for seq, mask in sorted(person.shown.items()):
        assert person.mask_as_of(instance, seq) == mask["mask_sha256"], f"seq {seq}"

    # The gateway dies after the commit of an accept, and nobody has seen its ack.
    accept = person.accept(instance, click)
    person.push(accept)
    person.socket.close()
    wait_until(lambda: person.last_seq() == accept["seq"], BACK_S)
    process_of(server, "workers.api").kill()
    assert person.take_over() == accept["seq"]
    person.tell(accept, has_mask=False)
    assert person.acks[accept["event_id"]] == [True]
    return accept["event_id"], accept["payload"]["mask_sha256"]


def _undo_and_accept(person: Person, instance: str) -> tuple[str, str]:
    person.tell(person.make("open", instance))
    one = person.tell(person.click(instance, -3))
    other = person.tell(person.click(instance, -50, -40, is_positive=False))
    undo = person.tell(person.make("undo", instance, event_id=other["event_id"]))
    assert person.shown[undo["seq"]]["mask_sha256"] == person.shown[one["seq"]]["mask_sha256"]
    redo = person.tell(person.make("redo", instance, event_id=undo["event_id"]))
    accept = person.tell(person.accept(instance, redo), has_mask=False)
    return accept["event_id"], accept["payload"]["mask_sha256"]


def _ends_in_time(server: "subprocess.Popen[bytes]", mark: str) -> None:
    """SIGTERM: exit 0 within the drain time, and no process is left."""
    family = {*descendants(server.pid), *marked(mark)}
    assert len(family) > 5
    started = time.monotonic()
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0
    assert time.monotonic() - started <= DRAIN_S
    wait_gone(list(family), 5)
    assert not marked(mark)
