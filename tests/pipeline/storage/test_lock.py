"""One owner per workspace, and one flow runner."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.storage.lock import WorkspaceLock, succession
from schemas.errors import OutOfSpaceError, WorkspaceLockedError
from tests.disks import full_disk

HOLD = """
import sys, time
from pathlib import Path
from pipeline.storage.lock import WorkspaceLock
with WorkspaceLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_owner_is_refused_and_told_who(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(WorkspaceLockedError, match=f"process {holder.pid}") as caught, WorkspaceLock(tmp_path):
            pass
        assert caught.value.details["pid"] == holder.pid
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    with WorkspaceLock(tmp_path):  # the kernel gave it back when the holder was killed
        pass


def test_lock_can_be_taken_again_after_release(tmp_path: Path) -> None:
    lock = WorkspaceLock(tmp_path / "new")
    for _ in range(2):
        with lock:
            with pytest.raises(WorkspaceLockedError):
                WorkspaceLock(tmp_path / "new").acquire()
            assert (lock.path.stat().st_mode & 0o777) == 0o600
    lock.release()


def test_a_full_disk_is_told_and_leaves_the_lock_free(tmp_path: Path) -> None:
    with full_disk(0), pytest.raises(OutOfSpaceError, match=r"lock: .*Make room"), WorkspaceLock(tmp_path):
        pass
    with WorkspaceLock(tmp_path):
        pass


def test_a_killed_runner_is_known_by_its_lock(tmp_path: Path) -> None:
    holder = (
        "import sys, time; from pathlib import Path; from pipeline.storage.lock import succession\n"
        "with succession(Path(sys.argv[1]), 'first'):\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with succession(tmp_path, "second") as dead:
            assert dead is None, "the first one lives"
        process.kill()
    with succession(tmp_path, "third") as dead:
        assert dead == "first"
    with succession(tmp_path, "fourth") as dead:
        assert dead is None, "the third one ended by itself"
