"""The gateway's side of a refine: the service it calls, its metrics, and one kind of error for whatever goes wrong.

Knows no sessions. The service is `workers.router.Router` in production and a router without Ray in tests.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from schemas.errors import BusyError, ClickloopError
from schemas.predictions import Engine, ImageRef, MaskReply, Pins, RefineRequest
from workers.api.metrics import Metrics

logger = logging.getLogger(__name__)

LOOK_AHEAD_S = 1.0
"""What comes later is warmed so long after what is at hand: the first click is not to share the cores with it."""

LOAD_FIRST_S = 90.0
"""How long a starting gateway waits for workers that are to load weights before it is ready."""
LOAD_AGAIN_S = 0.5


class RefineService(Protocol):
    """What the gateway needs of the refiners."""

    async def refine(self, request: RefineRequest) -> MaskReply:
        """The mask of a request, within the service's own deadline."""
        ...

    async def warm(self, images: Sequence[ImageRef], pins: Pins) -> None:
        """Have these images encoded and held ready."""
        ...

    async def load(self, model_digest: str, adapter_digest: str | None) -> None:
        """Have every refiner load and try these weights."""
        ...

    async def engine(self, pins: Pins) -> Engine | None:
        """What a new instance with these pins is to be computed with; None where that is not known (yet)."""
        ...

    async def ready(self) -> Mapping[str, Any]:
        """Which parts answer: {"ray", "refiners", "encoders", "reason"}."""
        ...


class Refining:
    """Calls the service and counts what came of it."""

    def __init__(self, service: RefineService, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics

    async def ask(self, request: RefineRequest) -> MaskReply:
        """The mask of a request.

        Raises:
            ClickloopError: What the service says; BusyError for anything it did not foresee.
        """
        try:
            with self._metrics.refining.track_inprogress():
                reply = await self._service.refine(request)
        except ClickloopError as error:
            self._metrics.refine_errors.labels(error.code).inc()
            raise
        except Exception as error:
            self._metrics.refine_errors.labels("error").inc()
            logger.exception("refine failed image=%s", request.image.sha256)
            raise BusyError("The mask could not be computed now. The event is kept; try again.") from error
        self._metrics.observe_stages({f"refine_{stage}": ms for stage, ms in reply.latency_ms.items()})
        self._metrics.cache.labels(reply.cache).inc()
        return reply

    async def warm(self, images: list[ImageRef], pins: Pins) -> None:
        """Warm an image, and a moment later those that come after it.

        Failing is only worth a line in the log, since the click will say what is wrong.
        """
        try:
            await self._service.warm(images[:1], pins)
            await asyncio.sleep(LOOK_AHEAD_S)
            await self._service.warm(images[1:], pins)
        except Exception as error:
            logger.warning("warming failed images=%d reason=%s", len(images), error)

    async def load(self, model_digest: str, adapter_digest: str | None) -> None:
        """Have every refiner load and try these weights; its errors say why they cannot be used."""
        await self._service.load(model_digest, adapter_digest)

    async def load_first(
        self, weights: Sequence[tuple[str, str | None]], should_stop: Callable[[], bool]
    ) -> list[tuple[str, str | None]]:
        """Load the weights of models and adapters before anybody clicks, waiting for workers that are starting.

        Returns:
            Those that cannot be used; clicks say why, too.
        """
        give_up = time.monotonic() + LOAD_FIRST_S
        unusable = []
        for model_digest, adapter_digest in weights:
            while not should_stop():
                try:
                    await self.load(model_digest, adapter_digest)
                except ClickloopError as error:
                    if isinstance(error, BusyError) and time.monotonic() < give_up:
                        await asyncio.sleep(LOAD_AGAIN_S)
                        continue
                    logger.warning("weights not loaded before the first click: %s", error)
                    unusable.append((model_digest, adapter_digest))
                break
        return unusable

    async def engine(self, pins: Pins) -> Engine | None:
        """What a new instance with these pins is to be computed with; None (float32) where that is not known yet."""
        return await self._service.engine(pins)

    async def ready(self) -> Mapping[str, Any]:
        """Which parts answer."""
        return await self._service.ready()
