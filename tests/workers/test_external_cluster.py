"""A Ray cluster that others started: a head that offers nothing, a node that works, owners that come and go."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.rays import descendants, wait_gone

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


@contextmanager
def child(command: list[str], environment: dict[str, str], **pipes: int) -> Iterator["subprocess.Popen[str]"]:
    """A process and all below it, for the length of the block."""
    process = subprocess.Popen(command, env=environment, text=True, **pipes)
    try:
        yield process
    finally:
        for pipe in filter(None, (process.stdin, process.stdout)):
            pipe.close()
        family = descendants(process.pid)
        for one in reversed(family):
            one.kill()
        process.wait()
        wait_gone(family)


def answers(port: int) -> bool:
    """Whether something listens on the loopback's port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_actors_land_where_resources_are_and_gateways_find_those_of_the_next_owner() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = 7000 + probe.getsockname()[1] % 1000  # below the ports that Ray gives to its workers
    ray_cli = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-gpus=0", "--disable-usage-stats"]
    ray_cli += ["--object-store-memory=80000000", "--node-ip-address=127.0.0.1"]
    with tempfile.TemporaryDirectory(prefix="cl-", dir="/tmp") as folder, ExitStack() as stack:
        environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "CLICKLOOP_RAY_ADDRESS": f"127.0.0.1:{port}",
            "CLICKLOOP_STORAGE_URL": f"{folder}/storage",
        }
        environment.pop("RAY_AUTH_TOKEN_PATH", None)

        def workspace(name: str) -> dict[str, str]:
            return environment | {"CLICKLOOP_WORKSPACE": f"{folder}/{name}"}

        head = [*ray_cli, "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
        stack.enter_context(child([*head, f"--temp-dir={folder}/ray"], environment))
        end = time.monotonic() + 60
        while not answers(port):
            assert time.monotonic() < end, "Ray's head does not answer"
            time.sleep(0.2)
        stack.enter_context(child([*ray_cli, f"--address=127.0.0.1:{port}", "--num-cpus=4"], environment))
        with child([sys.executable, "-m", "workers.cluster"], workspace("owner")):
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            gateway = stack.enter_context(child([sys.executable, "-c", GATEWAY_SIDE], workspace("gateway"), **pipes))
            assert gateway.stdout is not None and gateway.stdin is not None
            assert gateway.stdout.readline() == "first [4.0, 4.0]\n"
        stack.enter_context(child([sys.executable, "-m", "workers.cluster"], workspace("next")))
        gateway.stdin.write("\n")
        gateway.stdin.flush()
        assert gateway.stdout.readline() == "second\n"
