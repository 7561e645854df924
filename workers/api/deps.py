"""What routes are given: the services of this gateway and the caller. No globals: everything hangs on the app."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from sqlalchemy import Connection

from pipeline.ingest.sources import require_allowed
from pipeline.ingest.tiles import Tiles
from pipeline.storage.database import Database
from pipeline.storage.writer import GroupWriter
from schemas.predictions import Window
from schemas.settings import Settings
from workers.api.auth import Authenticator, Caller, address, bearer
from workers.api.intake import Intake
from workers.api.live import Hub
from workers.api.metrics import Metrics
from workers.api.refining import Refining
from workers.api.work import read, write
from workers.lru import Lru

logger = logging.getLogger(__name__)
T = TypeVar("T")
MAX_NUMBER = 2**31 - 1
"""The largest integer that every database's columns hold."""

_RENDITION_BYTES = 64_000_000
_TILE_BYTES = 128_000_000


@dataclass
class Services:
    """The parts of one gateway.

    Attributes:
        is_warm: The weights of the campaigns that were worked on last are loaded, or cannot be.
        unusable: Those of them that cannot be: model digest, adapter digest.
        draining: Set on SIGTERM: claims are refused, what was begun is finished.
        thumbnails: Held while one is made: few at a time, so that clicks keep their processor.
        rendering: Held while a rendition, a level of tiles or a large image's thumbnail is made: one at a time.
        renditions: What was made last, by the sha256 of the image's file and its window: bytes and media type.
        tiles: The levels of large images that were cut last, by sha256, window and level.
    """

    settings: Settings
    database: Database
    writer: GroupWriter
    refining: Refining
    auth: Authenticator
    hub: Hub
    intake: Intake
    metrics: Metrics
    is_warm: bool = False
    unusable: list[tuple[str, str | None]] = field(default_factory=list)
    draining: bool = False
    thumbnails: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    rendering: asyncio.Lock = field(default_factory=asyncio.Lock)
    renditions: Lru[tuple[str, Window | None], tuple[bytes, str]] = field(default_factory=lambda: Lru(_RENDITION_BYTES))
    tiles: Lru[tuple[str, Window | None, int], Tiles] = field(default_factory=lambda: Lru(_TILE_BYTES))
    _tasks: dict[asyncio.Task[Any], bool] = field(default_factory=dict)
    """What runs in the background, and whether it may be dropped."""

    async def read(self, function: Callable[[Connection], T]) -> T:
        """Run a query in a thread, in a read transaction of its own."""

        def run() -> T:
            with self.database.connect() as conn:
                return function(conn)

        return await read(run)

    async def write(self, function: Callable[[Connection], T]) -> T:
        """Run a change in the writer's next transaction; returns once it is committed."""
        return await write(self.writer, function)

    def check_place(self, url: str) -> None:
        """Refuse a source or target outside the workspace and the configured roots.

        Raises:
            ForbiddenError: It lies elsewhere.
            BadInputError: It is no usable URL.
        """
        require_allowed(url, [*self.settings.source_roots, str(self.settings.workspace.resolve())])

    def background(self, work: Coroutine[Any, Any, Any], droppable: bool = False) -> None:
        """Run something that nobody waits for; a failure is logged.

        Args:
            work: To be run.
            droppable: Whether it is worth nothing once the gateway ends.
        """
        task = asyncio.create_task(work)
        self._tasks[task] = droppable
        task.add_done_callback(self._finished)

    async def finish_background(self, timeout_s: float) -> None:
        """Drop what may be dropped of what runs in the background, and wait for the rest."""
        for task, droppable in self._tasks.items():
            if droppable:
                task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_s)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("background work failed: %s", error)


def get_services(request: Request) -> Services:
    """The app's services."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]


async def get_caller(
    request: Request,
    services: ServicesDep,
    authorization: Annotated[str | None, Header()] = None,
    x_annotator: Annotated[str | None, Header()] = None,
) -> Caller:
    """Who calls (see `workers.api.auth`)."""
    caller = await services.auth.caller(bearer(authorization), x_annotator, address(request))
    request.scope["clickloop.annotator"] = caller.annotator.id
    return caller


CallerDep = Annotated[Caller, Depends(get_caller)]


def envelope(
    results: list[Any], count: int, following: str | None = None, previous: str | None = None
) -> dict[str, Any]:
    """The one shape of lists."""
    return {"count": count, "next": following, "previous": previous, "results": results}
