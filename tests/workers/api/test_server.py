"""SIGTERM: claims are refused, sockets closed with 1012, what was acknowledged is in the log. And the page's files."""

import json
import signal
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from pipeline.storage.database import open_database
from pipeline.storage.sessions import session_events
from tests.workers.api.gateway import CAMPAIGN, Gateway, Work, code_of, gateway_in


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
