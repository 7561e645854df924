"""How the catalogue's queries grow with its size: the same ones at each size, largest over smallest.

Synthetic rows in the real tables, a fifth of the images labelled with two masks each; the queries are the product's.
A query that is flat or logarithmic stays near 1 while the rows grow tenfold; one that counts grows with them.

    python benchmarks/growth.py [--sizes 10000 100000] [--url sqlite:///... or postgresql+psycopg://...]
"""

import argparse
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert

from pipeline.storage.annotators import get_or_create_annotator
from pipeline.storage.browsing import BrowseFilter, browse_images
from pipeline.storage.campaigns import campaign_status, create_campaign
from pipeline.storage.database import Database, open_database
from pipeline.storage.images import missing_embeddings
from pipeline.storage.masks import current_masks
from pipeline.storage.statistics import progress_of_all
from pipeline.storage.tasks import claim_task, peek_tasks
from schemas.columns import db_now
from schemas.tables import Image, Instance, MaskRow, Session, Task

ROUNDS = 15
BATCH = 2000
LABELLED = 5
"""One in so many images is."""
TIMES = ("created_at", "updated_at")
Query = Callable[[Connection], object]


def fill(database: Database, size: int) -> str:
    """A campaign with so many images; its id."""
    campaign = str(uuid.uuid4())
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
        )
        annotator = get_or_create_annotator(conn, "bench").id
    for start in range(0, size, BATCH):
        with database.begin() as conn:
            for table, values in rows_of(campaign, annotator, range(start, min(start + BATCH, size))).items():
                times = {column.name: db_now() for column in table.__table__.c if column.name in TIMES}
                conn.execute(insert(table).values(times), values)
    return campaign


def rows_of(campaign: str, annotator: str, indices: range) -> dict[Any, list[dict[str, Any]]]:
    """Rows of some images, by table."""
    rows: dict[Any, list[dict[str, Any]]] = {table: [] for table in (Image, Task, Session, MaskRow, Instance)}
    for index in indices:
        image, task, session = (str(uuid.uuid4()) for _ in range(3))
        sha = os.urandom(32).hex()
        common = {"campaign_id": campaign, "image_id": image}
        is_done = index % LABELLED == 0
        rows[Image].append(
            {
                "id": image, "campaign_id": campaign, "number": index + 1, "uri": f"/images/{index}.jpg",
                "file_name": f"{index}.jpg", "sha256": sha, "phash": "0" * 16, "group_key": sha,
                "holdout": index % 5 == 1, "width": 640, "height": 480, "format": "JPEG", "size_bytes": 10**6,
                "encode_attempts": 0,
            }
        )  # fmt: skip
        work = {"state": "done" if is_done else "new", "priority": 0.0, "position": index, "lease_no": int(is_done)}
        rows[Task].append({**common, **work, "id": task})
        if not is_done:
            continue
        ended = {"lease_no": 1, "epoch": 1, "last_seq": 4, "state": "submitted"}
        rows[Session].append({**common, **ended, "id": session, "task_id": task, "annotator_id": annotator})
        for place in (0, 1):
            mask, instance = str(uuid.uuid4()), str(uuid.uuid4())
            rows[MaskRow].append(
                {
                    **common, "id": mask, "number": 2 * index + place + 1, "instance_id": instance, "version": 1,
                    "source": "annotator", "session_id": session, "seq": 2 * place + 2, "annotator_id": annotator,
                    "category_number": 1 + place, "height": 480, "width": 640, "rle_counts": "0" * 60,
                    "mask_sha256": sha, "area": 9, "bbox": [0, 0, 3, 3], "num_clicks": 3, "model_digest": "d" * 64,
                }
            )  # fmt: skip
            made = {"state": "accepted", "category_number": 1 + place, "unsure": False, "mask_id": mask}
            rows[Instance].append({**common, **made, "id": instance, "session_id": session})
    return rows


def queries(campaign: str, annotator: str, size: int) -> dict[str, tuple[Query, bool]]:
    """The product's queries by name, and whether one writes."""
    middle = size // 2
    by_category, by_state = BrowseFilter(category=2), BrowseFilter(state="done")

    def claim(conn: Connection) -> object:
        return claim_task(conn, campaign, annotator, claim_id=str(uuid.uuid4()), lease_s=600)

    return {
        "claim a task": (claim, True),
        "look ahead": (lambda conn: peek_tasks(conn, campaign, 3), False),
        "embeddings that are missing, a page": (
            lambda conn: missing_embeddings(conn, campaign, "k", 100, middle), False),
        "browse, a page in the middle": (
            lambda conn: browse_images(conn, campaign, BrowseFilter(), after=middle, preview=64), False),
        "browse by category": (lambda conn: browse_images(conn, campaign, by_category, preview=64), False),
        "browse by state": (lambda conn: browse_images(conn, campaign, by_state, preview=64), False),
        "current masks, a page in the middle": (
            lambda conn: current_masks(conn, campaign, after=middle, limit=100), False),
        "status": (lambda conn: campaign_status(conn, campaign), False),
        "all campaigns' progress": (progress_of_all, False),
    }  # fmt: skip


def timed(database: Database, query: Query, writes: bool) -> float:
    """Median milliseconds."""
    spent = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        with database.begin() if writes else database.connect() as conn:
            query(conn)
        spent.append(1e3 * (time.perf_counter() - began))
    return statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="images, smallest first")
    parser.add_argument("--url", help="an empty database (default: SQLite in a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(options.url or f"sqlite:///{Path(folder) / 'growth.db'}")
        found: dict[str, list[float]] = {}
        for size in options.sizes:
            campaign = fill(database, size)
            with database.begin() as conn:
                annotator = get_or_create_annotator(conn, "bench").id
            for name, (query, writes) in queries(campaign, annotator, size).items():
                found.setdefault(name, []).append(timed(database, query, writes))
        database.close()
    head = "".join(f"{size:>12,}" for size in options.sizes)
    print(f"{'median ms at so many images':<40}{head}{'ratio':>9}")
    for name, values in found.items():
        print(f"{name:<40}{''.join(f'{value:12.2f}' for value in values)}{values[-1] / values[0]:9.2f}")


if __name__ == "__main__":
    main()
