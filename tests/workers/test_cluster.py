"""Who owns the actors, how others find them, and that a dead owner is nobody."""

import dataclasses
import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import ray

from schemas.errors import BusyError, WorkspaceLockedError
from schemas.settings import Settings
from workers.cluster import (
    ClusterInfo,
    _temp_dir,
    attach,
    cluster,
    connect,
    info_path,
    namespace_of,
    owned,
    read_info,
    write_private,
)


def write_info(workspace: Path, pid: int, started: float) -> ClusterInfo:
    info = ClusterInfo("127.0.0.1:1", "n", "", pid, started, "g")
    write_private(info_path(workspace), json.dumps(dataclasses.asdict(info)))
    return info


def test_the_owners_file_counts_while_the_owner_lives(tmp_path: Path) -> None:
    assert read_info(tmp_path) is None
    me = psutil.Process()
    info = write_info(tmp_path, me.pid, me.create_time())
    assert read_info(tmp_path) == info
    write_info(tmp_path, me.pid, me.create_time() - 1)
    assert read_info(tmp_path) is None, "the number was used again"
    child = subprocess.Popen([sys.executable, "-c", ""])
    started = psutil.Process(child.pid).create_time()
    child.wait()
    write_info(tmp_path, child.pid, started)
    assert read_info(tmp_path) is None
    info_path(tmp_path).write_text("{")
    assert read_info(tmp_path) is None


def test_a_workspace_has_one_owner(tmp_path: Path) -> None:
    me = psutil.Process()
    write_info(tmp_path, me.pid, me.create_time())
    with pytest.raises(WorkspaceLockedError, match=str(os.getpid())), owned(Settings(workspace=tmp_path)):
        pass


def test_without_an_owner_it_is_busy(tmp_path: Path) -> None:
    with pytest.raises(BusyError, match="No workers"):
        attach(Settings(workspace=tmp_path))


def test_a_head_that_is_gone_is_busy_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself Ray waits 14 minutes for it, while another one has long been there at another address."""
    me = psutil.Process()
    info = dataclasses.replace(write_info(tmp_path, me.pid, me.create_time()), token_file=str(tmp_path / "token"))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "")  # put back afterwards
    with pytest.raises(BusyError, match=r"does not answer.*refused"):
        connect(info)
    assert "RAY_gcs_server_port_wait_time_s" not in os.environ


def test_the_namespace_names_storage_and_build(tmp_path: Path) -> None:
    one, other = (namespace_of(Settings(workspace=tmp_path / name)) for name in "ab")
    assert one != other
    shared = [namespace_of(Settings(workspace=tmp_path / name, storage_url="s3://b/p")) for name in "ab"]
    assert shared[0] == shared[1]


def test_private_files_are_private(tmp_path: Path) -> None:
    write_private(tmp_path / "x", "1")
    write_private(tmp_path / "x", "2")
    assert (tmp_path / "x").read_text() == "2"
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600


def test_the_gateways_side_imports_no_torch() -> None:
    code = "import sys, workers.router, workers.cluster; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_attaching_brings_no_torch_and_uses_the_private_token(ray_workers: Settings) -> None:
    code = """
import sys
from pathlib import Path
from schemas.settings import Settings
from workers.cluster import attach
pool = attach(Settings(workspace=Path(sys.argv[1]), refiners=1, encoders=2))
pool.wait(30)
print(sorted(pool.refiners | pool.encoders), "torch" in sys.modules)
"""
    command = [sys.executable, "-c", code, str(ray_workers.workspace)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip().endswith("['encoder-0', 'encoder-1', 'refiner-0'] False")
    token = Path(json.loads(info_path(ray_workers.workspace).read_text())["token_file"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(info_path(ray_workers.workspace).stat().st_mode) == 0o600
    assert stat.S_IMODE(_temp_dir(ray_workers.workspace).stat().st_mode) == 0o700
    info = read_info(ray_workers.workspace)
    assert info is not None
    owner = psutil.Process(info.owner_pid)
    ray_processes = {p.name(): p.environ() for p in owner.children() if p.name() in ("gcs_server", "raylet")}
    assert {name: e["RAY_AUTH_MODE"] for name, e in ray_processes.items()} == {"gcs_server": "token", "raylet": "token"}


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_command_uses_the_running_actors(ray_workers: Settings) -> None:
    with cluster(ray_workers) as pool:
        assert pool.answering(30) == {"encoder-0", "encoder-1", "refiner-0"}
    assert not ray.is_initialized()
    info = read_info(ray_workers.workspace)
    assert info is not None, "the owner lives on"
    connect(info)
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_the_thread_that_connects_calls_nothing(ray_workers: Settings) -> None:
    """Ray's ids begin with their thread: that which connected has `ff...`, in every cluster that a process was in."""
    with cluster(ray_workers), ThreadPoolExecutor(1) as other:
        ids = [ray.put(0).hex(), other.submit(lambda: ray.put(0).hex()).result()]
    assert not [one for one in ids if one.startswith("00ffffffff")]


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_clicks_are_not_niced_below_everything_else(ray_workers: Settings) -> None:
    info = read_info(ray_workers.workspace)
    assert info is not None
    owner = psutil.Process(info.owner_pid)
    refiners = [p for p in owner.children(recursive=True) if "_RefinerShell" in " ".join(p.cmdline())]
    assert refiners
    assert {p.nice() for p in refiners} == {owner.nice()}
