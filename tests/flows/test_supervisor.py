"""The supervisor with small children of its own, and once with the real ones."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from flows.supervisor import STOP_S, Child, _environment, serve
from pipeline.storage.lock import WorkspaceLock
from schemas import engines
from schemas.errors import BadInputError, WorkspaceLockedError
from schemas.settings import Settings
from tests.rays import TOKEN, descendants, wait_gone
from workers.cluster import owned, write_private

SERVE = """
import sys
from pathlib import Path
from flows.supervisor import Child, serve
from schemas.settings import Settings
settings = Settings(workspace=Path(sys.argv[1]), port=0, refiner_cache_mb=77, allowed_hosts=["127.0.0.1", "elsewhere"])
children = tuple(Child(f"child {n}", (sys.executable, "-c", code)) for n, code in enumerate(sys.argv[2:]))
sys.exit(serve(settings, children=children))
"""
NOTE = """
import os, pathlib, time
folder = pathlib.Path(os.environ["CLICKLOOP_WORKSPACE"])
(folder / f"{os.getpid()}.child").write_text(os.environ["CLICKLOOP_PORT"])
"""
SIGNALLED = """
import os, signal, threading
wait = threading.Condition.wait
def wait_signalled(self, timeout=None):
    os.kill(os.getpid(), signal.SIGTERM)
    return wait(self, timeout)
