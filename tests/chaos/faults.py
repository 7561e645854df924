"""What goes wrong, by chance and by a seed: to processes, to people and to the clock. A fault is a function."""

import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import psutil
from sqlalchemy import bindparam, select, update

from pipeline.storage.database import Database
from schemas.errors import DatabaseUnavailableError
from schemas.tables import Request, Task
from tests.chaos.annotators import Crew
from tests.chaos.proxy import Proxy
from tests.integration.test_kill import marked

GATEWAY, RUNNER, OWNER = "workers.api", "flows.runner", "workers.cluster"
REFINER, ENCODER, TRAINER = "_RefinerShell", "_EncoderShell", "ray::Trainer"
RAYLET, HEAD = "raylet/raylet", "gcs_server"
JUMP_S = 120.0
"""More than any lease, and than a job's owner may be silent."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        name: In the table.
        happen: Carry it out; False when there was nothing to hit.
        weight: How many cards it has in a deck.
    """

    name: str
    happen: Callable[[], bool]
    weight: int = 1


class Faults:
    """Carries faults out in an order by chance: a deck with `weight` cards of each kind is dealt, and another after it.
    A card that finds nothing to hit waits until it does.

    Args:
        kinds: Of faults.
        seed: Of the order.
    """

    def __init__(self, kinds: Sequence[Fault], seed: int) -> None:
        self.rng = random.Random(seed)
        self.counts: Counter[str] = Counter({kind.name: 0 for kind in kinds})
        self._kinds = kinds
        self._deck: list[Fault] = []

    def one(self) -> str:
        """Carry out one; its name."""
        while True:
            for place, kind in enumerate(self._deck):
                if kind.happen():
                    del self._deck[place]
                    self.counts[kind.name] += 1
                    return kind.name
            cards = [kind for kind in self._kinds for _ in range(kind.weight)]
            self._deck += self.rng.sample(cards, len(cards))


def process_faults(mark: str, lease_s: float, rng: random.Random) -> list[Fault]:
    """Processes with this mark are killed (SIGKILL) and paused (SIGSTOP)."""

    def killed(name: str, words: str, weight: int) -> Fault:
        return Fault(f"{name} killed", lambda: _kill(mark, words, rng), weight)

    def paused(name: str, words: str, seconds: float, weight: int) -> Fault:
        return Fault(f"{name} paused", lambda: _pause(mark, words, seconds, rng), weight)

    return [
        killed("refiner", REFINER, 2),
        killed("encoder", ENCODER, 2),
        killed("trainer", TRAINER, 3),
        killed("gateway", GATEWAY, 2),
        killed("flow runner", RUNNER, 1),
        killed("owner of the actors", OWNER, 1),
        killed("raylet", RAYLET, 1),
        killed("Ray head", HEAD, 1),
        paused("refiner", REFINER, 1.5, 1),
        paused("encoder", ENCODER, 1.5, 1),
        paused("trainer", TRAINER, 1.5, 2),
        paused("flow runner", RUNNER, 1.5, 1),
        paused("gateway", GATEWAY, 1.0, 1),
        Fault("gateway paused beyond the lease", lambda: _pause(mark, GATEWAY, 1.5 * lease_s, rng), 2),
    ]


def people_faults(crew: Crew, lines: Sequence[Proxy]) -> list[Fault]:
    """Annotators fall asleep and vanish, and the lines between them and the gateways break under their requests."""
    return [
        Fault("annotator asleep beyond the lease", crew.send_to_sleep, 3),
        Fault("annotator vanished", crew.vanish, 3),
        Fault("connections cut", lambda: sum(line.cut() for line in lines) > 0, 3),
    ]


def clock_faults(database: Database, lease_s: float) -> list[Fault]:
    """The clock that leases are judged by jumps.

    The times that it is compared with are moved instead, which is the same: those of the leases of tasks, and of the
    heartbeats of jobs.
    """
    return [
        Fault("clock jumped ahead, beyond all leases", lambda: _move_times(database, -JUMP_S), 2),
        Fault("clock jumped back", lambda: _move_times(database, 2 * lease_s)),
    ]


def _move_times(database: Database, seconds: float) -> bool:
    by = timedelta(seconds=seconds)
    try:
        with database.begin() as conn:
            for kind, time_of, state in (
                (Task, Task.lease_expires_at, "leased"),
                (Request, Request.heartbeat_at, "running"),
            ):
                found = conn.execute(select(kind.id, time_of).where(kind.state == state).with_for_update()).all()
                statement = update(kind).where(kind.id == bindparam("row")).values({time_of: bindparam("moved")})
                if found:
                    conn.execute(statement, [{"row": row, "moved": at + by} for row, at in found if at is not None])
    except DatabaseUnavailableError:
        return False
    return True


def _kill(mark: str, words: str, rng: random.Random) -> bool:
    process = _process(mark, words, rng)
    if process is None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    return True


def _pause(mark: str, words: str, seconds: float, rng: random.Random) -> bool:
    process = _process(mark, words, rng)
    if process is None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)
    return True


def _process(mark: str, words: str, rng: random.Random) -> psutil.Process | None:
    """One of the marked processes whose command line has these words."""
    found = []
    for process in marked(mark):
        with contextlib.suppress(psutil.NoSuchProcess):
            if words in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return rng.choice(found) if found else None
