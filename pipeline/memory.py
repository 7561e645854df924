"""What malloc does with freed memory: kept where the next forward pass or image needs as much at once, given back where
that happens once in a while."""

import ctypes
import sys
from collections.abc import Callable

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_KEEP_BYTES = 512 << 20
_LARGEST_FROM_HEAP = 32 << 20
"""glibc takes no larger threshold."""


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep up to 512 MB of freed memory per arena and to serve blocks up to 32 MB from it.

    By default it returns most of what a forward pass freed, and the next one pays for the pages again: an eighth of an
    encoder's pass (`benchmarks/allocator.py`), and more than half of decoding a JPEG of 2 MP. Costs resident memory up
    to a pass's own peak. Harmless when repeated.

    Returns:
        Whether it took effect; False on systems without glibc.
    """
    mallopt = _from_libc("mallopt")
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEEP_BYTES)) and bool(mallopt(_MMAP_THRESHOLD, _LARGEST_FROM_HEAP))


def give_back_freed_memory() -> bool:
    """Tell glibc's malloc to give back to the system what is free in the heaps of all threads.

    A thread's heap does not shrink below the last thing that lives in it: one tile that is kept holds the hundreds of
    megabytes that its image took, in each thread anew. Takes milliseconds, in which others wait for memory.

    Returns:
        Whether there was something; False on systems without glibc.
    """
    trim = _from_libc("malloc_trim")
    return trim is not None and bool(trim(0))


def _from_libc(name: str) -> Callable[..., int] | None:
    """A function of glibc; None on systems without it."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
    return found
