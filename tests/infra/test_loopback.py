"""The loop once through everything that compose.yaml runs, without containers: `infra/loopback.py`."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest

from flows.client import Client
from tests.conftest import need
from tests.databases import postgres_bin
from tests.flows.scenes import write_pictures
from tests.infra.files import INFRA
from tests.rays import descendants, wait_gone
from workers.annotator import run_annotators

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.postgres, pytest.mark.s3, pytest.mark.timeout(900)]


def five_free_ports() -> int:
    """The first of five ports in a row below those that Ray hands out."""
    for first in range(6100, 9900, 10):
        with socket.socket() as probe:
            if all(probe.connect_ex(("127.0.0.1", first + n)) for n in range(5)):
                return first
    raise AssertionError("no free ports")


@contextmanager
def loopback(log: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """URLs of the gateways and the environment of commands, while everything runs; nothing is left of it."""
    command = [sys.executable, str(INFRA / "loopback.py"), "--port", str(five_free_ports())]
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, log.read_text()[-5000:]
        facts = json.loads(line)
        text = Path(facts["environment"]).read_text()
        exports = dict(word.split("=", 1) for word in shlex.split(text) if "=" in word)
        yield facts["gateways"], {**os.environ, **exports}
    finally:
        family = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()
        wait_gone(family, 30.0)


def clickloop(environment: dict[str, str], *words: str) -> Any:
    """What a command prints as JSON."""
    command = [sys.executable, "-m", "flows.cli", *words, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def metric(url: str, name: str) -> float:
    """A sum of a gateway's metric."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/metrics") as answer:
        found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", answer.read().decode(), re.MULTILINE)
    return sum(map(float, found))


def test_the_loop_through_two_gateways_a_cluster_and_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("postgres", postgres_bin() is not None, "no PostgreSQL server binaries are installed")
    images, truth = write_pictures(tmp_path, 8), tmp_path / "truth.json"
    with loopback(tmp_path / "log") as (gateways, environment):
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.setenv(name, environment[name])
        bucket = fsspec.filesystem("s3", skip_instance_cache=True)
        bucket.put(f"{images}/", "clickloop/discs/", recursive=True)
        words = ("--images", "s3://clickloop/discs", "--labels", "disc", "--model", "toy-color")
        made = clickloop(environment, "campaign", "create", "discs", *words)
        assert made["ingest"]["registered"] == 8

        with Client(gateways[0]) as first, Client(gateways[1]) as second:
            campaign = first.call("GET", "/api/campaigns/discs")["id"]

            def job(client: Client, kind: str, **payload: Any) -> dict[str, Any]:
                record = client.follow(client.start(campaign, kind, payload)["id"], lambda _: None)
                assert record["state"] == "done", record
                return dict(record["result"])

            assert job(second, "precompute")["encoded"] == 8
            for url in gateways:
                report = run_annotators(url, campaign, truth, annotators=1, target=0.9, limit=4).to_json()
                assert report["errors"] == [] and metric(url, "clickloop_events_total") > 0
            exported = job(first, "export", to="s3://clickloop/out", formats=["coco"])
            assert exported["counts"]["annotations"] == 8
        assert bucket.find("clickloop/out")

        assert clickloop(environment, "backup", "s3://clickloop/backup")["tables"]["masks"] == 8
        embedded = {
            n: v for n, v in environment.items() if n not in ("CLICKLOOP_DATABASE_URL", "CLICKLOOP_RAY_ADDRESS")
        }
        embedded["CLICKLOOP_WORKSPACE"] = str(tmp_path / "embedded")
        clickloop(embedded, "restore", "s3://clickloop/backup")
        status = clickloop(embedded, "campaign", "status", "discs")
        assert (status["masks"], status["embeddings"], status["tasks"]["done"]) == (8, 8, 8)
