"""One campaign from its images to an exported snapshot, through the commands, with a real `serve`."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update

from flows.cli import main
from flows.client import find_server
from pipeline.storage.database import open_database
from schemas.settings import Settings
from schemas.tables import EventResult
from tests.flows.scenes import write_pictures
from tests.rays import descendants, wait_gone

START_S = 300.0


class Tool:
    """The commands, on one workspace."""

    def __init__(self, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.workspace = workspace
        self._capsys = capsys

    def __call__(self, *words: str, code: int = 0) -> Any:
        """Run a command with --json; what it printed."""
        found = main([*words, "--json", "--workspace", str(self.workspace)])
        out, err = self._capsys.readouterr()
        assert found == code, f"{words}: exit {found}: {err}"
        return json.loads(out) if out else err

    @contextmanager
    def serving(self) -> Iterator[None]:
        """`clickloop serve`, ready; ended by SIGTERM."""
        command = [sys.executable, "-m", "flows.cli", "serve", "--port", "0", "--workspace", str(self.workspace)]
        with (self.workspace.parent / "serve.log").open("ab") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            end = time.monotonic() + START_S
            while True:
                with find_server(Settings(workspace=self.workspace)) or nullcontext() as client:
                    ready = client is not None and client.is_ready()
                if ready:
                    yield
                    break
                assert server.poll() is None, "serve ended"
                assert time.monotonic() < end, "serve is not ready"
                time.sleep(0.3)
        finally:
            family = descendants(server.pid)
            server.send_signal(signal.SIGTERM)
            server.wait(30)
            wait_gone(family)


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_campaign_goes_round_the_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_pictures(tmp_path, 12)
    (images / "broken.png").write_bytes(b"no picture")
    truth = str(tmp_path / "truth.json")
    tool = Tool(tmp_path / "workspace", capsys)
    with tool.serving():
        made = tool(
            "campaign", "create", "discs", "--images", str(images), "--labels", "disc", "--model", "toy-color",
            "--holdout", "0.4",
        )  # fmt: skip
        assert (made["ingest"]["registered"], made["ingest"]["quarantined"]) == (12, 1)
        assert "already" in tool("campaign", "create", "discs", "--images", str(images), code=1)
        assert "nowhere" in tool("campaign", "create", "other", "--images", str(tmp_path / "nowhere"), code=2)

        assert tool("precompute", "discs")["encoded"] == 12
        assert {"encoded": 0, "already": 12}.items() <= tool("precompute", "discs").items()

        simulated = tool("simulate", "discs", "--truth", truth, "--annotators", "2", "--target", "0.95")
        assert (simulated["images"], simulated["masks"], simulated["errors"]) == (12, 12, [])
        assert simulated["mean_iou"] > 0.9
        assert simulated["latency_ms"]["count"] == simulated["clicks"] >= 12

        retrained = tool("retrain", "discs", "--steps", "60")
        assert retrained["outcome"] == "rejected"  # fewer than 30 held-out masks
        assert "not enough data" in retrained["reasons"][0]
        adapter = tool("adapter", "list", "discs")[0]
        assert (adapter["digest"], adapter["state"], adapter["live"]) == (retrained["digest"], "rejected", False)
        assert "has not passed the gate" in tool("adapter", "promote", "discs", "1", code=1)

        exported = tool("export", "discs", "--to", str(tmp_path / "out"), "--format", "coco", "--format", "parquet")
        assert exported["counts"]["annotations"] == 12
        assert "already" in tool("export", "discs", "--to", str(tmp_path / "out"), code=2)
        status = tool("campaign", "status", "discs")
        assert (status["masks"], status["embeddings"], status["tasks"]["done"]) == (12, 12, 12)

    # Without serve, beside nobody: looking, checking, replaying.
    assert tool("snapshot", "verify", str(tmp_path / "out"))["ok"]
    replayed = tool("replay", "discs")
    assert (replayed["masks"], replayed["identical"]) == (12, 12)
    assert replayed["events"] == replayed["events_identical"] > 12

    _tamper(tool.workspace)
    damaged = tool("replay", "discs", code=1)
    assert damaged["identical"] == 11 and damaged["events_identical"] == damaged["events"] - 1
    assert {m["what"] for m in damaged["mismatches"]} == {"mask", "event"}
    mask = next(m for m in damaged["mismatches"] if m["what"] == "mask")
    assert mask["iou"] == 0.0 and mask["differs"] == ["engine.version"]
    parquet = next((tmp_path / "out").rglob("annotations*.parquet"))
    parquet.write_bytes(parquet.read_bytes()[:-1])
    assert not tool("snapshot", "verify", str(tmp_path / "out"), code=1)["ok"]


def _tamper(workspace: Path) -> None:
    """Change one stored mask and one logged digest, as no product code can."""
    database = open_database(Settings(workspace=workspace).resolved_database_url)
    with database.begin() as conn:
        event_id = conn.execute(text("SELECT event_id FROM event_results LIMIT 1")).scalar_one()
        conn.execute(update(EventResult).where(EventResult.event_id == event_id).values(mask_sha256="0" * 64))
        for (name,) in conn.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
            conn.execute(text(f"DROP TRIGGER {name}"))
        engine = json.dumps({"runtime": "torch-cpu", "version": "0.0", "dtype": "float32"})
        conn.execute(
            text("UPDATE masks SET rle_counts = :counts, mask_sha256 = :sha, engine = :engine WHERE number = 1"),
            {"counts": "PP<", "sha": "0" * 64, "engine": engine},
        )
    database.close()
