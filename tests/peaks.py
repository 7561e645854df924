"""How much memory a piece of a test takes at its peak, whatever ran before it in this process."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

_RESET_PEAK = "5"
"""What Linux wants in `clear_refs` to forget the largest resident size."""


@contextlib.contextmanager
def at_most(megabytes: float) -> Iterator[None]:
    """Fails when what runs inside makes this process grow by more."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    before = _peak_kb()
    yield
    grown = (_peak_kb() - before) / 1024
    assert grown < megabytes, f"grew by {grown:.0f} MB"


def _peak_kb() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