threading.Condition.wait = wait_signalled
"""
SLEEPER = NOTE + "time.sleep(1000)"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + NOTE + "time.sleep(1000)"


@contextmanager
def supervised(workspace: Path, *children: str) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(workspace), *children])
    try:
        yield process
    finally:
        family = descendants(process.pid)
        process.kill()
        process.wait()
        wait_gone(family)


def wait_until(what: Callable[[], bool], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def children_seen(workspace: Path) -> set[int]:
    return {int(path.stem) for path in workspace.glob("*.child")}


def test_children_read_back_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(allowed_hosts=["elsewhere"])
    for name, value in _environment(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_children_get_the_settings_and_come_back(tmp_path: Path) -> None:
    with supervised(tmp_path, SLEEPER):
        wait_until(lambda: len(children_seen(tmp_path)) == 1)
        (first,) = children_seen(tmp_path)
        facts = json.loads((tmp_path / "serve.json").read_text())
        assert facts["url"] == f"http://127.0.0.1:{(tmp_path / f'{first}.child').read_text()}"
        environment = psutil.Process(first).environ()
        assert environment["CLICKLOOP_REFINER_CACHE_MB"] == "77"
        assert json.loads(environment["CLICKLOOP_ALLOWED_HOSTS"]) == ["127.0.0.1", "elsewhere"]
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: len(children_seen(tmp_path)) == 2)
        (second,) = children_seen(tmp_path) - {first}
        assert psutil.Process(second).environ()["CLICKLOOP_PORT"] == environment["CLICKLOOP_PORT"]


def test_a_child_that_keeps_failing_is_started_less_and_less_often(tmp_path: Path) -> None:
    with supervised(tmp_path, NOTE + "raise SystemExit(1)"):
        wait_until(lambda: len(children_seen(tmp_path)) >= 2)
        time.sleep(4)
        assert 3 <= len(children_seen(tmp_path)) <= 5, "after 0.5, 1, 2, 4 s"


def test_files_are_private_and_gone_at_the_end(tmp_path: Path) -> None:
    with supervised(tmp_path, SLEEPER) as process:
        wait_until(lambda: len(children_seen(tmp_path)) == 1)
        files = [tmp_path / "serve.json", tmp_path / "admin.token"]
        assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600, 0o600]
        assert (tmp_path / "clickloop.db").exists()
        process.terminate()
        assert process.wait(STOP_S + 1) == 0
        assert not any(path.exists() for path in files)


def test_sigterm_ends_even_a_stubborn_child_in_time(tmp_path: Path) -> None:
    with supervised(tmp_path, STUBBORN, SLEEPER) as process:
        wait_until(lambda: len(children_seen(tmp_path)) == 2)
        family = descendants(process.pid)
        started = time.monotonic()
        process.terminate()
        assert process.wait(20) == 0
        assert time.monotonic() - started <= 10
        assert not any(child.is_running() for child in family[1:])


def test_a_signal_never_waits_for_what_it_interrupts(tmp_path: Path) -> None:
    """One in the midst of waiting for an event would wait for its lock for ever, and so would all further ones."""
    process = subprocess.Popen([sys.executable, "-c", SIGNALLED + SERVE, str(tmp_path), SLEEPER])
    try:
        wait_until(lambda: process.poll() is not None or len(children_seen(tmp_path)) == 1)
        process.terminate()
        assert process.wait(STOP_S + 1) == 0
    finally:
        family = descendants(process.pid)
        process.kill()
        process.wait()
        wait_gone(family)


def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    with supervised(tmp_path, STUBBORN, SLEEPER) as process:
        wait_until(lambda: len(children_seen(tmp_path)) == 2)
        family = descendants(process.pid)
        assert len(family) == 3
        process.kill()
        wait_gone(family, 5)


def test_a_second_serve_is_refused(tmp_path: Path) -> None:
    with WorkspaceLock(tmp_path), pytest.raises(WorkspaceLockedError, match=str(os.getpid())):
        serve(Settings(workspace=tmp_path, port=0), children=())


def test_a_taken_port_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadInputError, match=str(port)):
            serve(Settings(workspace=tmp_path, port=port), children=())


def test_an_engine_that_is_not_installed_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_ONNX_PACKAGES", ("nosuchpackage",))
    settings = Settings(workspace=tmp_path, port=0, engine="onnx-float32")
    with pytest.raises(BadInputError, match="nosuchpackage"):
        serve(settings, children=())
    with pytest.raises(BadInputError, match="nosuchpackage"), owned(settings):
        pass


def test_a_child_that_cannot_start_ends_it(tmp_path: Path) -> None:
    children = (Child("broken", (sys.executable, "-c", "raise SystemExit(2)")),)
    assert serve(Settings(workspace=tmp_path, port=0), children=children) == 2


def test_the_supervisor_imports_neither_torch_nor_ray() -> None:
    code = "import sys, flows.supervisor; print(sorted({'torch', 'ray', 'prefect', 'fastapi'} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


REAL = """
import sys
from pathlib import Path
from flows.supervisor import serve
from schemas.settings import Settings
sys.exit(serve(Settings(workspace=Path(sys.argv[1]), port=0, refiner_cache_mb=64)))
"""


def named(family: list[psutil.Process], words: str) -> psutil.Process:
    return next(p for p in family if p.is_running() and words in " ".join(p.cmdline()))


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_the_real_children_survive_kills_and_end_together(tmp_path: Path) -> None:
    """kill -9 of the gateway, then of Ray's head (the gateway stays), then of the supervisor itself."""
    write_private(tmp_path / "ray.token", TOKEN)
    supervisor = subprocess.Popen([sys.executable, "-c", REAL, str(tmp_path)])
    family: list[psutil.Process] = []
    try:
        wait_until(lambda: (tmp_path / "serve.json").exists(), 60)
        url = json.loads((tmp_path / "serve.json").read_text())["url"]

        def is_ok(path: str) -> bool:
            try:
                return httpx.get(f"{url}{path}", timeout=5, trust_env=False).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(lambda: is_ok("/readyz"), 120)
        family = descendants(supervisor.pid)
        gateway = named(family, "workers.api")
        gateway.kill()
        gateway.wait(5)
        wait_until(lambda: is_ok("/readyz"), 60)
        family = descendants(supervisor.pid)
        gateway = named(family, "workers.api")
        named(family, "gcs_server").kill()
        wait_until(lambda: not is_ok("/readyz"), 20)
        assert is_ok("/healthz")
        wait_until(lambda: is_ok("/readyz"), 120)
        assert gateway.is_running(), "the gateway attached to the new Ray"
        family = descendants(supervisor.pid)
        assert len(family) > 8
        supervisor.kill()
        supervisor.wait()
        wait_gone(family)
    finally:
        family = family or descendants(supervisor.pid)
        supervisor.kill()
        wait_gone(family)
