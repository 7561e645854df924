"""How Prefect runs here: its settings, set before it is imported, and the life of its ephemeral server.

With PREFECT_API_URL that server is used and nothing is started. Without it flows run against an ephemeral server of
their own process: it answers any host without authentication unless told otherwise, so it gets a random auth string;
it outlives a killed parent, so a watcher ends it.
"""

import logging
import os
import secrets
import signal
import subprocess
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from pipeline.storage.lock import make_workspace_folder
from schemas.errors import BusyError

logger = logging.getLogger(__name__)

MOST_STARTS = 3
"""Of the ephemeral server, until it is given up: one that ends at once finds its port taken, or its database broken."""


def configure_prefect(workspace: Path) -> None:
    """Set Prefect's environment. Call before anything imports prefect; values that are set already stay, except that
    telemetry is always off.

    Args:
        workspace: Prefect's home is a folder in it.

    Raises:
        BadInputError: That folder cannot be made.
        OutOfSpaceError: The disk is full.
    """
    folder = Path(os.environ.get("PREFECT_HOME") or workspace.resolve() / "prefect")
    make_workspace_folder(folder)
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    defaults = {
        "PREFECT_HOME": str(folder),
        "PREFECT_LOGGING_LEVEL": "CRITICAL",  # whoever runs a flow reports its failure, once
        "PREFECT_LOGGING_EXTRA_LOGGERS": "pipeline,workers",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_CLI_PROMPT": "false",
    }
    if not os.environ.get("PREFECT_API_URL"):
        auth = f"clickloop:{secrets.token_urlsafe(24)}"
        defaults |= {
            "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
            "PREFECT_SERVER_API_AUTH_STRING": auth,
            "PREFECT_API_AUTH_STRING": auth,
        }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    logging.getLogger("EventsWorker").setLevel(logging.ERROR)  # at the end of each job: what it has yet to send


def start_ephemeral_server() -> None:
    """Start the server that Prefect would start at the first flow, and have it ended with this process, even killed.

    Does nothing with PREFECT_API_URL, or when it runs already.

    Raises:
        BusyError: It does not come up; what it says of that is on the standard error.
    """
    if os.environ.get("PREFECT_API_URL"):
        return
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    if server.running:
        return
    launch, launches = server._run_uvicorn_command, iter(range(MOST_STARTS))

    def launch_again() -> Any:  # Prefect asks without an end where the server ends at once
        if next(launches, None) is None:
            raise RuntimeError(f"it ended {MOST_STARTS} times at its start")
        process = launch()
        _end_with_parent(process.pid)  # not once it is up: this process may be killed before
        return process

    server._run_uvicorn_command = launch_again
    # Deaf to what a terminal or `timeout` sends to all: flows tell it how they ended, and try long where it is dead.
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        server.start()
    except RuntimeError as error:
        home = os.environ["PREFECT_HOME"]
        raise BusyError(
            f"Prefect's server does not start: {error}. Make room if the disk of {home} is full; if its database is "
            "broken, remove that folder: it holds no work."
        ) from error
    finally:
        del server._run_uvicorn_command  # the method of its class again
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)
    with suppress(OSError):  # its watcher is gone
        os.write(_PIPES[-1], b"up")
    logger.info("Prefect's ephemeral server runs at %s", server.address)


def without_heartbeats() -> AbstractContextManager[Any]:
    """Flows that run inside send the ephemeral server no heartbeats. Nobody looks at them there, a job has its own, and
    Prefect takes up to a second at the end of a flow to stop them. A server of others gets them.
    """
    if os.environ.get("PREFECT_API_URL"):
        return nullcontext()
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    quiet: AbstractContextManager[Any] = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
    return quiet


def _end_with_parent(pid: int) -> None:
    """A shell that waits for the end of a pipe, which only this process holds open, and then ends `pid`: by force, as
    that is deaf, and with the time to end a migration that it began, unless the pipe said that it is up.
    """
    read_end, write_end = os.pipe()  # not inheritable: children of ours do not keep it open
    ours = f"grep -q prefect /proc/{pid}/cmdline 2>/dev/null"  # the number may belong to somebody else by then
    subprocess.Popen(
        ["sh", "-c", f"trap '' TERM; told=$(cat); test -n \"$told\" || sleep 3; {ours} && kill -9 {pid}"],
        stdin=read_end,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(read_end)
    _PIPES.append(write_end)


_PIPES: list[int] = []
"""Held open as long as this process lives."""
