"""Commands while the bucket that they read from and write to goes away, comes back, and refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.flows.scenes import write_pictures
from tests.s3 import s3_bucket, s3_server  # noqa: F401
from tests.s3_faults import FaultyS3, faulty_s3  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.s3, pytest.mark.timeout(900)]
COUNT = 12


def run(workspace: Path, storage: str, *words: str) -> tuple[int, Any, str]:
    """A command in a process of its own: exit code, what it printed as JSON, and stderr."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"CLICKLOOP_STORAGE_URL": storage, "CLICKLOOP_STORAGE_WAIT_S": "120"}
    command = [sys.executable, "-m", "flows.cli", *words, "--json", "--workspace", str(workspace)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout) if done.returncode == 0 else None, done.stderr


def waited(stderr: str) -> bool:
    return '"waiting_for": "the storage: ' in stderr


def test_an_ingest_ends_where_it_is_refused_and_waits_where_nobody_answers(
    faulty_s3: FaultyS3,  # noqa: F811
    s3_bucket: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    write_pictures(tmp_path, COUNT)
    fs = fsspec.filesystem("s3")
    fs.put(str(tmp_path / "images"), f"{s3_bucket}/images/", recursive=True)
    workspace, storage = tmp_path / "workspace", f"{s3_bucket}/storage"
    create = ("campaign", "create", "discs", "--images", f"{s3_bucket}/images", "--labels", "disc")

    faulty_s3.go_away("ExpiredToken", method="GET", path="/images/", after=8)
    code, _, stderr = run(workspace, storage, *create, "--model", "toy-color")
    assert code == 1 and "expired" in stderr and "Traceback" not in stderr
    faulty_s3.go_away("cut", method="GET", after=4, count=40)
    code, report, stderr = run(workspace, storage, "campaign", "ingest", "discs")
    assert code == 0 and waited(stderr), stderr
    assert report["registered"] + report["unchanged"] == COUNT and report["quarantined"] == 0
    code, status, _ = run(workspace, storage, "campaign", "status", "discs")
    assert (status["images"], status["quarantined"]) == (COUNT, [])
