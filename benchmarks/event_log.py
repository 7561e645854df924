"""What the event log costs: events per second by group commit against one commit each, and CPU time per event.

python benchmarks/event_log.py [--events N] [--writers N] [--url URL of an empty database]
"""

import argparse
import tempfile
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import Connection

from pipeline.storage.annotators import get_or_create_annotator
from pipeline.storage.campaigns import create_campaign
from pipeline.storage.click_log import Appended, append_event
from pipeline.storage.database import Database, open_database, upgrade_database
from pipeline.storage.images import add_image
from pipeline.storage.tasks import claim_task
from pipeline.storage.writer import GroupWriter
from schemas.campaigns import Claim
from schemas.events import EventIn


def prepare(database: Database, sessions: int) -> tuple[str, list[Claim]]:
    """A campaign with one claimed task per session."""
    campaign_id = str(uuid.uuid4())
    with database.begin() as conn:
        annotator_id = get_or_create_annotator(conn, "bench").id
        create_campaign(
            conn,
            campaign_id=campaign_id,
            name=campaign_id,
            source_url="/bench",
            model_id="none",
            model_digest="0" * 64,
            model_key="none",
        )
        for index in range(sessions):
            digest = uuid.uuid4().hex * 2
            add_image(
                conn,
                campaign_id,
                uri=f"/bench/{index}",
                file_name=str(index),
                uri_sha256=digest,
                version="1",
                sha256=digest,
                phash="0" * 16,
                group_key=digest,
                width=1920,
                height=1080,
                format="JPEG",
                size_bytes=1,
            )
        claims = [
            claim_task(conn, campaign_id, annotator_id, claim_id=str(uuid.uuid4()), lease_s=600.0)
            for _ in range(sessions)
        ]
    return annotator_id, [claim for claim in claims if claim is not None]


def click(claim: Claim, seq: int) -> EventIn:
    """A click as a client sends it."""
    return EventIn(
        event_id=uuid.uuid4(),
        seq=seq,
        session_epoch=claim.epoch,
        lease_no=claim.lease_no,
        instance_id=uuid.UUID(claim.task_id),
        kind="click",
        payload={"x": 10.5, "y": 20.25, "is_positive": True},
    )


def one_by_one(database: Database, annotator_id: str, claim: Claim, events: int) -> tuple[float, float]:
    """Seconds of wall clock and of CPU for one commit per event."""
    sent = [click(claim, seq) for seq in range(1, events + 1)]
    wall, cpu = time.perf_counter(), time.process_time()
    for event in sent:
        with database.begin() as conn:
            append_event(conn, claim.session_id, event, annotator_id, lease_s=600.0)
    return time.perf_counter() - wall, time.process_time() - cpu


def grouped(database: Database, annotator_id: str, claims: list[Claim], events: int) -> tuple[float, float, int]:
    """Seconds of wall clock and CPU, and the number of commits, for as many sessions that each wait for their ack."""
    writer = GroupWriter(database)

    def session(claim: Claim) -> None:
        for seq in range(1, events // len(claims) + 1):
            event = click(claim, seq)

            def write(conn: Connection, event: EventIn = event) -> Appended:
                return append_event(conn, claim.session_id, event, annotator_id, lease_s=600.0)

            future: Future[Appended] = writer.submit(write)
            future.result()

    wall, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(len(claims)) as pool:
        list(pool.map(session, claims))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    commits = writer.commits
    writer.close()
    return wall, cpu, commits


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--events", type=int, default=1000, help="events of each run")
    parser.add_argument("--writers", type=int, default=32, help="sessions that write at once")
    parser.add_argument("--url", help="SQLAlchemy URL of an empty database; a SQLite file in a temporary folder if not")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = options.url or f"sqlite:///{Path(folder) / 'bench.db'}"
        upgrade_database(url)
        database = open_database(url)
        annotator_id, claims = prepare(database, options.writers + 2)
        one_by_one(database, annotator_id, claims[0], 20)  # warm
        single_s, single_cpu = one_by_one(database, annotator_id, claims[1], options.events)
        group_s, group_cpu, commits = grouped(database, annotator_id, claims[2:], options.events)
        database.close()
    done = options.events // options.writers * options.writers
    single_rate, single_ms, group_ms = (
        options.events / single_s,
        single_cpu / options.events * 1e3,
        group_cpu / done * 1e3,
    )
    print(f"database               {database.dialect}")
    print(f"one commit per event   {single_rate:8.0f} events/s  {1e3 / single_rate:6.2f} ms")
    print(f"group commit           {done / group_s:8.0f} events/s  {done / commits:6.1f} events per commit")
    print(f"ratio grouped / single {done / group_s / single_rate:8.2f}")
    print(f"CPU per event          {single_ms:8.2f} ms single, {group_ms:.2f} ms grouped")


if __name__ == "__main__":
    main()
