"""A `serve` for the length of one command: the running one if there is one, else a child that is ended afterwards."""

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flows.client import Client, find_server
from pipeline.storage.lock import make_workspace_folder
from schemas.errors import BusyError
from schemas.settings import Settings

START_S = 300.0
"""Ray, the actors and the gateway need 15-40 s on two busy cores."""
STOP_S = 30.0
_PR_SET_PDEATHSIG = 1


@contextmanager
def serving(settings: Settings, port: int = 0) -> Iterator[Client]:
    """A client of a `serve` of this workspace that is ready.

    Raises:
        BusyError: The one that was started ended or was not ready in time.
    """
    running = find_server(settings)
    if running is not None:
        with running:
            yield running
        return
    make_workspace_folder(settings.workspace)
    log = settings.workspace / "serve.log"
    command = [sys.executable, "-m", "flows.cli", "serve", "--workspace", str(settings.workspace), "--port", str(port)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=_end_with_parent
        )
    try:
        with _wait_until_ready(settings, process, str(log)) as client:
            yield client
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM to this child when the command that started it is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_until_ready(settings: Settings, process: "subprocess.Popen[bytes]", log: str) -> Client:
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise BusyError(f"The temporary server ended with exit code {process.returncode}. See {log}.")
        client = find_server(settings)
        if client is not None:
            if client.is_ready():
                return client
            client.close()
        time.sleep(0.5)
    raise BusyError(f"The temporary server was not ready after {START_S:.0f} s. See {log}.")
