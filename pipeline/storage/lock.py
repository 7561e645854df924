"""One owner process group per workspace. Knows nothing about what the owner does."""

import fcntl
import json
import os
import sys
from pathlib import Path
from types import TracebackType

from schemas.errors import WorkspaceLockedError


class WorkspaceLock:
    """Holds `WORKSPACE/lock` while open; the kernel gives it back when the process dies, however it dies.

    Child processes do not inherit it.

    Args:
        workspace: Folder, created if missing.

    Raises:
        WorkspaceLockedError: On entering, when another process holds it; says which.
    """

    def __init__(self, workspace: Path) -> None:
        self.path = Path(workspace) / "lock"
        self._fd: int | None = None

    def __enter__(self) -> "WorkspaceLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock now or raise."""
        assert self._fd is None, "already held"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._holder(fd)
            os.close(fd)
            raise WorkspaceLockedError(
                f"The workspace {self.path.parent} is in use by process {holder.get('pid', '?')} "
                f"({holder.get('command', 'unknown command')}). Stop it first, or use its API.",
                **holder,
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"pid": os.getpid(), "command": " ".join(sys.argv)[:300]}).encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """Give it back; harmless when not held. The file stays: unlinking it would let two processes lock two files."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None

    @staticmethod
    def _holder(fd: int) -> dict[str, object]:
        try:
            found = json.loads(os.pread(fd, 4096, 0))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def is_held(workspace: Path) -> bool:
    """Whether a process that lives, this one included, owns a workspace."""
    try:
        fd = os.open(Path(workspace) / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except PermissionError:  # another user's: nobody can look, so its other files are believed
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
