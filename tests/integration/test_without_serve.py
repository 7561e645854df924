"""Commands without a running `serve`: each takes the workspace, starts what it needs and leaves nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.storage.database import open_database
from schemas.settings import Settings
from tests.flows.scenes import make_campaign, write_pictures


def run(workspace: Path, *words: str) -> Any:
    """A command in a process of its own; what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-m", "flows.cli", *words, "--json", "--workspace", str(workspace)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_command_starts_what_it_needs_and_ends_it(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    settings = Settings(workspace=workspace)
    database = open_database(settings.resolved_database_url)
    make_campaign(settings, database, write_pictures(tmp_path, 3))
    database.close()
    assert run(workspace, "precompute", "discs")["encoded"] == 3
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert [line for line in lines if str(workspace) in line] == []
    assert not (workspace / "ray.json").exists() and not (workspace / "serve.json").exists()
    assert run(workspace, "campaign", "status", "discs")["requests"][0]["state"] == "done"
