"""Commands while the bucket that they read from and write to goes away, comes back, and refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.export.verify import verify_snapshot
from tests.flows.scenes import write_pictures
from tests.s3 import object_names, s3_bucket, s3_server  # noqa: F401
from tests.s3_faults import FaultyS3, faulty_s3  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(900)]
COUNT = 12


def run(workspace: Path, storage: str, *words: str, wait_s: int = 120) -> tuple[int, Any, str]:
    """A command in a process of its own: exit code, what it printed as JSON, and stderr."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"CLICKLOOP_STORAGE_URL": storage, "CLICKLOOP_STORAGE_WAIT_S": str(wait_s)}
    command = [sys.executable, "-m", "flows.cli", *words, "--json", "--workspace", str(workspace)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout) if done.returncode == 0 else None, done.stderr


def waited(stderr: str) -> bool:
    return '"waiting_for": "the storage: ' in stderr


def test_every_command_waits_or_ends_and_goes_on(
    faulty_s3: FaultyS3,  # noqa: F811
    s3_bucket: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    write_pictures(tmp_path, COUNT)
    fs = fsspec.filesystem("s3")
    fs.put(str(tmp_path / "images"), f"{s3_bucket}/images/", recursive=True)
    workspace, storage = tmp_path / "workspace", f"{s3_bucket}/storage"
    create = ("campaign", "create", "discs", "--images", f"{s3_bucket}/images", "--labels", "disc")

    # ingest: the credentials expire in the middle, then the bucket goes away and comes back
    faulty_s3.go_away("ExpiredToken", method="GET", path="/images/", after=8)
    code, _, stderr = run(workspace, storage, *create, "--model", "toy-color")
    assert code == 1 and "expired" in stderr and "Traceback" not in stderr
    faulty_s3.go_away("cut", method="GET", after=4, count=40)
    code, report, stderr = run(workspace, storage, "campaign", "ingest", "discs")
    assert code == 0 and waited(stderr), stderr
    assert report["registered"] + report["unchanged"] == COUNT and report["quarantined"] == 0
    code, status, _ = run(workspace, storage, "campaign", "status", "discs")
    assert (status["images"], status["quarantined"]) == (COUNT, [])

    # precompute: time runs out, then the bucket comes back
    faulty_s3.go_away("ServiceUnavailable", method="PUT", after=3)
    code, _, stderr = run(workspace, storage, "precompute", "discs", wait_s=5)
    assert code == 1 and waited(stderr) and "does not answer" in stderr and "Traceback" not in stderr
    faulty_s3.go_away("SlowDown", method="PUT", after=2, count=30)
    code, report, stderr = run(workspace, storage, "precompute", "discs")
    assert code == 0 and waited(stderr), stderr
    assert report["encoded"] + report["already"] == COUNT and report["quarantined"] == 0
    assert len([name for name in object_names(f"{storage}/embeddings") if name.endswith(".safetensors")]) == COUNT

    # export: credentials expire, then the bucket goes away and comes back
    code, _, stderr = run(workspace, storage, "import", "discs", str(tmp_path / "truth.json"), "--trusted")
    assert code == 0, stderr
    export = ("export", "discs", "--format", "png", "--format", "coco", "--to", f"{s3_bucket}/out")
    faulty_s3.go_away("ExpiredToken", method="PUT", after=6)
    code, _, stderr = run(workspace, storage, *export)
    assert code == 1 and "expired" in stderr and "Traceback" not in stderr
    assert "manifest.json" not in object_names(f"{s3_bucket}/out")
    faulty_s3.go_away("cut", method="PUT", after=3, count=40)
    code, report, stderr = run(workspace, storage, *export)
    assert code == 0 and waited(stderr), stderr
    check = verify_snapshot(f"{s3_bucket}/out")
    assert check.ok and check.masks == COUNT and check.unlisted == []
