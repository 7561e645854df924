"""How the catalogue's queries grow with its size: the same ones at each size, and by how much each decade takes longer.

Synthetic rows in the real tables, made by the database itself: nine images in ten are encoded, a fifth is labelled
with two masks of one click each, by ten people who accept a mask in half a minute. The queries are the product's. One
that is flat or logarithmic stays near 1 while the rows grow tenfold; one that counts grows with them. Times are of the
processor (Linux; a PostgreSQL server on this machine), so that other work does not count.

    python benchmarks/growth.py [--sizes 10000 100000 1000000] [--url sqlite:///... or postgresql+psycopg://...]
"""

import argparse
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from sqlalchemy import Connection, text

from pipeline.storage.adapters import list_adapters
from pipeline.storage.annotators import get_or_create_annotator
from pipeline.storage.browsing import BrowseFilter, browse_images
from pipeline.storage.campaigns import campaign_status, create_campaign, get_campaign
from pipeline.storage.database import Database, open_database
from pipeline.storage.images import count_images, missing_embeddings
from pipeline.storage.masks import current_masks
from pipeline.storage.snapshots import create_snapshot, image_page, list_snapshots, mask_columns
from pipeline.storage.statistics import campaign_statistics, progress_of_all
from pipeline.storage.tallies import recount
from pipeline.storage.tasks import claim_task, expired_leases, peek_tasks
from pipeline.storage.triggers import retrain_is_due
from schemas.campaigns import CampaignSettings
from schemas.tallies import sources, triggers

ROUNDS = 15
SLOW_S = 2.0
"""A query that takes longer is asked three times only."""
LABELLED = 5
"""One in so many images is."""
PEOPLE = 10
BATCH = 50_000
Query = Callable[[Connection], object]

COLUMNS = {
    "images": "id, campaign_id, number, uri, file_name, sha256, phash, group_key, holdout, width, height, format, "
    "size_bytes, encode_attempts, created_at",
    "embeddings": "image_sha256, model_key, digest, size_bytes, created_at",
    "tasks": "id, campaign_id, image_id, state, priority, position, lease_no, updated_at",
    "sessions": "id, campaign_id, task_id, image_id, annotator_id, lease_no, epoch, last_seq, state, created_at, "
    "image_number",
    "events": "event_id, session_id, seq, session_epoch, lease_no, instance_id, kind, payload, payload_sha256, "
    "server_time, annotator_id",
    "event_results": "event_id, mask_sha256, scores, engine, latency_ms",
    "masks": "id, campaign_id, number, image_id, instance_id, version, source, session_id, event_id, seq, "
    "annotator_id, category_number, height, width, rle_counts, mask_sha256, area, bbox, num_clicks, model_digest, "
    "created_at",
    "instances": "id, campaign_id, image_id, session_id, state, category_number, unsure, mask_id, image_number",
}
"""In an order in which each row comes after those that it names."""
FIRST = "2026-01-05 12:00:00.000000"


