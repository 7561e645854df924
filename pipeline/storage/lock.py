"""One owner process group per workspace, and one flow runner. Knows nothing about what they do.

The kernel gives a lock back when its process dies, however it dies. Child processes do not inherit it.
"""

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from schemas.errors import BadInputError, ClickloopError, WorkspaceLockedError


class WorkspaceLock:
    """Holds `WORKSPACE/lock` while open.

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
        facts = json.dumps({"pid": os.getpid(), "command": " ".join(sys.argv)[:300]})
        try:
            self._fd, _ = _take(self.path, facts)
        except BlockingIOError:
            holder = self._holder()
            raise WorkspaceLockedError(
                f"The workspace {self.path.parent} is in use by process {holder.get('pid', '?')} "
                f"({holder.get('command', 'unknown command')}). Stop it first, or use its API.",
                **holder,
            ) from None

    def release(self) -> None:
        """Give it back; harmless when not held. The file stays: unlinking it would let two processes lock two files."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None

    def _holder(self) -> dict[str, object]:
        try:
            found = json.loads(self.path.read_bytes())
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


@contextmanager
def succession(workspace: Path, owner: str) -> Iterator[str | None]:
    """Hold `WORKSPACE/runner.lock` with the flow runner's owner name in it while the block runs.

    Whoever is named in a file that can be locked is dead.

    Yields:
        Who held it before and died; None when nobody did, or when another runner of this workspace lives.
    """
    try:
        fd, dead = _take(Path(workspace) / "runner.lock", owner)
    except BlockingIOError:
        yield None
        return
    try:
        yield dead or None
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


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


def make_workspace_folder(folder: Path) -> None:
    """Make a folder of the workspace, or the workspace; it may be there.

    Raises:
        BadInputError: It cannot be: something else is there, or one may not.
        OutOfSpaceError: The disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refusal(error, folder, f"Cannot make {folder}") from error


def is_there(path: Path) -> bool:
    """Whether there is a file of the workspace, such as its database.

    Raises:
        BadInputError: One may not look.
    """
    try:
        return path.exists()
    except OSError as error:
        raise _refusal(error, path, f"Cannot look for {path}") from error


def _refusal(error: OSError, path: Path, what: str) -> ClickloopError:
    """The error to tell the user when the workspace does not let us: a full disk, or what is wrong with which file."""
    from pipeline.storage.files import as_space_error  # takes as long to import as everything else here

    full = as_space_error(error, path)
    if isinstance(full, ClickloopError):
        return full
    where = f" ({error.filename})" if error.filename and str(error.filename) not in what else ""
    ask = ", or ask for the permission" if isinstance(error, PermissionError) else ""
    return BadInputError(f"{what}: {error.strerror or error}{where}. Name another workspace (--workspace){ask}.")


def _take(path: Path, facts: str) -> tuple[int, str]:
    """Lock a file, made if missing, and write in it who holds it.

    Returns:
        Its descriptor, and what a holder that died had written.

    Raises:
        BlockingIOError: Another process holds it.
        BadInputError: The folder cannot be made or written.
        OutOfSpaceError: Its disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _refusal(error, path, f"Cannot write to the workspace {path.parent}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise
    try:
        left = os.pread(fd, 4096, 0).decode(errors="replace")
        os.ftruncate(fd, 0)
        os.pwrite(fd, facts.encode(), 0)
    except OSError as error:
        from pipeline.storage.files import as_space_error  # takes as long to import as everything else here

        os.close(fd)
        raise as_space_error(error, path) from error
    return fd, left
