"""Puts the gateway together: services, layers, routes, page. No globals."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.types import Scope

from pipeline.storage.campaigns import weights_in_use
from pipeline.storage.database import Database
from pipeline.storage.writer import GroupWriter
from schemas.settings import Settings
from workers.api import errors, ws
from workers.api.auth import Authenticator
from workers.api.deps import Services
from workers.api.intake import Intake
from workers.api.live import Hub
from workers.api.metrics import Metrics
from workers.api.refining import RefineService, Refining
from workers.api.routes import (
    adapters,
    browsing,
    campaigns,
    events,
    exports,
    health,
    images,
    requests,
    sessions,
    statistics,
    tasks,
)
from workers.api.security import BodyLimit, RequestId, SameOrigin
from workers.api.work import in_thread

STATIC = Path(__file__).parent / "static"
DRAIN_S = 3.0
WARM_WEIGHTS = 4
"""Half of what a refiner holds (`workers.refiner.MAX_MODELS`), as an adapter comes with its model."""


class Page(StaticFiles):
    """The pages' files, asked for again at every load (by ETag): modules of two versions must not mix."""

    def get_path(self, scope: Scope) -> str:
        """See `StaticFiles`; the campaigns' page has a name without an ending."""
        path = super().get_path(scope)
        return "campaigns.html" if path == "campaigns" else path

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """See `StaticFiles`."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def build_services(settings: Settings, database: Database, service: RefineService, admin_token: str = "") -> Services:
    """The parts of a gateway.

    Args:
        settings: Of this process.
        database: Open; the gateway writes to it through one thread.
        service: Who computes masks.
        admin_token: The supervisor's own token, "" for none.
    """
    metrics = Metrics()
    writer = GroupWriter(database)
    refining = Refining(service, metrics)
    hub = Hub(database, metrics)
    auth = Authenticator(database, writer, admin_token, open_door=settings.is_loopback)
    intake = Intake(database, writer, hub, refining, metrics, settings)
    return Services(settings, database, writer, refining, auth, hub, intake, metrics)


async def _warm_up(services: Services) -> None:
    """Have the first click after a start find its weights loaded."""
    try:
        weights = await services.read(lambda conn: weights_in_use(conn, WARM_WEIGHTS))
        services.unusable = await services.refining.load_first(weights, lambda: services.draining)
    finally:
        services.is_warm = True


def create_app(services: Services) -> FastAPI:
    """The gateway as an ASGI app; its shutdown flushes the writer."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services.background(_warm_up(services))
        yield
        services.draining = True
        await services.finish_background(DRAIN_S)
        await in_thread(services.writer.close)

    # FastAPI's own page of the API runs scripts of a foreign host on this origin, where tokens are.
    app = FastAPIOffline(title="Clickloop", lifespan=lifespan, responses=errors.RESPONSES, redoc_url=None)
    app.state.services = services
    errors.install(app)
    for module in (
        health,
        campaigns,
        statistics,
        browsing,
        tasks,
        images,
        sessions,
        events,
        requests,
        exports,
        adapters,
    ):
        app.include_router(module.router)
    app.include_router(ws.router)
    app.mount("/", Page(directory=STATIC, html=True), name="page")
    app.add_middleware(BodyLimit, max_bytes=services.settings.max_body_bytes)
    app.add_middleware(SameOrigin, allowed_hosts=[*services.settings.allowed_hosts, services.settings.host])
    app.add_middleware(RequestId, metrics=services.metrics)
    return app
