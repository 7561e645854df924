"""How fast a snapshot is exported, against pyarrow writing the same arrays when they are ready.

    python benchmarks/export_speed.py [--images 5000] [--masks-per-image 5] [--clicks-per-mask 3]

Makes a catalogue of synthetic masks in a temporary folder (SQLite), exports it as Parquet (images by URI) and as COCO,
and prints CPU seconds and rows per CPU second of each stage, the ratio to the raw write, and the peak memory.
"""

# ruff: noqa: C408

import argparse
import json
import resource
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from sqlalchemy import insert

from pipeline.export.snapshot import export_snapshot
from pipeline.masks.boxes import mask_box_xywh
from pipeline.masks.rle import mask_to_rle
from pipeline.storage.annotators import get_or_create_annotator
from pipeline.storage.campaigns import create_campaign, get_campaign
from pipeline.storage.database import Database, open_database
from schemas.campaigns import CampaignRecord
from schemas.columns import db_now
from schemas.tables import EventRow, Image, Instance, MaskRow, Session, Task

HEIGHT, WIDTH = 768, 1024
TABLES = (Image, Task, Session, EventRow, MaskRow, Instance)
TIMES = {"created_at", "updated_at", "server_time"}


def masks(count: int) -> list[dict[str, Any]]:
    """A few ragged masks as the catalogue holds them."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    found = []
    for _ in range(count):
        y, x = random.uniform(100, 600), random.uniform(100, 900)
        angle = np.arctan2(rows - y, columns - x)
        radius = 60 + 30 * np.sin(5 * angle + random.uniform(0, 6)) + 12 * np.sin(13 * angle)
        mask = np.hypot(rows - y, columns - x) < radius
        facts = {"rle_counts": mask_to_rle(mask).counts, "area": int(mask.sum()), "bbox": list(mask_box_xywh(mask))}
        found.append(facts)
    return found


def fill(database: Database, num_images: int, per_image: int, per_mask: int) -> CampaignRecord:
    """A campaign whose images are all labelled."""
    campaign_id, shapes, number = str(uuid.uuid4()), masks(20), 0
    with database.begin() as conn:
        create_campaign(
            conn,
            campaign_id=campaign_id,
            name="benchmark",
            source_url="/images",
            model_id="toy-color",
            model_digest="d" * 64,
            model_key="k",
            labels=["cat", "dog"],
        )
        annotator = get_or_create_annotator(conn, "bench").id
    for start in range(0, num_images, 500):
        rows: dict[Any, list[dict[str, Any]]] = {table: [] for table in TABLES}
        for index in range(start, min(start + 500, num_images)):
            image, task, session = (str(uuid.uuid4()) for _ in range(3))
            sha = f"{index:064x}"
            common = {"campaign_id": campaign_id, "image_id": image}
            rows[Image].append(
                dict(id=image, campaign_id=campaign_id, number=index + 1, uri=f"/images/{index}.jpg",
                     file_name=f"{index}.jpg", sha256=sha, phash="0" * 16, group_key=sha, holdout=index % 5 == 0,
                     width=WIDTH, height=HEIGHT, format="JPEG", size_bytes=10**6, encode_attempts=0)
            )  # fmt: skip
            rows[Task].append(dict(common, id=task, state="done", priority=0.0, position=index, lease_no=1))
            rows[Session].append(
                dict(common, id=session, task_id=task, annotator_id=annotator, lease_no=1, epoch=1,
                     last_seq=per_image * per_mask, state="submitted")
            )  # fmt: skip
            for item in range(per_image):
                instance, mask, number = str(uuid.uuid4()), str(uuid.uuid4()), number + 1
                events = [str(uuid.uuid4()) for _ in range(per_mask)]
                rows[EventRow] += [
                    dict(event_id=event, session_id=session, seq=item * per_mask + place + 1, session_epoch=1,
                         lease_no=1, instance_id=instance, kind="click", payload_sha256="e" * 64,
                         payload={"v": 1, "x": 1.0, "y": 2.0, "is_positive": True}, annotator_id=annotator)
                    for place, event in enumerate(events)
                ]  # fmt: skip
                rows[MaskRow].append(
                    dict(common, **shapes[number % 20], id=mask, number=number, instance_id=instance, version=1,
                         source="annotator", session_id=session, event_id=events[-1], seq=per_mask,
                         annotator_id=annotator, category_number=1 + number % 2, height=HEIGHT, width=WIDTH,
                         mask_sha256="f" * 64, num_clicks=per_mask, model_digest="d" * 64)
                )  # fmt: skip
                rows[Instance].append(
                    dict(common, id=instance, session_id=session, state="accepted", category_number=1 + number % 2,
                         unsure=False, mask_id=mask)
                )  # fmt: skip
        with database.begin() as conn:
            for table, values in rows.items():
                if values:
                    times = {c.name: db_now() for c in table.__table__.c if c.name in TIMES}
                    conn.execute(insert(table).values(times), values)
    with database.connect() as conn:
        return get_campaign(conn, campaign_id)


def timed(call: Any) -> tuple[Any, float]:
    """A call's result and CPU seconds."""
    began = time.process_time()
    result = call()
    return result, time.process_time() - began


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--masks-per-image", type=int, default=5)
    parser.add_argument("--clicks-per-mask", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(f"sqlite:///{folder}/clickloop.db")
        campaign = fill(database, options.images, options.masks_per_image, options.clicks_per_mask)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report, parquet_s = timed(lambda: export_snapshot(database, campaign, f"{folder}/a", ["parquet"], images="uri"))
        _, coco_s = timed(lambda: export_snapshot(database, campaign, f"{folder}/b", ["coco"], images="uri"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        raw_s = sum(raw_write(path, Path(folder)) for path in sorted(Path(folder, "a", "parquet").glob("*.parquet")))
    rows = report.counts["images"] + report.counts["annotations"] + report.counts["clicks"]
    figures = {
        "rows": report.counts,
        "parquet_rows_per_cpu_s": round(rows / parquet_s),
        "raw_write_rows_per_cpu_s": round(rows / raw_s),
        "export_to_raw_ratio": round(raw_s / parquet_s, 4),
        "coco_masks_per_cpu_s": round(report.counts["annotations"] / coco_s),
        "peak_memory_growth_mb": round((peak - before) / 1024),
    }
    print(json.dumps(figures, indent=2))


def raw_write(path: Path, folder: Path) -> float:
    """CPU seconds that pyarrow takes to write a file's table again with its defaults and zstd."""
    table = pq.read_table(path)
    return timed(lambda: pq.write_table(table, folder / "raw.parquet", compression="zstd"))[1]


if __name__ == "__main__":
    main()
