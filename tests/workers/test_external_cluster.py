"""A Ray cluster that others started: a head that offers nothing, a node that works, owners that come and go."""

import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.rays import child, cluster_to_be, external_cluster

GATEWAY_SIDE = """
import asyncio, sys
from schemas.settings import Settings
from workers.router import Router
import ray

async def ready(router):
    while True:
        facts = await router.ready()
        if facts["refiners"] and facts["encoders"]:
            return router._pool
        await asyncio.sleep(0.3)

async def main():
    router = Router(Settings())
    first = await ready(router)
    old = {name: handle._actor_id for name, handle in (first.refiners | first.encoders).items()}
    nodes = {n["NodeID"]: n["Resources"].get("CPU", 0) for n in ray.nodes()}
    table = ray._private.state.actors()
    print("first", sorted(nodes[table[i.hex()]["Address"]["NodeID"]] for i in old.values()), flush=True)
    sys.stdin.readline()
    while True:
        pool = await ready(router)
        if all(handle._actor_id != old[name] for name, handle in (pool.refiners | pool.encoders).items()):
            break
        await asyncio.sleep(0.3)
    print("second", flush=True)
    await router.close()

asyncio.run(main())
"""


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_actors_land_where_resources_are_and_gateways_find_those_of_the_next_owner() -> None:
    with tempfile.TemporaryDirectory(prefix="cl-", dir="/tmp") as folder, ExitStack() as stack:
        cluster = stack.enter_context(external_cluster(Path(folder)))
        environment = cluster.environment | {"CLICKLOOP_STORAGE_URL": f"{folder}/storage"}

        def workspace(name: str) -> dict[str, str]:
            return environment | {"CLICKLOOP_WORKSPACE": f"{folder}/{name}"}

        stack.enter_context(cluster.node(cpus=4))
        with child([sys.executable, "-m", "workers.cluster"], workspace("owner")):
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            gateway = stack.enter_context(child([sys.executable, "-c", GATEWAY_SIDE], workspace("gateway"), **pipes))
            assert gateway.stdout is not None and gateway.stdin is not None
            assert gateway.stdout.readline() == "first [4.0, 4.0]\n"
        stack.enter_context(child([sys.executable, "-m", "workers.cluster"], workspace("next")))
        gateway.stdin.write("\n")
        gateway.stdin.flush()
        assert gateway.stdout.readline() == "second\n"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_gateway_finds_the_actors_of_the_cluster_that_comes_after_a_lost_head() -> None:
    with tempfile.TemporaryDirectory(prefix="cl-", dir="/tmp") as folder, ExitStack() as stack:
        cluster = cluster_to_be(Path(folder))
        environment = cluster.environment | {"CLICKLOOP_STORAGE_URL": f"{folder}/storage"}

        def workspace(name: str) -> dict[str, str]:
            return environment | {"CLICKLOOP_WORKSPACE": f"{folder}/{name}"}

        owner = [sys.executable, "-m", "workers.cluster"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with cluster.head(), cluster.node(cpus=4), child(owner, workspace("owner")):
            gateway = stack.enter_context(child([sys.executable, "-c", GATEWAY_SIDE], workspace("gateway"), **pipes))
            assert gateway.stdout is not None and gateway.stdin is not None
            assert gateway.stdout.readline() == "first [4.0, 4.0]\n"
        for part in (cluster.head(), cluster.node(cpus=4), child(owner, workspace("next"))):
            stack.enter_context(part)
        gateway.stdin.write("\n")
        gateway.stdin.flush()
        assert gateway.stdout.readline() == "second\n"
