"""Masks as clients get them, and previews: at most one refine per instance of a connection, the newest last.

A preview that a newer event has overtaken before it was asked for is skipped; the refiner evaluates its event anyway,
on the way to the newer one.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from schemas.errors import ClickloopError
from schemas.predictions import MaskReply, RefineRequest
from workers.api.errors import error_body
from workers.api.refining import Refining


def mask_json(reply: MaskReply, seq: int, instance_id: str) -> dict[str, Any]:
    """A mask as a client gets it."""
    return {"seq": seq, "instance_id": instance_id, **reply.model_dump(mode="json", exclude_none=True)}


@dataclass(eq=False)
class Preview:
    """A mask that a connection waits for.

    Attributes:
        committed: Resolved with whether the event was acknowledged; the mask is shown only then.
    """

    event_id: str
    instance_id: str
    seq: int
    question: RefineRequest
    committed: "asyncio.Future[bool]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Previews:
    """The previews of one connection.

    Args:
        refining: Who computes.
        show: Called with the mask of an acknowledged event.
        fail: Called when the mask of an acknowledged event could not be computed.
    """

    def __init__(
        self,
        refining: Refining,
        show: Callable[[Preview, MaskReply], Awaitable[None]],
        fail: Callable[[Preview, dict[str, Any]], Awaitable[None]],
    ) -> None:
        self._refining = refining
        self._show = show
        self._fail = fail
        self._next: dict[str, Preview] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    def begin(self, preview: Preview) -> None:
        """Ask for a preview now, or as soon as the instance's running one is done."""
        self._next[preview.instance_id] = preview
        if preview.instance_id not in self._running:
            self._running[preview.instance_id] = asyncio.create_task(self._work(preview.instance_id))

    def close(self) -> None:
        """Drop everything; nobody is left to show it to."""
        self._next.clear()
        for task in self._running.values():
            task.cancel()

    async def _work(self, instance_id: str) -> None:
        try:
            while (preview := self._next.pop(instance_id, None)) is not None:
                await self._one(preview)
        finally:
            del self._running[instance_id]

    async def _one(self, preview: Preview) -> None:
        try:
            reply = await self._refining.ask(preview.question)
        except ClickloopError as error:
            if await preview.committed:
                await self._fail(preview, error_body(error)["error"])
            return
        if await preview.committed:
            await self._show(preview, reply)
