"""The runner claims requests and runs them as real Prefect flows; each test checks what is left in the catalogue."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

import cv2
import pytest

from flows.kinds import all_flows
from flows.runner import Runner
from flows.services import Services
from pipeline.storage import campaigns, images, masks, requests
from pipeline.storage.database import Database
from schemas.campaigns import CampaignRecord, RequestRecord
from schemas.errors import BadInputError
from schemas.requests import checked
from schemas.settings import Settings
from schemas.tables import RequestKind
from tests.flows.scenes import write_pictures


@pytest.fixture
def runner(settings: Settings, database: Database) -> Iterator[Runner]:
    services = Services(settings, database)
    yield Runner(services)
    services.close()


def insert(runner: Runner, kind: str, campaign_id: str | None, payload: dict[str, Any]) -> str:
    with runner.services.database.begin() as conn:
        return requests.insert_request(conn, str(uuid4()), kind, campaign_id, payload).id


def record_of(runner: Runner, request_id: str) -> RequestRecord:
    with runner.services.database.connect() as conn:
        return requests.get_request(conn, request_id)


@pytest.mark.usefixtures("prefect")
def test_a_campaign_is_created_with_its_images_and_masks(runner: Runner, tmp_path: Path) -> None:
    source = write_pictures(tmp_path, 3)
    (source / "broken.png").write_bytes(b"\x89PNG, but no more")
    create = {
        "id": str(uuid4()),
        "name": "new",
        "images": str(source),
        "labels": ["cat"],
        "annotations": str(tmp_path / "truth.json"),
        "model": "toy-color",
        "settings": {},
    }
    request_id = insert(runner, "campaign", None, {"create": create})
    assert runner.run_one()
    assert not runner.run_one()
    record = record_of(runner, request_id)
    assert record.state == "done", record.error
    assert record.result is not None
    assert record.result["campaign_id"] == create["id"]
    assert (record.result["import"]["stored"], record.result["import"]["dropped"]) == (3, {})
    assert {"registered": 3, "quarantined": 1}.items() <= record.result["ingest"].items()
    with runner.services.database.connect() as conn:
        campaign = campaigns.get_campaign(conn, "new")
        assert [(c.number, c.name) for c in campaign.categories] == [(1, "cat"), (2, "disc")]
        assert len(images.images_of(conn, campaign.id)) == 3
        assert [m.category_number for m in masks.current_masks(conn, campaign.id)] == [2, 2, 2]


@pytest.mark.usefixtures("prefect")
def test_masks_are_proposed_to_near_duplicates(runner: Runner, tmp_path: Path) -> None:
    source = write_pictures(tmp_path, 2)
    picture = cv2.imread(str(source / "1.png"))
    assert cv2.imwrite(str(source / "z.jpg"), picture) and cv2.imwrite(str(source / "z.webp"), picture)
    create = {"id": str(uuid4()), "name": "like", "images": str(source), "annotations": str(tmp_path / "truth.json")}
    insert(runner, "campaign", None, {"create": {**create, "model": "toy-color"}})
    assert runner.run_one()
    proposed = insert(runner, "propose", create["id"], {})
    assert runner.run_one()
    assert record_of(runner, proposed).result == {"images": 2, "stored": 2, "other_size": 0}
    with runner.services.database.connect() as conn:
        assert masks.count_proposals(conn, create["id"]) == 2


@pytest.mark.usefixtures("prefect")
def test_what_cannot_be_done_fails_with_its_reason_and_the_runner_goes_on(
    runner: Runner, campaign: CampaignRecord, tmp_path: Path
) -> None:
    bad = insert(runner, "ingest", campaign.id, {"images": str(tmp_path / "nowhere")})
    good = insert(runner, "ingest", campaign.id, {"images": None})
    assert runner.run_one() and runner.run_one()
    failed = record_of(runner, bad)
    assert (failed.state, (failed.result or {})["code"]) == ("failed", "bad_input")
    assert "nowhere" in str(failed.error)
    assert (record_of(runner, good).result or {})["unchanged"] == 4


@pytest.mark.usefixtures("prefect")
def test_an_ending_runner_puts_its_request_back(runner: Runner, campaign: CampaignRecord, tmp_path: Path) -> None:
    more = write_pictures(tmp_path / "more", 3, seed=1)
    request_id = insert(runner, "ingest", campaign.id, {"images": str(more)})
    runner.stopping.set()
    assert runner.run_one()
    record = record_of(runner, request_id)
    assert (record.state, record.attempt) == ("queued", 0)
    runner.stopping.clear()
    assert runner.run_one()
    assert (record_of(runner, request_id).result or {})["registered"] == 3


@pytest.mark.usefixtures("prefect")
def test_the_next_runner_takes_up_what_a_killed_one_left(
    runner: Runner, campaign: CampaignRecord, tmp_path: Path
) -> None:
    more = write_pictures(tmp_path / "more", 2, seed=1)
    request_id = insert(runner, "ingest", campaign.id, {"images": str(more)})
    with runner.services.database.begin() as conn:
        assert requests.claim_request(conn, "killed", request_id=request_id) is not None
    next_one = Runner(runner.services, dead="killed")
    working = threading.Thread(target=next_one.run)
    working.start()
    end = time.monotonic() + 45
    while record_of(runner, request_id).state != "done" and time.monotonic() < end:
        time.sleep(0.1)
    next_one.stopping.set()
    working.join(10)
    record = record_of(runner, request_id)
    assert (record.state, record.attempt) == ("done", 2)


@pytest.mark.parametrize(
    ("url", "status", "words"),
    [
        ("postgresql://ann@127.0.0.1:1/clickloop", 1, "cannot start yet: The database is not available"),
        ("sqlite:///{empty}", 2, "cannot start: The database is at revision none (empty)"),
        ("mysql://ann@127.0.0.1/clickloop", 2, "cannot start: Databases are SQLite and PostgreSQL"),
    ],
)
def test_a_runner_that_cannot_start_says_why_and_whether_another_start_may(
    tmp_path: Path, url: str, status: int, words: str
) -> None:
    environment = {
        **os.environ,
        "CLICKLOOP_WORKSPACE": str(tmp_path),
        "CLICKLOOP_DATABASE_URL": url.format(empty=tmp_path / "empty.db"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "flows.runner"], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == status
    assert words in done.stderr and "Traceback" not in done.stderr


def test_a_runner_waits_for_requests_and_ends_when_told(runner: Runner) -> None:
    working = threading.Thread(target=runner.run)
    working.start()
    time.sleep(0.2)
    runner.stopping.set()
    working.join(5)
    assert not working.is_alive()


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("dance", {}),
        ("ingest", {"images": 3}),
        ("precompute", {"fast": True}),
        ("prelabel", {"grid": 0}),
        ("prelabel", {"grid": 33}),
        ("prelabel", {"min_score": 1.5}),
        ("prelabel", {"limit": 0}),
        ("order", {}),
        ("order", {"by": "luck"}),
        ("order", {"by": "gain", "seed": -1}),
        ("propose", {"to": "all"}),
        ("retrain", {"promote": "maybe"}),
        ("retrain", {"minutes": -1}),
        ("export", {"formats": ["voc"]}),
        ("export", {"formats": []}),
        ("export", {"since": "2026-11-28T00:00:00"}),
        ("export", {"states": ["lost"]}),
        ("export", {"val": 1.0}),
        ("campaign", {"steps": ["dance"]}),
        ("campaign", {"create": {"id": "x", "name": "n", "images": "i", "settings": {"holdout_fraction": 2}}}),
    ],
)
def test_what_a_kind_does_not_know_is_refused(kind: str, payload: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match=kind):
        checked(kind, payload)


@pytest.mark.parametrize("module", ["flows.runner", "workers.api"])
def test_a_child_of_serve_does_not_wait_for_libraries_at_its_end(
    module: str, settings: Settings, database: Database
) -> None:
    run = f"runpy.run_module({module!r}, run_name='__main__')"
    slow = f"import atexit, runpy, time; atexit.register(time.sleep, 60); {run}"
    given = {"CLICKLOOP_WORKSPACE": str(settings.workspace), "CLICKLOOP_PORT": "0", "CLICKLOOP_LOG_LEVEL": "INFO"}
    child = subprocess.Popen(
        [sys.executable, "-c", slow], env={**os.environ, **given}, stderr=subprocess.PIPE, text=True
    )
    try:
        if module == "workers.api":
            assert child.stderr is not None
            while "Uvicorn running" not in child.stderr.readline():
                assert child.poll() is None
        else:
            lock = settings.workspace / "runner.lock"
            while not (lock.exists() and lock.read_text()):
                assert child.poll() is None
                time.sleep(0.1)
            time.sleep(1.0)  # it takes signals right after that
        child.terminate()
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.communicate()


def test_each_kind_has_its_flow_and_those_without_a_model_bring_no_torch() -> None:
    assert [flow.name for flow in all_flows()] == list(get_args(RequestKind))
    light = ("ingest", "import", "propose", "export")
    code = f"import sys; from flows.kinds import flow_of; list(map(flow_of, {light})); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
