"""Whether this gateway lives, whether each part it needs is ready, and its metrics."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel
from sqlalchemy import text

from pipeline.storage.files import kind, open_storage
from pipeline.storage.tasks import expired_leases
from schemas.errors import BusyError, ClickloopError, DatabaseUnavailableError
from workers.api.deps import Services, ServicesDep
from workers.api.errors import RETRY_AFTER_S
from workers.api.work import in_thread, read

router = APIRouter(tags=["health"])

_TIMEOUT_S = 3.0


class Readiness(BaseModel):
    """Of each part, "ok" or what is wrong."""

    ready: bool
    parts: dict[str, str]


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness, "description": "Not all."}})
async def readyz(services: ServicesDep) -> JSONResponse:
    """Each part: "ok" or what is wrong. 503 unless all are ok, but for the weights of single campaigns: other campaigns
    go on, and a gateway that takes no more requests would stop them."""
    checks = {
        "database": _part(_database(services)),
        "storage": _part(in_thread(_storage, services.settings.resolved_storage_url)),
        "ray": _part(_refiners(services, "ray")),
        "model": _part(_model(services)),
        "weights": _part(_weights(services)),
        "draining": _part(_draining(services)),
    }
    outcomes = await asyncio.gather(*checks.values())
    parts = dict(zip(checks, outcomes, strict=True))
    good = all(said == "ok" for part, said in parts.items() if part != "weights")
    headers = {} if good else {"Retry-After": str(RETRY_AFTER_S)}
    return JSONResponse({"ready": good, "parts": parts}, 200 if good else 503, headers)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(services: ServicesDep) -> Response:
    """Prometheus text."""
    services.metrics.writer_queue.set(services.writer.waiting)
    try:
        services.metrics.leases_expired.set(len(await services.read(expired_leases)))
    except DatabaseUnavailableError:
        services.metrics.leases_expired.set(float("nan"))
    return Response(services.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _part(check: Awaitable[Any]) -> str:
    try:
        await asyncio.wait_for(check, _TIMEOUT_S)
    except TimeoutError:
        return "no answer"
    except ClickloopError as error:
        return error.message[:200]
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return "ok"


async def _database(services: Services) -> None:
    await services.read(lambda conn: conn.execute(text("SELECT 1")))
    await read(services.database.check_writable)


def _storage(url: str) -> None:
    fs, root = open_storage(url)
    kind(fs, root)


async def _refiners(services: Services, *names: str) -> None:
    facts = await services.refining.ready()
    if not all(facts.get(name) for name in names):
        raise BusyError(str(facts.get("reason") or "not running"))


async def _model(services: Services) -> None:
    await _refiners(services, "refiners", "encoders")
    if not services.is_warm:
        raise BusyError("The campaigns' weights are being loaded.")


async def _weights(services: Services) -> None:
    """A campaign whose weights were missing or broken at the start, and still are, cannot be clicked on."""
    for weights in services.unusable:
        await services.refining.load(*weights)
        services.unusable = [other for other in services.unusable if other != weights]


async def _draining(services: Services) -> None:
    if services.draining:
        raise BusyError("The gateway is shutting down.")
