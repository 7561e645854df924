"""Ctrl-C and SIGTERM during a training: the step at work is finished and the state is written before it ends."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_HEARD = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def noted_interrupts() -> Iterator[Callable[[], bool]]:
    """Within it the first SIGINT or SIGTERM is only noted; the next acts as before.

    Yields:
        Whether there was one. Signals reach the main thread alone: elsewhere there never is.
    """
    heard = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield heard.is_set
        return

    def note(number: int, frame: FrameType | None) -> None:
        heard.set()
        restore()

    before = {number: signal.signal(number, note) for number in _HEARD}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield heard.is_set
    finally:
        restore()


def ignore_interrupts(_worker: int) -> None:
    """For processes that make batches: a terminal's or a scheduler's signal reaches them, too, and the one that trains
    ends them. They end by themselves when it dies."""
    for number in _HEARD:
        signal.signal(number, signal.SIG_IGN)
