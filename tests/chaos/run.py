"""make chaos: annotators label a campaign while processes die and stop at random; then the log must hold every ack.

    python -m tests.chaos.run [--faults 200] [--seed 0] [--annotators 8] [--images 400] [--stack sqlite|postgres]

Prints what was done to it and what was found; exit status 1 if anything that was acknowledged is missing, doubled or
out of order, a task was worked on by two at once, the export lacks a mask, or replay gives another one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import select

from pipeline.storage import masks
from pipeline.storage.database import Database, open_database, upgrade_database
from schemas.settings import Settings
from schemas.tables import EventRow, Lease, Session, Task
from tests.chaos.annotators import Annotator, Ledger
from tests.chaos.faults import Faults
from tests.databases import running_postgres
from tests.flows.scenes import make_campaign, write_pictures
from tests.integration.test_kill import serving

LEASE_S = 6.0
NAME = "discs"
FINISH_S = 600.0
"""What is left of the campaign must be done within this after the last fault."""
GAP_S = (0.3, 2.0)


def label_under_faults(workspace: Path, options: argparse.Namespace, more: dict[str, Callable[[], None]]) -> Ledger:
    """Run annotators and faults against a `serve` until the campaign is finished."""
    ledger = Ledger()
    with serving(workspace, uuid4().hex) as (server, url):
        people = [
            Annotator(url, NAME, ledger, f"person {number}", 1000 * options.seed + number, LEASE_S)
            for number in range(options.annotators)
        ]
        for person in people:
            person.start()
        faults = Faults(server, people, options.seed, LEASE_S, more)
        while faults.counts.total() < options.faults:
            assert server.poll() is None, "serve ended"
            faults.one()
            time.sleep(faults.rng.uniform(*GAP_S))
            say(f"{faults.counts.total()} faults, {len(ledger.acked)} events acknowledged")
        finish(workspace, ledger)
        ledger.stopped.set()
        for person in people:
            person.join(timeout=60)
        ledger.counts |= {f"fault: {name}": count for name, count in faults.counts.items()}
        export = ["export", NAME, "--to", str(workspace.parent / "out"), "--format", "coco"]
        command = [sys.executable, "-m", "flows.cli", *export, "--workspace", str(workspace), "--json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return ledger


def finish(workspace: Path, ledger: Ledger) -> None:
    """Wait until no task is left."""
    end = time.monotonic() + FINISH_S
    with database_of(workspace) as database:
        while time.monotonic() < end:
            with database.connect() as conn:
                states = Counter(conn.execute(select(Task.state)).scalars())
            if set(states) <= {"done", "submitted"}:
                return
            say(f"finishing: {dict(states)}")
            time.sleep(1)
    ledger.wrong.append(f"the campaign did not finish: {dict(states)}")


@contextmanager
def database_of(workspace: Path) -> Iterator[Database]:
    """The run's database."""
    database = open_database(Settings(workspace=workspace).resolved_database_url)
    try:
        yield database
    finally:
        database.close()


def check(workspace: Path, ledger: Ledger) -> list[str]:
    """What is wrong with what is stored."""
    wrong = list(ledger.wrong)
    with database_of(workspace) as database, database.connect() as conn:
        events = conn.execute(
            select(EventRow.event_id, EventRow.session_id, EventRow.seq, EventRow.lease_no, EventRow.server_time)
        ).all()
        sessions = {row.id: row for row in conn.execute(select(Session.id, Session.task_id, Session.lease_no))}
        leases = conn.execute(select(Lease.task_id, Lease.lease_no, Lease.acquired_at)).all()
        (campaign,) = set(conn.execute(select(Task.campaign_id)).scalars())
        current = {mask.number: mask for mask in masks.current_masks(conn, campaign)}
    logged = {row.event_id: (row.session_id, row.seq) for row in events}
    wrong += [f"acknowledged, not in the log: {name} {place}" for name, place in ledger.acked.items()
              if logged.get(name) != place]  # fmt: skip
    wrong += [f"in the log, never made: {name}" for name in logged.keys() - ledger.made]
    by_session: dict[str, list[int]] = defaultdict(list)
    last: dict[tuple[str, int], Any] = {}
    for row in events:
        by_session[row.session_id].append(row.seq)
        key = (sessions[row.session_id].task_id, row.lease_no)
        last[key] = max(last.get(key, row.server_time), row.server_time)
        if row.lease_no != sessions[row.session_id].lease_no:
            wrong.append(f"event {row.event_id} was written under lease {row.lease_no}, not its session's")
    for session, seqs in by_session.items():
        if sorted(seqs) != list(range(1, len(seqs) + 1)):
            wrong.append(f"session {session} has gaps: {sorted(seqs)}")
    for lease in leases:
        before = last.get((lease.task_id, lease.lease_no - 1))
        if before is not None and before > lease.acquired_at:
            wrong.append(
                f"task {lease.task_id}: lease {lease.lease_no - 1} wrote at {before}, after {lease.acquired_at}"
            )
    wrong += _check_export(workspace, current)
    return wrong + _check_replay(workspace)


def _check_export(workspace: Path, current: dict[int, Any]) -> list[str]:
    (path,) = (workspace.parent / "out").rglob("instances.json")
    exported = {one["id"]: one["segmentation"]["counts"] for one in json.loads(path.read_text())["annotations"]}
    stored = {number: mask.rle_counts for number, mask in current.items()}
    return (
        [] if exported == stored else [f"the export has {len(exported)} masks, the catalogue {len(stored)}, or others"]
    )


def _check_replay(workspace: Path) -> list[str]:
    command = [sys.executable, "-m", "flows.cli", "replay", NAME, "--json", "--workspace", str(workspace)]
    done = subprocess.run(command, capture_output=True, text=True)
    report = json.loads(done.stdout)
    same = report["masks"] == report["identical"] and report["events"] == report["events_identical"]
    return [] if same and done.returncode == 0 else [f"replay: {report['mismatches'][:3]}"]


def say(text: str) -> None:
    """Progress on one line of a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text:<100}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--annotators", type=int, default=8)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--stack", choices=("sqlite", "postgres"), default="sqlite")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        workspace = Path(folder) / "workspace"
        more: dict[str, Callable[[], None]] = {}
        if options.stack == "postgres":
            server = stack.enter_context(running_postgres())
            os.environ["CLICKLOOP_DATABASE_URL"] = server.url(server.create())

            def restart() -> None:
                server.stop()  # at once, as after a crash
                time.sleep(0.5)
                server.start()

            more["database killed"] = restart
        os.environ["CLICKLOOP_MIN_FREE_BYTES"] = "0"
        settings = Settings(workspace=workspace)
        upgrade_database(settings.resolved_database_url)
        database = open_database(settings.resolved_database_url)
        make_campaign(settings, database, write_pictures(Path(folder), options.images), NAME, lease_s=LEASE_S)
        database.close()
        began = time.monotonic()
        ledger = label_under_faults(workspace, options, more)
        seconds = time.monotonic() - began
        wrong = check(workspace, ledger)
    lines = [f"{count:6d}  {name}" for name, count in sorted(ledger.counts.items())]
    lines.append(
        f"{len(ledger.acked)} acknowledged events of {len(ledger.made)} made, {seconds:.0f} s, {options.stack}"
    )
    lines += wrong[:50] or ["Every acknowledged event is in the log once and in order; nothing is wrong."]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
