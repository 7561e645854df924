"""Waiting while the storage does not answer the actors that a job drives: in growing pauses, and not for ever."""

import random
import time

from flows.jobs import Job
from schemas.errors import BadCheckpointError, BusyError, ForbiddenError, NotFoundError, OutOfSpaceError

PAUSE_S = (2.0, 60.0)
"""Shortest and longest pause, before jitter."""
FATAL = {error.code: error for error in (BadCheckpointError, ForbiddenError, NotFoundError, OutOfSpaceError)}
"""Failures of actors that no waiting mends: weights that are missing or do not load, a refusal, a full disk."""


class Outage:
    """The pauses of one job; calls inside this process wait by `pipeline.storage.files.patience`.

    Args:
        job: Says what it waits for, ends a pause when it is to stop.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._began: float | None = None
        self._pause_s = PAUSE_S[0]

    def wait(self, why: str, has_moved: bool) -> None:
        """Pause before the next round.

        Args:
            why: What failed.
            has_moved: Something was done since the last pause: this outage is another one.

        Raises:
            BusyError: Nothing was done for `Settings.storage_wait_s`.
        """
        now = time.monotonic()
        if has_moved or self._began is None:
            self._began, self._pause_s = now, PAUSE_S[0]
        left = self._began + self._job.services.settings.storage_wait_s - now
        if left <= 0:
            raise BusyError(why)
        self._job.wait_for_storage(min(self._pause_s * random.uniform(0.5, 1.5), left), why)
        self._pause_s = min(2 * self._pause_s, PAUSE_S[1])
