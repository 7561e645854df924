"""Prefect's ephemeral server: telemetry off, closed to strangers, deaf to Ctrl-C and SIGTERM, ended with its parent
even when that is killed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from flows.prefect_env import configure_prefect
from schemas.errors import BadInputError
from tests.rays import descendants, wait_gone

PARENT = """
import sys, time
from pathlib import Path
from flows.prefect_env import configure_prefect, start_ephemeral_server
configure_prefect(Path(sys.argv[1]))
start_ephemeral_server()
from prefect.server.api.server import SubprocessASGIServer
print(SubprocessASGIServer().api_url, flush=True)
time.sleep(300)
"""


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}


@pytest.mark.timeout(240)
def test_the_ephemeral_server_needs_its_password_and_dies_with_a_killed_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean())
    assert parent.stdout is not None
    with parent.stdout:
        url = parent.stdout.readline().strip()
    family = descendants(parent.pid)
    try:
        servers = [p for p in family if "prefect.server" in " ".join(p.cmdline()) and p.pid != parent.pid]
        assert servers
        for server in servers:  # as Ctrl-C and `timeout` do, which mean the command alone
            server.send_signal(signal.SIGINT)
            server.send_signal(signal.SIGTERM)
        time.sleep(0.5)  # long enough to die of it
        assert httpx.post(f"{url}/flows/filter", json={}, trust_env=False).status_code == 401
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    wait_gone([p for p in family if p.pid != parent.pid and psutil.pid_exists(p.pid)])


@pytest.mark.timeout(240)
def test_a_parent_that_is_killed_while_the_server_starts_leaves_none(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.DEVNULL, env=clean())
    servers: list[psutil.Process] = []
    while not servers:
        assert parent.poll() is None
        with suppress(psutil.NoSuchProcess):  # what it started for a moment
            servers = [p for p in descendants(parent.pid) if "uvicorn" in " ".join(p.cmdline()) and p.pid != parent.pid]
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    wait_gone(servers)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_server_that_cannot_start_is_given_up_in_words_and_comes_once_it_can(tmp_path: Path) -> None:
    (tmp_path / "prefect").mkdir()
    broken = tmp_path / "prefect" / "prefect.db"
    broken.write_bytes(b"no database" * 1000)
    program = """
import sys
from pathlib import Path
from flows.prefect_env import configure_prefect, start_ephemeral_server
from schemas.errors import BusyError
configure_prefect(Path(sys.argv[1]))
for broken in Path(sys.argv[1]).glob("prefect/prefect.db*"):
    try:
        start_ephemeral_server()
    except BusyError as error:
        print(error.message)
    broken.unlink()
start_ephemeral_server()
print("up")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, env=clean(), check=True
    )
    told, up = done.stdout.splitlines()
    assert told.startswith("Prefect's server does not start: it ended 3 times at its start.")
    assert str(tmp_path / "prefect") in told
    assert up == "up"


def test_settings_of_the_user_stay_but_telemetry_is_always_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    before = dict(os.environ)
    try:
        os.environ["PREFECT_API_URL"] = "http://prefect:4200/api"
        os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "true"
        configure_prefect(tmp_path)
        assert os.environ["PREFECT_API_URL"] == "http://prefect:4200/api"
        assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
        assert os.environ["DO_NOT_TRACK"] == "1"
        assert os.environ["PREFECT_HOME"] == str(tmp_path / "prefect")
        assert "PREFECT_API_AUTH_STRING" not in os.environ  # a server of others has its own
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_a_workspace_that_takes_no_folder_is_a_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    for words, told in (
        (["precompute", "x"], f"There is no database at {file}/clickloop.db. Is --workspace right?"),
        (["campaign", "create", "x", "--images", "."], f"Cannot make {file}/prefect: Not a directory. Name another"),
        (["serve", "--port", "0"], f"Cannot make {file}: File exists. Name another workspace"),
    ):
        command = [sys.executable, "-m", "flows.cli", *words, "--workspace", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env=clean(), timeout=60)
        assert (done.returncode, done.stderr.startswith(f"clickloop: {told}")) == (2, True), done.stderr


def test_a_folder_that_cannot_be_made_leaves_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(BadInputError, match="Cannot make"):
        configure_prefect(tmp_path / "file")
    assert "PREFECT_HOME" not in os.environ
