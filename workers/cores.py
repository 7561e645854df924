"""Sharing few cores: on a machine with less than four, encoder and trainer take turns, and both yield to clicks.

Co-located load multiplies click latency 3.5-6 times, so the two heavy roles run niced and never both at once there.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

FEW_CORES = 4
NICENESS = 10


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


@contextmanager
def heavy_turn() -> Iterator[None]:
    """Hold the machine's one turn for heavy work, for about 100 ms; does nothing where cores are plenty.

    Fair: whoever waits holds the gate, so that a loop of turns can't starve the other role. A process that dies gives
    its turn back.
    """
    if not has_few_cores():
        yield
        return
    with _held("gate") as gate, _held("turn"):
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


@contextmanager
def _held(name: str) -> Iterator[int]:
    path = Path(tempfile.gettempdir()) / f"clickloop-{os.getuid()}-{name}.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)
