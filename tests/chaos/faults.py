"""What goes wrong, by chance and by a seed."""

import contextlib
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import psutil

from tests.chaos.annotators import Annotator
from tests.rays import descendants

GATEWAY, RUNNER, OWNER = "workers.api", "flows.runner", "workers.cluster"
REFINER, ENCODER = "_RefinerShell", "_EncoderShell"
RAYLET, HEAD = "raylet/raylet", "gcs_server"


class Faults:
    """Chooses and carries out faults.

    Args:
        server: The running `serve`.
        annotators: Whose connections are cut and who fall asleep.
        seed: Of the choice.
        lease_s: A pause beyond it lets leases run out.
        more: Further faults by name, such as those of a database.
    """

    def __init__(
        self,
        server: "subprocess.Popen[bytes]",
        annotators: Sequence[Annotator],
        seed: int,
        lease_s: float,
        more: dict[str, Callable[[], None]],
    ) -> None:
        self._server, self._annotators = server, annotators
        self.rng = random.Random(seed)
        self.counts: Counter[str] = Counter()
        kinds: dict[str, tuple[int, Callable[[], bool]]] = {
            "connections cut": (6, lambda: self._tell("is_cut")),
            "annotator asleep beyond its lease": (2, lambda: self._tell("is_idle")),
            "refiner killed": (3, lambda: self._kill(REFINER)),
            "encoder killed": (2, lambda: self._kill(ENCODER)),
            "gateway killed": (2, lambda: self._kill(GATEWAY)),
            "flow runner killed": (1, lambda: self._kill(RUNNER)),
            "owner of the actors killed": (1, lambda: self._kill(OWNER)),
            "raylet killed": (1, lambda: self._kill(RAYLET)),
            "Ray head killed": (1, lambda: self._kill(HEAD)),
            "gateway paused": (3, lambda: self._pause(GATEWAY, 1.0)),
            "gateway paused beyond the lease": (1, lambda: self._pause(GATEWAY, 1.5 * lease_s)),
            "refiner paused": (3, lambda: self._pause(REFINER, 1.5)),
            "encoder paused": (2, lambda: self._pause(ENCODER, 1.5)),
        }
        for name, action in more.items():
            kinds[name] = (2, lambda action=action: action() is None)  # type: ignore[misc]
        self._kinds = kinds

    def one(self) -> None:
        """Carry out one; one that finds nothing to hit does not count."""
        names = list(self._kinds)
        (name,) = self.rng.choices(names, [self._kinds[n][0] for n in names])
        if self._kinds[name][1]():
            self.counts[name] += 1

    def _tell(self, what: str) -> bool:
        event: threading.Event = getattr(self.rng.choice(self._annotators), what)
        event.set()
        return True

    def _processes(self, words: str) -> list[psutil.Process]:
        found = []
        for process in descendants(self._server.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                if words in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _kill(self, words: str) -> bool:
        found = self._processes(words)
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in found[:1]:
                process.kill()
        return bool(found)

    def _pause(self, words: str, seconds: float) -> bool:
        found = self._processes(words)[:1]
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
                time.sleep(seconds)
                process.resume()
        return bool(found)
