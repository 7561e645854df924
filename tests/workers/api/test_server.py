"""Ready once weights are loaded. SIGTERM drains: what was acknowledged is in the log. And the page's files."""

import asyncio
import json
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from pipeline.storage.database import Database, open_database
from pipeline.storage.sessions import session_events
from schemas.errors import BusyError
from schemas.predictions import ImageRef, Pins
from tests.workers.api.gateway import (
    CAMPAIGN,
    Gateway,
    Work,
    code_of,
    fill,
    gateway_in,
    local_router,
    serving,
    settings_in,
)
from tests.workers.campaign import StoredCampaign, make_campaign
from workers.router import LocalRouter


def test_sigterm_drains(tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=2) as gateway, gateway.http() as http:
        work = Work(http)
        instance = work.opened()
        with work.socket() as socket:
            assert json.loads(socket.recv(timeout=10))["type"] == "welcome"
            event = work.event("click", instance, x=80, y=60, is_positive=True)
            socket.send(json.dumps({"type": "event", "mask": "none", "event": event}))
            assert json.loads(socket.recv(timeout=10))["type"] == "ack"
            gateway.server.handle_exit(signal.SIGTERM, None)
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=10)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
        assert gateway.services.draining
    database = open_database(f"sqlite:///{tmp_path / 'clickloop.db'}")
    with database.connect() as conn:
        assert [found.kind for found in session_events(conn, work.session_id)] == ["open", "click"]
    database.close()


R = TypeVar("R", bound=LocalRouter)


def campaign_behind(kind: type[R], folder: Path) -> tuple[StoredCampaign, Database, R]:
    """A campaign of one image, its database, and the real router as one of a kind."""
    stored = make_campaign(folder, 1)
    database = open_database(f"sqlite:///{folder / 'clickloop.db'}")
    fill(database, stored)
    router = local_router(str(folder / "storage"))
    router.__class__ = kind
    assert isinstance(router, kind)
    return stored, database, router


class Warms(LocalRouter):
    """The real router; warming takes until it is dropped."""

    dropped: threading.Event

    async def warm(self, images: Sequence[ImageRef], pins: Pins) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            self.dropped.set()


def test_the_end_of_a_gateway_does_not_wait_for_images_that_are_warmed(tmp_path: Path) -> None:
    _, database, router = campaign_behind(Warms, tmp_path)
    router.dropped = threading.Event()
    dropped_first = []
    with closing(database), serving(settings_in(tmp_path), database, router) as gateway, gateway.http() as http:
        Work(http)
        finish = gateway.services.finish_background

        async def finish_and_look(timeout_s: float) -> None:
            await finish(timeout_s)
            dropped_first.append(router.dropped.is_set())

        gateway.services.finish_background = finish_and_look  # type: ignore[method-assign]
    assert dropped_first == [True]


class LoadsWhenTold(LocalRouter):
    """The real router; its workers are starting at first, then load when they are told to."""

    loaded: list[tuple[str, str | None]]
    go: threading.Event

    async def load(self, model_digest: str, adapter_digest: str | None) -> None:
        self.loaded.append((model_digest, adapter_digest))
        if len(self.loaded) == 1:
            raise BusyError("The workers are starting. Try again.")
        await asyncio.to_thread(self.go.wait, 20)
        await super().load(model_digest, adapter_digest)


def test_a_starting_gateway_is_ready_once_the_weights_are_loaded(tmp_path: Path) -> None:
    stored, database, router = campaign_behind(LoadsWhenTold, tmp_path)
    router.loaded, router.go = [], threading.Event()
    with (
        closing(database),
        serving(settings_in(tmp_path), database, router, wait_warm=False) as gateway,
        gateway.http() as http,
    ):
        starting = http.get("/readyz")
        assert starting.status_code == 503
        assert starting.json()["parts"]["model"] == "The campaigns' weights are being loaded."
        assert http.get("/healthz").status_code == 200
        router.go.set()
        end = time.monotonic() + 20
        while not http.get("/readyz").is_success and time.monotonic() < end:
            time.sleep(0.05)
        assert http.get("/readyz").status_code == 200
    assert router.loaded == 2 * [(stored.pins.model_digest, None)], "tried again when the workers were there"


def test_weights_that_do_not_load_keep_nobody_waiting_and_are_named(tmp_path: Path) -> None:
    stored = make_campaign(tmp_path, 1)
    database = open_database(f"sqlite:///{tmp_path / 'clickloop.db'}")
    fill(database, stored)
    weights = list((tmp_path / "storage" / "models").rglob("*.safetensors"))
    assert weights
    kept = {file: file.read_bytes() for file in weights}
    for file in weights:
        file.unlink()
    router = local_router(str(tmp_path / "storage"))
    with (
        closing(database),
        serving(settings_in(tmp_path), database, router) as gateway,
        gateway.http() as http,
    ):
        missing = http.get("/readyz")
        assert missing.status_code == 200, "other campaigns go on"
        wrong = {name: said for name, said in missing.json()["parts"].items() if said != "ok"}
        assert list(wrong) == ["weights"] and str(weights[0]) in wrong["weights"]
        for file, content in kept.items():
            file.write_bytes(content[:-1])
        assert "has changed" in http.get("/readyz").json()["parts"]["weights"]
        for file, content in kept.items():
            file.write_bytes(content)
        assert http.get("/readyz").status_code == 200


def test_draining_gateway_gives_out_no_tasks_and_is_not_ready(tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=1) as gateway, gateway.http() as http:
        gateway.services.draining = True
        refused = http.post(f"/api/campaigns/{CAMPAIGN}/claim", json={"claim_id": str(uuid4())})
        assert (refused.status_code, code_of(refused)) == (503, "busy")
        assert refused.headers["Retry-After"]
        ready = http.get("/readyz")
        assert ready.status_code == 503 and ready.json()["parts"]["draining"] != "ok"
        assert ready.json()["parts"]["database"] == "ok"
        assert http.get("/healthz").status_code == 200


def test_page_is_served_and_revalidated(gateway: Gateway, http: httpx.Client) -> None:
    page = http.get("/")
    assert page.status_code == 200 and page.headers["Cache-Control"] == "no-cache"
    assert http.get("/", headers={"If-None-Match": page.headers["ETag"]}).status_code == 304
    for path in ("/../workers/api/app.py", "/%2e%2e/app.py", "/js/../../app.py"):
        assert http.get(path).status_code in (400, 404)
