"""What happens when a part is away: a locked or lost database, refiners that are down, a gateway that drains."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import Connection

from pipeline.storage.database import Database, open_database
from schemas.errors import BusyError
from schemas.predictions import MaskReply, RefineRequest
from tests.workers.api.gateway import CAMPAIGN, Gateway, Work, code_of, fill, local_router, serving, settings_in
from tests.workers.campaign import make_campaign
from workers.api.routes import health
from workers.router import LocalRouter

pytestmark = pytest.mark.timeout(60)


class Switchable(LocalRouter):
    """The real router, whose refiners can be taken away."""

    down = False

    async def refine(self, request: RefineRequest) -> MaskReply:
        if self.down:
            raise BusyError("No refiner answers. Try again.", retry_after_s=1)
        return await super().refine(request)

    async def ready(self) -> dict[str, object]:
        return (
            {"ray": True, "refiners": 0, "encoders": 1, "reason": "no refiner"} if self.down else await super().ready()
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outages")


@pytest.fixture(scope="module")
def router(folder: Path) -> Switchable:
    real = local_router(str(folder / "storage"))
    real.__class__ = Switchable
    assert isinstance(real, Switchable)
    return real


@pytest.fixture(scope="module")
def gateway(folder: Path, router: Switchable) -> Iterator[Gateway]:
    """A gateway whose database waits for locks for a short time only."""
    stored = make_campaign(folder, 12)
    database = open_database(f"sqlite:///{folder / 'clickloop.db'}", busy_timeout_s=0.2)
    fill(database, stored)
    with closing(database), serving(settings_in(folder), database, router) as running:
        yield running


@pytest.fixture
def down(router: Switchable) -> Iterator[None]:
    """No refiner answers."""
    router.down = True
    yield
    router.down = False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Somebody else holds the database's write lock."""
    with closing(sqlite3.connect(folder / "clickloop.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def is_unavailable(answer: httpx.Response) -> bool:
    assert (answer.status_code, code_of(answer)) == (503, "database_unavailable"), answer.text
    return int(answer.headers["retry-after"]) >= 1


def test_locked_database_gives_no_ack_and_the_event_can_be_sent_again(folder: Path, work: Work) -> None:
    instance = work.opened()
    event = work.event("click", instance, x=80, y=60, is_positive=True)
    claim = {"claim_id": str(uuid4())}
    with locked(folder):
        refused = work.post(event)
        assert is_unavailable(refused) and "acks" not in refused.json()["error"]["details"]
        assert is_unavailable(work.http.post(f"/api/campaigns/{CAMPAIGN}/claim", json=claim))
        assert is_unavailable(work.http.post(f"{work.path}/open"))
        assert work.state()["last_seq"] == 1, "reads go on"
    answer = work.post(event).json()
    assert answer["acks"] == [{"event_id": event["event_id"], "seq": 2, "duplicate": False}]
    assert work.http.post(f"/api/campaigns/{CAMPAIGN}/claim", json=claim).status_code == 200


def test_locked_database_leaves_the_socket_open(folder: Path, work: Work) -> None:
    event = work.event("open", str(uuid4()))
    frame = json.dumps({"type": "event", "event": event, "mask": "none"})
    with work.socket() as socket:
        assert json.loads(socket.recv(timeout=10))["type"] == "welcome"
        with locked(folder):
            socket.send(frame)
            error = json.loads(socket.recv(timeout=10))
        assert (error["error"]["code"], error["event_id"]) == ("database_unavailable", event["event_id"])
        socket.send(frame)
        ack = json.loads(socket.recv(timeout=10))
        assert (ack["type"], ack["seq"], ack["duplicate"]) == ("ack", 1, False)


def test_a_hanging_database_is_said_to_be_one_while_somebody_listens(
    gateway: Gateway, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.api.work.DATABASE_S", 0.5)
    event, go, connect = work.event("open", str(uuid4())), threading.Event(), Database.connect

    def hang(database: Database) -> AbstractContextManager[Connection]:
        go.wait(20)
        return connect(database)

    gateway.services.writer.submit(lambda conn: go.wait(20))
    try:
        with work.socket() as socket:
            assert json.loads(socket.recv(timeout=10))["type"] == "welcome"
            with monkeypatch.context() as hanging:
                hanging.setattr(Database, "connect", hang)
                assert is_unavailable(work.http.get("/api/campaigns"))
                assert is_unavailable(work.post(event)), "it looks which weights are live"
                with work.socket() as late:
                    assert "does not answer" in json.loads(late.recv(timeout=10))["error"]["message"]
            go.set()
            work.do("open", str(uuid4()))
            go.clear()
            gateway.services.writer.submit(lambda conn: go.wait(20))
            event = work.event("release")
            socket.send(json.dumps({"type": "event", "event": event, "mask": "none"}))
            assert "does not answer" in json.loads(socket.recv(timeout=10))["error"]["message"]
    finally:
        go.set()
    assert work.post(event).json()["acks"][0]["seq"] == event["seq"]


def test_a_storage_that_hangs_takes_no_thread_from_the_database(
    gateway: Gateway, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probes go on while the first ones still wait for the storage; clicks must, too."""
    monkeypatch.setattr(health, "_TIMEOUT_S", 0.1)
    go = threading.Event()
    monkeypatch.setattr(health, "kind", lambda fs, root: go.wait(20))
    try:
        probes = [http.get("/readyz").json()["parts"] for _ in range(40)]
        assert {probe["storage"] for probe in probes} == {"no answer"}
        assert http.get("/api/campaigns").status_code == 200
        assert probes[-1]["database"] == "ok"
    finally:
        go.set()


def test_refiners_down_the_log_goes_on_and_accepts_wait(work: Work, router: Switchable, down: None) -> None:
    instance = work.opened()
    answer = work.click(instance)
    assert [ack["seq"] for ack in answer["acks"]] == [2] and answer["mask"] is None
    assert answer["mask_error"]["code"] == "busy"
    accept = work.event("accept", instance, seq=2, mask_sha256="0" * 64)
    refused = work.post(accept)
    assert (refused.status_code, code_of(refused)) == (503, "busy") and refused.headers["retry-after"]
    assert code_of(work.post(work.event("candidate", instance, index=0))) == "busy"
    shown = work.http.get(f"{work.path}/instances/{instance}/mask")
    assert (shown.status_code, code_of(shown)) == (503, "busy")
    assert work.state()["last_seq"] == 2
    router.down = False
    digest = work.http.get(f"{work.path}/instances/{instance}/mask").json()["mask_sha256"]
    work.do("accept", instance, seq=2, mask_sha256=digest)


def test_readiness_names_the_part_that_is_away(
    gateway: Gateway, router: Switchable, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ("database", "storage", "ray", "model", "weights", "draining")
    ready = http.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "parts": dict.fromkeys(parts, "ok")})
    router.down = True
    away = http.get("/readyz")
    router.down = False
    assert away.status_code == 503 and away.headers["retry-after"]
    assert {name for name, said in away.json()["parts"].items() if said != "ok"} == {"model"}
    assert away.json()["parts"]["model"] == "no refiner"
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=4096))
        assert "is full" in http.get("/readyz").json()["parts"]["database"]
    with monkeypatch.context() as read_only:
        read_only.setattr("os.access", lambda path, mode: False)
        assert "may not be written" in http.get("/readyz").json()["parts"]["database"]
    monkeypatch.setattr(gateway.services.settings, "storage_url", "nowhere://x")
    assert {name for name, said in http.get("/readyz").json()["parts"].items() if said != "ok"} == {"storage"}
    assert http.get("/healthz").json() == {"status": "ok"}


def test_draining_gateway_gives_out_no_tasks_and_finishes_what_was_begun(
    gateway: Gateway, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.services, "draining", True)
    refused = work.http.post(f"/api/campaigns/{CAMPAIGN}/claim", json={"claim_id": str(uuid4())})
    assert (refused.status_code, code_of(refused)) == (503, "busy") and refused.headers["retry-after"]
    assert work.click(work.opened())["mask"]["area"] > 0
    ready = work.http.get("/readyz")
    assert ready.status_code == 503 and ready.json()["parts"]["draining"] != "ok"


def test_unforeseen_error_has_the_one_shape_and_the_id_of_its_log_lines(
    gateway: Gateway, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> bytes:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(gateway.services.metrics, "text", broken)
    answer = http.get("/metrics", headers={"X-Request-Id": "mine-7"})
    assert (answer.status_code, code_of(answer)) == (500, "error")
    assert answer.headers["x-request-id"] == "mine-7" and answer.headers["x-frame-options"] == "DENY"
    assert "secret" not in answer.text and "ZeroDivisionError" in caplog.text


def test_lost_database_is_unavailable_until_it_is_back(tmp_path: Path) -> None:
    stored = make_campaign(tmp_path, 1)
    path = tmp_path / "clickloop.db"
    database = open_database(f"sqlite:///{path}", busy_timeout_s=0.2)
    fill(database, stored)
    router = local_router(stored.storage_url)
    with closing(database), serving(settings_in(tmp_path), database, router) as running, running.http() as http:
        work = Work(http)
        event = work.event("open", str(uuid4()))
        database.engine.dispose()
        path.rename(tmp_path / "away.db")
        path.mkdir()
        assert is_unavailable(work.post(event))
        assert is_unavailable(http.get("/api/campaigns"))
        assert http.get("/readyz").json()["parts"]["database"] != "ok"
        assert http.get("/healthz").status_code == 200 and http.get("/metrics").status_code == 200
        path.rmdir()
        (tmp_path / "away.db").rename(path)
        give_up = time.monotonic() + 10
        while work.post(event).status_code != 200:
            assert time.monotonic() < give_up
        assert work.state()["last_seq"] == 1


def test_gateway_whose_database_is_away_may_be_started_again(tmp_path: Path) -> None:
    """`serve` ends for good when a child says that it cannot start: a database that restarts is no reason to."""
    url = f"postgresql+psycopg://nobody@/none?host={tmp_path}"
    environment = {**os.environ, "CLICKLOOP_WORKSPACE": str(tmp_path), "CLICKLOOP_DATABASE_URL": url}
    command = [sys.executable, "-m", "workers.api"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "cannot start yet" in done.stdout + done.stderr
