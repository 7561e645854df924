"""`clickloop serve`: takes the workspace, keeps three children alive (workers, gateway, flow runner), ends with them.

Imports neither torch nor Ray. A child that ends is started again with growing pauses; children die with this process,
however it dies. Where things are stands in WORKSPACE/serve.json, readable by this user only.
"""

import contextlib
import ctypes
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.storage.annotators import require_tokens
from pipeline.storage.database import open_database
from pipeline.storage.lock import WorkspaceLock, make_workspace_folder
from schemas.engines import check_available
from schemas.errors import BadInputError
from schemas.settings import Settings

logger = logging.getLogger(__name__)

POLL_S = 0.1
STOP_S = 9.0
"""After SIGTERM everything has ended within this, by force if need be."""
OWNER_STOP_S = 4.0
"""What is left of it for the owner of Ray, which is told last, so that the others can finish what they do."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0
"""A child that lived so long starts again at once."""
CANNOT_START = 2
"""Exit status of a child that would fail again: wrong settings."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Child:
    """A child process.

    Attributes:
        name: For the log.
        command: To run.
        is_owner: Of Ray. Others depend on it, so it is ended last, and by SIGTERM when this process is killed.
    """

    name: str
    command: tuple[str, ...]
    is_owner: bool = False


CHILDREN = (
    Child("workers", (sys.executable, "-m", "workers.cluster"), is_owner=True),
    Child("gateway", (sys.executable, "-m", "workers.api")),
    Child("flow runner", (sys.executable, "-m", "flows.runner")),
)


@dataclass
class _Running:
    child: Child
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    pause: float = 0.0
    due: float = field(default_factory=time.monotonic)


def serve(
    settings: Settings, *, on_ready: Callable[[str], None] | None = None, children: Sequence[Child] = CHILDREN
) -> int:
    """Run everything on this machine until SIGTERM or Ctrl-C.

    Args:
        settings: For all children; a relative workspace is taken from the current folder.
        on_ready: Called with the URL once the gateway answers.
        children: What to run.

    Returns:
        0 after a drain, 2 when a child says that it cannot start with these settings.

    Raises:
        WorkspaceLockedError: Another process owns the workspace.
        DatabaseVersionError: The database is of another version.
        BadInputError: The port is taken, the engine of the settings is not installed, or the gateway would listen off
            loopback without any valid token.
    """
    check_available(settings.engine)
    stop = threading.Event()
    settings = settings.model_copy(update={"workspace": settings.workspace.resolve()})
    make_workspace_folder(settings.workspace)
    with WorkspaceLock(settings.workspace), _stopped_by_signals(stop):
        with contextlib.closing(open_database(settings.resolved_database_url)) as database:  # made or upgraded first
            if not settings.is_loopback:
                with database.connect() as conn:
                    require_tokens(conn, settings.host)
        settings = settings.model_copy(update={"port": usable_port(settings.host, settings.port)})
        with _serve_file(settings) as url:
            return supervise(children, _environment(settings), stop, url, on_ready)


def supervise(
    children: Sequence[Child],
    environment: dict[str, str],
    stop: threading.Event,
    url: str,
    on_ready: Callable[[str], None] | None,
) -> int:
    """Keep children alive until told to stop.

    Args:
        children: What to run.
        environment: Of all of them.
        stop: Set from outside when they are to end.
        url: Of what has to answer HTTP before `on_ready` is called.
        on_ready: Called once with the URL.

    Returns:
        0 when stopped, 2 when a child says that it cannot start with these settings.
    """
    family = [_Running(child) for child in children]
    is_ready = on_ready is None
    try:
        while not stop.is_set():
            for running in family:
                if _tend(running, environment) == CANNOT_START:
                    logger.error("%s cannot start with these settings", running.child.name)
                    return CANNOT_START
            if not is_ready and on_ready is not None and _answers(url):
                is_ready = True
                on_ready(url)
            time.sleep(POLL_S)  # no wait for `stop`: a signal in the midst of it would wait for its lock for ever
        return 0
    finally:
        _stop_all(family)


def _tend(running: _Running, environment: dict[str, str]) -> int | None:
    """Start a child that is due, notice one that ended; the status of one that just ended."""
    now = time.monotonic()
    if running.process is None:
        if now >= running.due:
            running.process = _start(running.child, environment)
            running.started = now
        return None
    status = running.process.poll()
    if status is None:
        return None
    _kill_group(running.process)
    running.process = None
    if status == CANNOT_START:
        return status
    is_steady = now - running.started >= STEADY_S
    running.pause = 0.0 if is_steady else min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * running.pause))
    running.due = now + running.pause
    logger.warning("%s ended with %d, starting it again in %.1f s", running.child.name, status, running.pause)
    return status


def _start(child: Child, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    parent = os.getpid()

    # Ray's owner has processes of its own to end; what the others leave undone is safe.
    last_signal = signal.SIGTERM if child.is_owner else signal.SIGKILL

    def die_with_parent() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, last_signal)
        if os.getppid() != parent:
            os._exit(1)

    logger.info("starting %s", child.name)
    return subprocess.Popen(child.command, env=environment, start_new_session=True, preexec_fn=die_with_parent)


def _stop_all(family: Sequence[_Running]) -> None:
    """SIGTERM to all but the owner, then to the owner; by force what is left at the end."""
    deadline = time.monotonic() + STOP_S
    for is_owner, until in ((False, deadline - OWNER_STOP_S), (True, deadline)):
        processes = [r.process for r in family if r.process is not None and r.child.is_owner == is_owner]
        for process in processes:
            process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
    for running in family:
        if running.process is not None:
            if running.process.poll() is None:
                logger.warning("%s did not end in time", running.child.name)
            _kill_group(running.process)
            running.process.wait()


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """End what a child left behind: it leads a session and a process group of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    before = {n: signal.signal(n, lambda *_: stop.set()) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _serve_file(settings: Settings) -> Iterator[str]:
    """Write serve.json and the admin token while the block runs; gives the URL."""
    token_file, serve_file = settings.workspace / "admin.token", settings.workspace / "serve.json"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(settings.host, settings.host)
    facts = {
        "pid": os.getpid(),
        "url": f"http://{host}:{settings.port}",
        "token_file": str(token_file),
        "ray_file": str(settings.workspace / "ray.json"),
        "started_at": time.time(),
    }
    _write_private(token_file, f"clk_{secrets.token_urlsafe(32)}")
    _write_private(serve_file, json.dumps(facts))
    try:
        yield str(facts["url"])
    finally:
        serve_file.unlink(missing_ok=True)
        token_file.unlink(missing_ok=True)


def _write_private(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".partial")
    aside.unlink(missing_ok=True)
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    os.replace(aside, path)


def usable_port(host: str, port: int) -> int:
    """The port, or a free one for 0; the same at every restart of the gateway.

    Raises:
        BadInputError: It is taken or no port, or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            why = (getattr(error, "strerror", None) or str(error)).rstrip(".")
            raise BadInputError(f"Cannot listen on {host}:{port}: {why}. Choose another with --port.") from error
        return int(probe.getsockname()[1])


def _environment(settings: Settings) -> dict[str, str]:
    """This process's environment with all settings in it."""
    values = settings.model_dump(mode="json")
    given = {f"CLICKLOOP_{n.upper()}": v if isinstance(v, str) else json.dumps(v) for n, v in values.items()}
    return {**os.environ, **given}


def _answers(url: str) -> bool:
    """Whether anything speaks HTTP there."""
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/healthz", timeout=0.5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
