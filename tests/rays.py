"""A real Ray with real actors: its owner is a process of its own, as in production.

`ray_workers` is shared by the whole session (one refiner, two encoders); tests that kill things start their own with
`start_owner`.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from schemas.settings import Settings
from workers.cluster import read_info, write_private

START_S = 150.0
TOKEN = secrets.token_hex(32)
_RAY_START = (
    str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-gpus=0", "--disable-usage-stats",
    "--object-store-memory=80000000", "--node-ip-address=127.0.0.1",
)  # fmt: skip


def environment(settings: Settings) -> dict[str, str]:
    """This process's environment with the settings in it."""
    given = {f"CLICKLOOP_{name.upper()}": str(value) for name, value in settings.model_dump(exclude_unset=True).items()}
    return {**os.environ, **given}


@contextmanager
def start_owner(settings: Settings) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `python -m workers.cluster`, ready to be attached to, and leave nothing of it."""
    # Ray reads its token once per process: the tests' clusters share one, so that this process can use them all.
    write_private(settings.workspace / "ray.token", TOKEN)
    process = subprocess.Popen([sys.executable, "-m", "workers.cluster"], env=environment(settings))
    try:
        wait_for_owner(settings, process)
        yield process
    finally:
        family = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        wait_gone(family)


def wait_for_owner(settings: Settings, process: "subprocess.Popen[bytes]") -> None:
    """Until ray.json of this process is there."""
    end = time.monotonic() + START_S
    while (info := read_info(settings.workspace)) is None or info.owner_pid != process.pid:
        assert process.poll() is None, f"the owner ended with {process.returncode}"
        assert time.monotonic() < end, "the owner is not ready"
        time.sleep(0.2)


def descendants(pid: int) -> list[psutil.Process]:
    """The process and all below it."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_gone(family: list[psutil.Process], timeout_s: float = 20.0) -> None:
    """Until all of them have ended (zombies have)."""
    _, alive = psutil.wait_procs(family, timeout_s)
    left = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    for process in left:
        process.kill()
    assert not left, f"still running: {[(p.pid, p.name()) for p in left]}"


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


@dataclass(frozen=True)
class ExternalCluster:
    """A Ray cluster that the product did not start; its head offers nothing.

    Attributes:
        folder: For Ray's files; its path must be short.
        port: Of its head on the loopback.
        environment: Of processes that use it.
    """

    folder: Path
    port: int
    environment: dict[str, str]

    @property
    def address(self) -> str:
        """Of its head."""
        return f"127.0.0.1:{self.port}"

    @contextmanager
    def head(self) -> Iterator[None]:
        """A head, for the length of the block; the next one knows nothing of it."""
        command = [*_RAY_START, "--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false"]
        with child([*command, f"--temp-dir={self.folder}/ray"], self.environment):
            end = time.monotonic() + 60
            while not _answers(self.port):
                assert time.monotonic() < end, "Ray's head does not answer"
                time.sleep(0.2)
            yield

    def node(self, cpus: int) -> AbstractContextManager["subprocess.Popen[str]"]:
        """A node that works, for the length of the block."""
        return child([*_RAY_START, f"--address={self.address}", f"--num-cpus={cpus}"], self.environment)


def cluster_to_be(folder: Path) -> ExternalCluster:
    """A cluster without a head yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = 7000 + probe.getsockname()[1] % 1000  # below the ports that Ray gives to its workers
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {**os.environ, **token, "CLICKLOOP_RAY_ADDRESS": f"127.0.0.1:{port}"}
    environment.pop("RAY_AUTH_TOKEN_PATH", None)
    return ExternalCluster(folder, port, environment)


@contextmanager
def external_cluster(folder: Path) -> Iterator[ExternalCluster]:
    """A cluster with a head, for the length of the block."""
    cluster = cluster_to_be(folder)
    with cluster.head():
        yield cluster


def _answers(port: int) -> bool:
    """Whether something listens on the loopback's port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def ray_workers() -> Iterator[Settings]:
    """Settings of a workspace whose workers are running; detach with `ray.shutdown` or `Router.close`."""
    with tempfile.TemporaryDirectory(prefix="cl-") as folder:
        settings = Settings(workspace=Path(folder), refiners=1, encoders=2, refiner_cache_mb=64)
        with start_owner(settings):
            yield settings
