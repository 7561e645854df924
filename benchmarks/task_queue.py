"""The task queue under many claimers: latency of a claim, no double lease, how soon an expired lease is given again.

    python benchmarks/task_queue.py [--claimers 64] [--tasks 10000] [--gateways 2] [--sqlite]

A PostgreSQL server of its own (settings as shipped: every commit is flushed to disk), claims as gateways make them:
through one group writer for each gateway. First paced (everybody thinks about 2 s between two claims), then as fast as
they come until nothing is left. At the end every task must have been given to one claimer.
"""

import argparse
import os
import random
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles

from growth import LABELLED, fill
from sqlalchemy import func, select

from pipeline.storage.annotators import get_or_create_annotator
from pipeline.storage.database import Database, open_database, upgrade_database
from pipeline.storage.tasks import claim_task
from pipeline.storage.writer import GroupWriter
from schemas.campaigns import Claim
from schemas.tables import Lease

sys.path.append(str(Path(__file__).resolve().parent.parent / "infra"))
from loopback import postgres

THINK_S = 2.0
PACED_S = 20.0
TTL_S = 2.0
Ask = Callable[[float], Claim | None]


class Claimers:
    """Threads that claim; what each got and how long it took."""

    def __init__(self, database: Database, campaign: str, count: int, gateways: int) -> None:
        self.campaign = campaign
        self.writers = [GroupWriter(database) for _ in range(gateways)]
        with database.begin() as conn:
            self.annotators = [get_or_create_annotator(conn, f"claimer-{number}").id for number in range(count)]
        self.claims: list[Claim] = []
        self._lock = threading.Lock()

    def ask(self, number: int, lease_s: float) -> tuple[Claim | None, float]:
        """One claim of a claimer, and its milliseconds."""
        annotator, claim_id = self.annotators[number], str(uuid.uuid4())
        began = time.perf_counter()
        claim = (
            self.writers[number % len(self.writers)]
            .submit(lambda conn: claim_task(conn, self.campaign, annotator, claim_id=claim_id, lease_s=lease_s))
            .result()
        )
        took = 1000 * (time.perf_counter() - began)
        if claim is not None:
            with self._lock:
                self.claims.append(claim)
        return claim, took

    def run(self, lease_s: float, think_s: float, until: float) -> list[float]:
        """All claim until nothing is left or the time is over; the milliseconds of every claim."""

        def claimer(number: int) -> list[float]:
            rng, times = random.Random(number), list[float]()
            if think_s:
                time.sleep(rng.uniform(0, think_s))
            while time.monotonic() < until:
                claim, took = self.ask(number, lease_s)
                if claim is None:
                    break
                times.append(took)
                if think_s:
                    time.sleep(rng.uniform(0.5, 1.5) * think_s)
            return times

        with ThreadPoolExecutor(len(self.annotators)) as pool:
            return [took for times in pool.map(claimer, range(len(self.annotators))) for took in times]

    def close(self) -> None:
        for writer in self.writers:
            writer.close()


def line(name: str, times: list[float], seconds: float) -> str:
    """Percentiles of one phase."""
    cuts = quantiles(times, n=100)
    rate = len(times) / seconds
    return (
        f"{name:8} {len(times):6d} claims {rate:6.0f}/s  p50 {cuts[49]:6.1f} p95 {cuts[94]:6.1f} p99 {cuts[98]:6.1f} ms"
    )


def reclaimed_after(database: Database, claimers: int, gateways: int) -> float:
    """Seconds between the end of the slowest lease and its next claim, while claimers ask every 50 ms."""
    own = Claimers(database, fill(database, claimers * LABELLED // (LABELLED - 1)), claimers, gateways)
    ends: dict[str, float] = {}
    slowest = 0.0
    for number in range(claimers):
        claim = own.ask(number, TTL_S)[0]
        assert claim is not None
        ends[claim.task_id] = time.monotonic() + TTL_S
    waiting = set(ends)
    while waiting:
        claim = own.ask(0, 600.0)[0]
        if claim is None:
            time.sleep(0.05)
            continue
        slowest = max(slowest, time.monotonic() - ends[claim.task_id])
        waiting.remove(claim.task_id)
    own.close()
    return slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claimers", type=int, default=64)
    parser.add_argument("--tasks", type=int, default=10_000, help="a multiple of 4; enough for the paced phase")
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--sqlite", action="store_true")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clq-", dir="/tmp")))
        folder.chmod(0o755)  # the server runs as another user when this runs as root
        url = f"sqlite:///{folder}/queue.db" if options.sqlite else stack.enter_context(postgres(folder))
        upgrade_database(url)
        database = open_database(url)
        campaign = fill(database, options.tasks * LABELLED // (LABELLED - 1))
        claimers = Claimers(database, campaign, options.claimers, options.gateways)
        given = f"{options.claimers} claimers over {options.gateways} gateways, {options.tasks} tasks"
        print(f"{url.split(':')[0]}, {given}, load {os.getloadavg()[0]:.1f}", flush=True)
        for name, think_s, seconds in (("paced", THINK_S, PACED_S), ("burst", 0.0, 600.0)):
            began = time.monotonic()
            times = claimers.run(600.0, think_s, began + seconds)
            print(line(name, times, time.monotonic() - began), flush=True)
        tasks = [claim.task_id for claim in claimers.claims]
        with database.connect() as conn:
            leases = conn.execute(select(func.count()).select_from(Lease)).scalar_one()
        print(f"{len(tasks)} claims of {len(set(tasks))} tasks, {leases} leases in the database")
        claimers.close()
        if not len(tasks) == len(set(tasks)) == leases == options.tasks:
            raise SystemExit("A task was given twice, or some were never given.")
        late = reclaimed_after(database, options.claimers, options.gateways)
        print(f"expired leases were given again within {late:.2f} s of their end (aim 1 s)")
        database.close()


if __name__ == "__main__":
    main()
