"""Blocking work beside the event loop: reads in threads, writes through the group writer."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection

from pipeline.storage.writer import GroupWriter

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Run a blocking function in a thread."""
    return await asyncio.to_thread(function, *args)


async def write(writer: GroupWriter, function: Callable[[Connection], T]) -> T:
    """Run a function in the writer's next transaction; returns once it is committed.

    A caller that is cancelled meanwhile does not undo the write.
    """
    return await asyncio.shield(asyncio.wrap_future(writer.submit(function)))
