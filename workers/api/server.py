"""Runs the app in uvicorn: bounded frames, and a drain on SIGTERM that leaves nothing half-done."""

import signal
from types import FrameType

import uvicorn
from fastapi import FastAPI

from workers.api.deps import Services

GRACEFUL_S = 5


class DrainingServer(uvicorn.Server):
    """Refuses claims from the moment of the signal; uvicorn then closes the sockets with 1012 and ends the app."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On SIGTERM or SIGINT."""
        self._services.draining = True
        super().handle_exit(sig, frame)


def make_server(app: FastAPI, services: Services) -> DrainingServer:
    """A server of the app, by the services' settings."""
    settings = services.settings
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        ws_max_size=settings.max_frame_bytes,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=GRACEFUL_S,
    )
    return DrainingServer(config, services)


def run(app: FastAPI, services: Services) -> None:
    """Serve until SIGTERM or SIGINT."""
    server = make_server(app, services)
    signal.signal(signal.SIGTERM, server.handle_exit)
    server.run()