def rows_of(table: str, tag: str, dialect: str) -> str:
    """The SELECT of a table's rows: of image `i`, its mask `j` (0, 1) and event `s` (0: open, 1: click, 2: accept)."""

    def name(kind: str, *more: str) -> str:
        return f"'{tag}{kind}' || (10000000 + i)" + "".join(f" || '-' || {one}" for one in more)

    def at(seconds: str) -> str:
        if dialect == "sqlite":
            return f"strftime('%Y-%m-%d %H:%M:%S.000000', '{FIRST}', ({seconds}) || ' seconds')"
        return f"TIMESTAMPTZ '{FIRST}+00' + ({seconds}) * INTERVAL '1 second'"

    done, seconds, campaign = f"i % {LABELLED} = 0", f"i / {LABELLED} / {PEOPLE} * 60 + j * 30", f"'{tag}'"
    sha, zeros = f"'{tag}' || (10000000 + i)", "'" + "0" * 64 + "'"
    person = f"'person-' || (i / {LABELLED} % {PEOPLE})"
    latency = "'{\"model\": ' || (i % 97) || '}'" if dialect == "sqlite" else "json_build_object('model', i % 97)"
    values = {
        "images": f"{name('i')}, {campaign}, i, '/images/' || i || '.jpg', i || '.jpg', {sha}, '{'0' * 16}', {sha}, "
        f"i % 7 = 1, 640, 480, 'JPEG', 1000000, 0, {at('i')}",
        "embeddings": f"{sha}, 'k', {zeros}, 1000, {at('i')}",
        "tasks": f"{name('t')}, {campaign}, {name('i')}, CASE WHEN {done} THEN 'done' ELSE 'new' END, 0.0, i, "
        f"CASE WHEN {done} THEN 1 ELSE 0 END, {at('i')}",
        "sessions": f"{name('s')}, {campaign}, {name('t')}, {name('i')}, {person}, 1, 1, 6, 'submitted', {at('i')}, i",
        "events": f"{name('e', 'j', 's')}, {name('s')}, 3 * j + s + 1, 1, 1, {name('o', 'j')}, "
        f"CASE s WHEN 0 THEN 'open' WHEN 1 THEN 'click' ELSE 'accept' END, '{{}}', {zeros}, "
        f"{at(f'{seconds} + 10 * s')}, {person}",
        "event_results": f"{name('e', 'j', '1')}, {zeros}, '[]', '{{}}', {latency}",
        "masks": f"{name('m', 'j')}, {campaign}, 2 * i + j, {name('i')}, {name('o', 'j')}, 1, 'annotator', "
        f"{name('s')}, {name('e', 'j', '2')}, 2, {person}, 1 + j, 480, 640, '{'0' * 60}', {zeros}, 9, "
        f"'[0, 0, 3, 3]', 1, {zeros}, {at(f'{seconds} + 20')}",
        "instances": f"{name('o', 'j')}, {campaign}, {name('i')}, {name('s')}, 'accepted', 1 + j, 1 = 0, "
        f"{name('m', 'j')}, i",
    }
    which = {"images": "1 = 1", "tasks": "1 = 1", "embeddings": "i % 10 <> 0"}.get(table, done)
    masks, events = "(SELECT 0 AS j UNION ALL SELECT 1) m", "(SELECT 0 AS s UNION ALL SELECT 1 UNION ALL SELECT 2) e"
    parts = {"events": [masks, events], "event_results": [masks], "masks": [masks], "instances": [masks]}
    return f"SELECT {values[table]} FROM {', '.join(['numbers', *parts.get(table, [])])} WHERE {which}"


def fill(database: Database, size: int) -> str:
    """A campaign with so many images; its id."""
    campaign = f"c{size}"
    with database.begin() as conn:
        create_campaign(
            conn,
            campaign_id=campaign,
            name=f"growth {size}",
            source_url="/images",
            model_id="toy-color",
            model_digest="d" * 64,
            model_key="k",
            labels=["cat", "dog"],
            settings=CampaignSettings(retrain_every_masks=10**9),
        )
        for person in range(PEOPLE):
            known = (
                "INSERT INTO annotators (id, name, pseudonym, created_at) VALUES ('person-{0}', 'p{0}', 'q{0}', '{1}')"
            )
            conn.execute(text(f"{known.format(person, FIRST)} ON CONFLICT DO NOTHING"))
        for statement in _without_triggers(conn.dialect.name):
            conn.exec_driver_sql(statement)
    for table, columns in COLUMNS.items():
        for first in range(1, size + 1, BATCH):
            numbers = (
                f"WITH RECURSIVE numbers(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM numbers "
                f"WHERE i < {min(first + BATCH - 1, size)})"
            )
            with database.begin() as conn:
                rows = rows_of(table, campaign, conn.dialect.name)
                conn.execute(text(f"INSERT INTO {table} ({columns}) {numbers} {rows}".replace(":", "\\:")))
    with database.begin() as conn:
        recount(conn)
        for source in sources():
            for statement in triggers(source, conn.dialect.name):
                conn.exec_driver_sql(statement)
        create_snapshot(conn, campaign, "export")
    if database.dialect == "postgresql":
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.exec_driver_sql("VACUUM ANALYZE")
    return campaign


def _without_triggers(dialect: str) -> list[str]:
    """Counting each of millions of rows by itself is no part of what is measured; they are counted at once instead."""
    created = [
        (source, one.split()[2]) for source in sources() for one in triggers(source, dialect) if "CREATE TRIGGER" in one
    ]
    return [f"DROP TRIGGER {name}" + (f" ON {source}" if dialect == "postgresql" else "") for source, name in created]


