"""A gateway in a process of its own, which tests can kill: python -m tests.browser.gateway_process FOLDER PORT."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from pipeline.storage.database import open_database
from tests.workers.api.gateway import ADMIN_TOKEN, local_router, settings_in
from workers.api.app import build_services, create_app
from workers.api.server import make_server


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start the gateway of a folder that `gateway_in` or `fill` has set up; returns when it answers."""
    process = subprocess.Popen([sys.executable, "-m", __spec__.name, str(folder), str(port)])
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        assert process.poll() is None, "the gateway ended"
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False, timeout=2)
            return process
        except httpx.HTTPError:
            time.sleep(0.1)
    raise AssertionError("the gateway did not start")


def main() -> None:
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    settings = settings_in(folder).model_copy(update={"port": port})
    database = open_database(f"sqlite:///{folder / 'clickloop.db'}", busy_timeout_s=2)
    services = build_services(settings, database, local_router(str(folder / "storage")), ADMIN_TOKEN)
    make_server(create_app(services), services).run()


if __name__ == "__main__":
    main()
