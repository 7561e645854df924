"""The flows as deployments of a real local Prefect server, run by the process that serves them."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows import deployments
from pipeline.storage import requests
from pipeline.storage.database import Database
from schemas.campaigns import CampaignRecord
from schemas.settings import Settings
from tests.rays import descendants, wait_gone
from tests.s3 import free_port

WAIT_S = 240.0


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """A process and all below it, for the length of the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield
    finally:
        family = descendants(process.pid)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        wait_gone(family)


def wait_for(what: str, found: Any) -> Any:
    """What `found` gives as soon as it gives something."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        try:
            value = found()
        except httpx.HTTPError:
            value = None
        if value:
            return value
        time.sleep(0.5)
    raise AssertionError(f"{what} did not come")


POOL = "prefect work-pool create clickloop --type process --overwrite && python -m flows.deployments --pool clickloop"
WORKER = "exec prefect worker start --pool clickloop --type process --limit 1"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["served", pytest.param("pool", marks=pytest.mark.slow)])
def test_a_deployment_runs_as_a_request_of_the_catalogue(
    campaign: CampaignRecord, settings: Settings, database: Database, tmp_path: Path, how: str
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "CLICKLOOP_WORKSPACE": str(settings.workspace),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    serve = {"served": [sys.executable, "-m", "flows.deployments"], "pool": ["sh", "-c", f"{POOL} && {WORKER}"]}
    server = [sys.executable, "-m", "prefect", "server", "start", "--no-ui"]
    with running(server, environment, tmp_path / "server.log"), httpx.Client(base_url=url, trust_env=False) as api:
        wait_for("the server", lambda: api.get("/health").is_success)
        with running(serve[how], environment, tmp_path / "deployments.log"):
            for name in ("ingest", "precompute", "retrain", "export", "campaign", "triggers"):
                wait_for(f"the deployment {name}", lambda name=name: _found(api, f"/deployments/name/{name}/default"))
            deployment = _found(api, "/deployments/name/ingest/default")
            run = {"parameters": {"campaign": "discs"}, "idempotency_key": "once"}
            path = f"/deployments/{deployment['id']}/create_flow_run"
            run_id = wait_for("the flow run", lambda: _created(api, path, run))["id"]
            state = wait_for("the end of the flow run", lambda: _ended(api, run_id))
            wait_for("a run by the clock", lambda: _scheduled(api, "triggers"))
    assert state["type"] == "COMPLETED", state
    with database.connect() as conn:
        request = requests.get_request(conn, run_id)
    assert (request.kind, request.campaign_id, request.state) == ("ingest", campaign.id, "done")
    assert (request.result or {})["unchanged"] == 4


def _found(api: httpx.Client, path: str) -> Any:
    answer = api.get(path)
    return answer.json() if answer.is_success else None


def _created(api: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    """None while Prefect's database is locked, which it answers with 503; its own clients ask again, too."""
    answer = api.post(path, json=body)
    assert answer.is_success or answer.status_code == 503, answer.text
    return answer.json() if answer.is_success else None


def _scheduled(api: httpx.Client, name: str) -> Any:
    """The runs of a deployment that the server's scheduler made."""
    answer = api.post("/flow_runs/filter", json={"flows": {"name": {"any_": [name]}}, "limit": 5})
    return [run for run in answer.json() if run["auto_scheduled"]] if answer.is_success else None


def _ended(api: httpx.Client, run_id: str) -> Any:
    state = api.get(f"/flow_runs/{run_id}").json()["state"]
    return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def test_without_a_server_it_says_what_to_set(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-m", "flows.deployments"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "PREFECT_API_URL" in done.stderr


def test_a_server_that_is_still_starting_is_waited_for_and_a_missing_one_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    monkeypatch.setenv("PREFECT_API_URL", url)
    monkeypatch.setenv("CLICKLOOP_WORKSPACE", str(tmp_path))
    monkeypatch.setattr(deployments, "START_S", 1.0)
    assert deployments.main(["--pool", "none"]) == 1
    assert f"no Prefect server answers at {url}" in capsys.readouterr().err
    server = HTTPServer(("127.0.0.1", int(url.split(":")[2].split("/")[0])), SimpleHTTPRequestHandler)
    begin = threading.Timer(1.5, server.handle_request)
    begin.start()
    monkeypatch.setattr(deployments, "START_S", 30.0)
    assert deployments._answers(url)
    begin.join()
    server.server_close()
