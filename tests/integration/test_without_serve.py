"""Commands without a running `serve`: each takes the workspace, starts what it needs and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.storage.database import open_database
from schemas.settings import Settings
from tests.flows.scenes import make_campaign, write_pictures

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


def start(workspace: Path, *words: str) -> "subprocess.Popen[str]":
    """A command in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-m", "flows.cli", *words, "--json", "--workspace", str(workspace)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(workspace: Path, *words: str) -> Any:
    """What a command printed."""
    process = start(workspace, *words)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out)


def campaign_of(workspace: Path, images: Path) -> None:
    settings = Settings(workspace=workspace)
    database = open_database(settings.resolved_database_url)
    make_campaign(settings, database, images)
    database.close()


def assert_nothing_is_left(workspace: Path) -> None:
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert [line for line in lines if str(workspace) in line] == []
    assert not (workspace / "ray.json").exists() and not (workspace / "serve.json").exists()


@pytest.mark.parametrize(
    ("number", "code", "word", "state"),
    [
        (signal.SIGTERM, 143, "terminated", "queued"),
        pytest.param(signal.SIGINT, 130, "interrupted", "cancelled", marks=pytest.mark.slow),
    ],
)
def test_told_to_end_it_stops_its_job_in_order_and_goes_on_when_asked_again(
    number: signal.Signals, code: int, word: str, state: str, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    campaign_of(workspace, write_pictures(tmp_path, 600))
    process = start(workspace, "precompute", "discs")
    assert process.stderr is not None
    while json.loads(process.stderr.readline()).get("done") in (0, None):  # Ray and Prefect have not started yet
        pass
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code, err
    assert [line for line in err.splitlines() if not line.startswith("{")] == [f"clickloop: {word}"]
    assert_nothing_is_left(workspace)
    assert run(workspace, "campaign", "status", "discs")["requests"][0]["state"] == state
    again = run(workspace, "precompute", "discs")
    assert 0 < again["already"] < 600 and again["already"] + again["encoded"] == 600
    assert_nothing_is_left(workspace)
    assert run(workspace, "campaign", "status", "discs")["requests"][0]["state"] == "done"
