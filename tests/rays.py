"""A real Ray with real actors: its owner is a process of its own, as in production.

`ray_workers` is shared by the whole session (one refiner, two encoders); tests that kill things start their own with
`start_owner`.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from schemas.settings import Settings
from workers.cluster import read_info, write_private

START_S = 150.0
TOKEN = secrets.token_hex(32)


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


@pytest.fixture(scope="session")
def ray_workers() -> Iterator[Settings]:
    """Settings of a workspace whose workers are running; detach with `ray.shutdown` or `Router.close`."""
    with tempfile.TemporaryDirectory(prefix="cl-") as folder:
        settings = Settings(workspace=Path(folder), refiners=1, encoders=2, refiner_cache_mb=64)
        with start_owner(settings):
            yield settings
