"""Precompute on a Ray cluster of several nodes, one of which is killed on the way."""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from pipeline.storage import images
from pipeline.storage.database import open_database
from schemas.settings import Settings
from tests.flows.scenes import make_campaign, write_pictures
from tests.rays import child, descendants, external_cluster

IMAGES = 1500


def runs_an_encoder(node: int) -> bool:
    """Whether an encoder actor lives below the process of a node."""
    for process in descendants(node):
        with suppress(psutil.Error):
            if "EncoderShell" in " ".join(process.cmdline()):
                return True
    return False


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_node_that_is_killed_costs_no_image() -> None:
    with tempfile.TemporaryDirectory(prefix="cl-", dir="/tmp") as name, ExitStack() as stack:
        folder = Path(name)
        cluster = stack.enter_context(external_cluster(folder))
        given = {"CLICKLOOP_WORKSPACE": f"{folder}/workspace", "CLICKLOOP_ENCODERS": "2"}
        environment = cluster.environment | given
        settings = Settings(workspace=folder / "workspace")
        database = open_database(settings.resolved_database_url)
        stack.callback(database.close)
        campaign = make_campaign(settings, database, write_pictures(folder, IMAGES))

        nodes = [stack.enter_context(cluster.node(cpus=3)) for _ in range(2)]
        stack.enter_context(child([sys.executable, "-m", "workers.cluster"], environment))
        job = [sys.executable, "-m", "flows.cli", "precompute", "discs", "--json"]
        precompute = stack.enter_context(child(job, environment, stdout=subprocess.PIPE))

        def missing() -> int:
            with database.connect() as conn:
                return images.count_missing_embeddings(conn, campaign.id, campaign.model_key)

        while missing() > IMAGES - 100:
            assert precompute.poll() is None
            time.sleep(0.05)
        assert all(node.poll() is None for node in nodes), "a node did not start: the machine is too busy for this test"
        victim = next(node for node in nodes if runs_an_encoder(node.pid))
        for process in descendants(victim.pid):
            process.kill()
        assert missing() > 0, "it was done before the node was killed"
        assert precompute.stdout is not None
        result = json.loads(precompute.stdout.read())
        assert precompute.wait() == 0
        assert result["quarantined"] == 0, "an image was blamed for the node"
        assert result["encoded"] + result["already"] == IMAGES
        assert missing() == 0
