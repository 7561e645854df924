"""make chaos: annotators label a campaign and jobs run beside them while everything around dies and stops at random.

    python -m tests.chaos.run [--faults 200] [--seed 0] [--annotators 8] [--images 400] [--stack sqlite|postgres]

Prints what was done to it and what was found; exit status 1 if anything that was acknowledged is missing, doubled or
out of order, a task was worked on by two at once, the export lacks a mask, replay gives another one, something is
stored half-written, or the campaign does not come to its end.
"""

import argparse
import os
import random
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

from sqlalchemy import select

from flows.supervisor import Child, supervise
from pipeline.storage.database import open_database, upgrade_database
from schemas.settings import Settings
from schemas.tables import Task
from tests.chaos.annotators import Crew, Ledger
from tests.chaos.checks import check, open_run
from tests.chaos.faults import Faults, clock_faults, people_faults, process_faults
from tests.chaos.jobs import Jobs
from tests.chaos.proxy import Proxy
from tests.chaos.stacks import Stack, open_stack
from tests.flows.scenes import make_campaign
from tests.integration.test_kill import MARK, START_S, serving

LEASE_S = 6.0
NAME = "discs"
FINISH_S = 600.0
"""What is left of the campaign must be done within this after the last fault."""
GAP_S = (0.3, 3.0)
RECOVERY_S = 60.0
"""Between two faults is a gap, and then whatever it takes until somebody's work goes on, so long at most."""


def label_under_faults(stack: Stack, options: argparse.Namespace) -> tuple[Ledger, Counter[str], list[str]]:
    """Run annotators, jobs and faults against a `serve` until the campaign is finished.

    Returns:
        What the annotators know, the faults by kind, and the URLs of the exports.
    """
    ledger, mark = Ledger(), uuid4().hex
    with serving(stack.workspace, mark) as (server, url), ExitStack() as parts:
        urls = [url]
        if stack.has_two_gateways:
            urls.append(parts.enter_context(_second_gateway(mark, stack.folder / "gateway.log")))
        lines = [Proxy(urlsplit(one).port or 0) for one in urls]
        reached = [f"http://127.0.0.1:{line.port}" for line in lines]
        jobs = Jobs(url, NAME, stack, ledger)
        jobs.start()
        assert jobs.are_under_way.wait(START_S), "the first job is not done"
        crew = Crew(reached, NAME, ledger, options.annotators, options.seed, LEASE_S)
        database = parts.enter_context(open_run())
        kinds = process_faults(mark, LEASE_S, random.Random(options.seed)) + people_faults(crew, lines)
        faults = Faults(kinds + clock_faults(database, LEASE_S) + stack.faults, options.seed)
        while faults.counts.total() < options.faults:
            assert server.poll() is None, "serve ended"
            name = faults.one()
            acknowledged = len(ledger.acked)
            say(stack, f"{faults.counts.total()} faults, {acknowledged} events acknowledged; {name}")
            time.sleep(faults.rng.uniform(*GAP_S))
            end = time.monotonic() + RECOVERY_S
            while len(ledger.acked) == acknowledged and time.monotonic() < end:
                time.sleep(0.1)
        say(stack, "waiting for the jobs")
        jobs.stop()
        jobs.take_in()
        finish(stack, ledger)
        crew.join()
        say(stack, "the last export")
        jobs.export()
    return ledger, faults.counts, jobs.exports


def finish(stack: Stack, ledger: Ledger) -> None:
    """Wait until no task is left."""
    end = time.monotonic() + FINISH_S
    states: Counter[str] = Counter()
    with open_run() as database:
        while time.monotonic() < end:
            with database.connect() as conn:
                states = Counter(conn.execute(select(Task.state)).scalars())
            if set(states) <= {"done"}:
                return
            say(stack, f"finishing: {dict(states)}")
            time.sleep(1)
    ledger.wrong.append(f"the campaign did not finish: {dict(states)}")


@contextmanager
def _second_gateway(mark: str, log: Path) -> Iterator[str]:
    """Another gateway beside that of `serve`, started again when it ends: when one of them is paused beyond the lease,
    people at the other one take the tasks over."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stop = threading.Event()
    child = Child("gateway", ("sh", "-c", f"exec {sys.executable} -m workers.api >>{log} 2>&1"))
    environment = {**os.environ, MARK: mark, "CLICKLOOP_PORT": str(port)}
    thread = threading.Thread(target=supervise, args=([child], environment, stop, "", None), name="second gateway")
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop.set()
        thread.join()


def say(stack: Stack, text: str) -> None:
    """Progress on one line of a terminal, and in a file."""
    with (stack.folder / "faults.log").open("a") as log:
        log.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text:<100}")


def main(argv: list[str] | None = None) -> int:
    """Run, check, print; 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--annotators", type=int, default=8)
    parser.add_argument("--images", type=int, default=400, help="at the start; the jobs add more")
    parser.add_argument("--stack", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--keep", action="store_true", help="leave the folder with the logs, and say where it is")
    options = parser.parse_args(argv)
    with ExitStack() as parts:
        folder = Path(tempfile.mkdtemp(prefix="cl-", dir="/tmp"))
        if not options.keep:
            parts.callback(shutil.rmtree, folder)
        stack = parts.enter_context(open_stack(options.stack, folder))
        stack.add_pictures(options.images, seed=0)
        settings = Settings()
        upgrade_database(settings.resolved_database_url)
        database = open_database(settings.resolved_database_url)
        make_campaign(settings, database, stack.images, NAME, lease_s=LEASE_S)
        database.close()
        began = time.monotonic()
        ledger, faults, exports = label_under_faults(stack, options)
        seconds = time.monotonic() - began
        say(stack, "checking")
        wrong = check(NAME, ledger, exports)
    lines = [f"{count:6d}  {name}" for name, count in faults.most_common()]
    lines += ["", *(f"{count:6d}  {name}" for name, count in sorted(ledger.counts.items())), ""]
    lines += [f"{faults.total()} faults, {len(ledger.acked)} acknowledged events of {len(ledger.made)} made, "
              f"{len(exports)} exports, {seconds:.0f} s, {options.stack}, seed {options.seed}"]  # fmt: skip
    lines += wrong[:50] or ["Every acknowledged event is in the log once and in order; nothing is wrong."]
    lines += [f"The logs are in {folder}"] if options.keep else []
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
