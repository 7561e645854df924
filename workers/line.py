"""The line before one refiner: whether another call would be answered in time, and whether the refiner hangs.

Knows futures of Ray calls; not where they go.
"""

import asyncio
import math
import time
from typing import Any

from ray.exceptions import RayActorError

SILENT_DEADLINES = 2.5
"""A refiner that has calls and answers none for so many of their deadlines is restarted."""
MAX_WAIT = 0.5
"""A call that would wait for more than this share of its deadline is refused: the wait is an estimate."""
_PACE_WEIGHT = 0.2


class Line:
    """The calls that wait for one refiner, and how fast it answers them.

    The pace is what this process sees between two answers while calls wait, so it holds the share of other gateways.
    """

    def __init__(self) -> None:
        self._deadlines: dict[asyncio.Future[Any], float] = {}
        self._pace_s = 0.0
        self._answered = -math.inf

    def add(self, call: "asyncio.Future[Any]", deadline_s: float) -> None:
        """A call that was made now; it leaves by itself when it ends."""
        if not self._deadlines:
            self._answered = time.monotonic()  # it was not silent before: nobody asked
        self._deadlines[call] = deadline_s
        call.add_done_callback(self._leave)

    def is_full(self, most: int, deadline_s: float) -> bool:
        """Whether one more call would be too many or too late. Late ones would only make the next ones late, too."""
        waiting = len(self._deadlines)
        return waiting >= most or waiting * self._pace_s > MAX_WAIT * deadline_s

    def is_silent(self) -> bool:
        """Whether the refiner seems to hang; one that is late because it has too much to do is not silent."""
        longest = max(self._deadlines.values(), default=math.inf)
        return time.monotonic() - self._answered > SILENT_DEADLINES * longest

    def _leave(self, call: "asyncio.Future[Any]") -> None:
        self._deadlines.pop(call)
        if call.cancelled() or isinstance(call.exception(), RayActorError):
            return
        now = time.monotonic()
        if call.exception() is None:
            self._pace_s += _PACE_WEIGHT * (now - self._answered - self._pace_s)
        self._answered = now
