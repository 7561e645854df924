"""Blocking work beside the event loop: reads in threads, writes through the group writer."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from sqlalchemy import Connection

from pipeline.storage.writer import GroupWriter
from schemas.errors import DatabaseUnavailableError

T = TypeVar("T")
DATABASE_S = 15.0
"""Seconds after which a silent database is said to be one; pages give the gateway itself up after 20."""
_READERS = ThreadPoolExecutor(12, "database")
"""Of their own: other blocking work may hang in an object store or a network drive, and would take every thread."""


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Run a blocking function in a thread."""
    return await asyncio.to_thread(function, *args)


async def read(function: Callable[..., T], *args: Any) -> T:
    """Run a function that reads from the database in a thread.

    Raises:
        DatabaseUnavailableError: It does not answer in time; the thread goes on waiting.
    """
    return await _in_time(asyncio.get_running_loop().run_in_executor(_READERS, copy_context().run, function, *args))


async def write(writer: GroupWriter, function: Callable[[Connection], T]) -> T:
    """Run a function in the writer's next transaction; returns once it is committed.

    A caller that is cancelled meanwhile does not undo the write.

    Raises:
        DatabaseUnavailableError: It is not committed in time; it may be later.
    """
    return await _in_time(asyncio.wrap_future(writer.submit(function)))


async def _in_time(answer: Awaitable[T]) -> T:
    try:
        return await asyncio.wait_for(asyncio.shield(answer), DATABASE_S)
    except TimeoutError:
        raise DatabaseUnavailableError("The database does not answer. Try again.") from None