def queries(conn: Connection, campaign: str, annotator: str, size: int) -> dict[str, tuple[Query, bool]]:
    """The product's queries by name, and whether one writes."""
    middle = size // 2
    record = get_campaign(conn, campaign)
    snapshot = list_snapshots(conn, campaign)[0].id
    by_category, by_state = BrowseFilter(category=2), BrowseFilter(state="done")
    of_none, by_person = BrowseFilter(state="skipped"), BrowseFilter(annotator_id="person-5")

    def claim(conn: Connection) -> object:
        return claim_task(conn, campaign, annotator, claim_id=str(uuid.uuid4()), lease_s=600)

    def export(conn: Connection) -> object:
        return mask_columns(conn, snapshot, [image.id for image in image_page(conn, snapshot, middle, 100)])

    return {
        "claim a task": (claim, True),
        "look ahead": (lambda conn: peek_tasks(conn, campaign, 3), False),
        "expired leases (/metrics)": (expired_leases, False),
        "whether a retrain is due": (lambda conn: retrain_is_due(conn, record), False),
        "embeddings that are missing, a page": (
            lambda conn: missing_embeddings(conn, campaign, "k", 100, middle), False),
        "browse, a page in the middle": (
            lambda conn: browse_images(conn, campaign, BrowseFilter(), after=middle, preview=64), False),
        "browse by state": (lambda conn: browse_images(conn, campaign, by_state, preview=64), False),
        "browse by a state that no image has": (lambda conn: browse_images(conn, campaign, of_none), False),
        "browse by category": (lambda conn: browse_images(conn, campaign, by_category, preview=64), False),
        "browse by annotator": (lambda conn: browse_images(conn, campaign, by_person, preview=64), False),
        "current masks, a page in the middle": (
            lambda conn: current_masks(conn, campaign, after=middle, limit=100), False),
        "export, 100 images in the middle": (export, False),
        "number of images": (lambda conn: count_images(conn, campaign), False),
        "snapshots": (lambda conn: list_snapshots(conn, campaign), False),
        "adapters": (lambda conn: list_adapters(conn, campaign), False),
        "status": (lambda conn: campaign_status(conn, campaign), False),
        "statistics": (lambda conn: campaign_statistics(conn, campaign), False),
        "all campaigns' progress": (progress_of_all, False),
    }  # fmt: skip


def timed(database: Database, query: Query, writes: bool) -> float:
    """Median milliseconds of processor time, of this process and of the server's for it."""
    server = None
    if database.dialect == "postgresql":
        with database.connect() as conn:
            server = conn.execute(text("SELECT pg_backend_pid()")).scalar_one()
    spent: list[float] = []
    while len(spent) < (ROUNDS if not spent or spent[0] < 1e3 * SLOW_S else 3):
        began = _cpu_ms(server)
        with database.begin() if writes else database.connect() as conn:
            query(conn)
        spent.append(_cpu_ms(server) - began)
    return statistics.median(spent)


def _cpu_ms(server: int | None) -> float:
    """What this process and the server's have computed so far; other work on the machine does not lengthen it."""
    theirs = 0 if server is None else int(Path(f"/proc/{server}/schedstat").read_text().split()[0])
    return 1e3 * time.process_time() + theirs / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="images, smallest first")
    parser.add_argument("--url", help="an empty database on this machine (default: SQLite in a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(options.url or f"sqlite:///{Path(folder) / 'growth.db'}", embedded=True)
        found: dict[str, list[float]] = {}
        for size in options.sizes:
            began = time.perf_counter()
            campaign = fill(database, size)
            print(f"{size:,} images filled in {time.perf_counter() - began:.0f} s", flush=True)
            with database.begin() as conn:
                annotator = get_or_create_annotator(conn, "bench").id
                named = queries(conn, campaign, annotator, size)
            for name, (query, writes) in named.items():
                found.setdefault(name, []).append(timed(database, query, writes))
        database.close()
    head = "".join(f"{size:>12,}" for size in options.sizes)
    print(f"{'median CPU ms at so many images':<40}{head}   times as long as at the size before")
    for name, values in found.items():
        factors = ", ".join(f"{later / earlier:.1f}" for earlier, later in pairwise(values))
        print(f"{name:<40}{''.join(f'{value:12.2f}' for value in values)}   {factors}")


if __name__ == "__main__":
    main()
