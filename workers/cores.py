"""Sharing few cores: on a machine with less than four, encoder and trainer take turns while people click.

Co-located load multiplies click latency 3.5-6 times, so the heavy roles run niced there, and while somebody labels
never two at once. When nobody does, they have the machine.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

FEW_CORES = 4
NICENESS = 10
QUIET_S = 60.0
"""So long after the last click heavy roles stop taking turns: somebody who labels rarely pauses longer."""
_NOTE_EVERY_S = 1.0
_noted_at = float("-inf")


def has_few_cores() -> bool:
    """Whether heavy roles share cores with clicks on this machine."""
    return len(os.sched_getaffinity(0)) < FEW_CORES


def be_nice() -> None:
    """Lower this process's priority where cores are few; harmless when repeated."""
    if has_few_cores():
        os.nice(max(0, NICENESS - os.nice(0)))


def use_threads(threads: int) -> None:
    """Set torch's threads for the calling thread: the setting is the thread's own, and Ray sets one for all."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def device() -> str:
    """Where models run: the GPU that Ray gave this process, or the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def note_click() -> None:
    """Tell the heavy roles of this machine that somebody clicks; costs microseconds."""
    global _noted_at
    now = time.monotonic()
    if has_few_cores() and now - _noted_at >= _NOTE_EVERY_S:
        _noted_at = now
        with suppress(OSError):  # such as a full disk: the click goes on
            fd = _open("click")
            try:
                os.utime(fd)
            finally:
                os.close(fd)


def people_click() -> bool:
    """Whether somebody clicked on this machine in the last minute."""
    try:
        clicked_at = os.stat(_path("click")).st_mtime
    except OSError:  # nobody has yet
        return False
    return time.time() - clicked_at < QUIET_S


@contextmanager
def heavy_turn() -> Iterator[None]:
    """Hold the machine's one turn for heavy work, for about 100 ms, if cores are few and people click.

    Fair: whoever waits holds the gate, so that a loop of turns can't starve the other role. A process that dies gives
    its turn back.
    """
    if not has_few_cores() or not people_click():
        yield
        return
    with _held("gate") as gate, _held("turn"):
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


@contextmanager
def _held(name: str) -> Iterator[int]:
    fd = _open(name)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _open(name: str) -> int:
    return os.open(_path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _path(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"clickloop-{os.getuid()}-{name}.lock"
