"""How fast and in how much memory a snapshot is exported, against what the libraries do with the same content.

    python benchmarks/export_speed.py [--images 2000] [--masks-per-image 10] [--clicks-per-mask 3] [--sample 20000]

Makes a catalogue in a temporary SQLite file: images of three sizes and masks of 16 to 600 pixels, with every click's
result. Exports it in processes of their own, as Parquet (images by URI), as COCO and as both, and prints CPU seconds
and peak memory of each. The yardsticks, in the same run: pyarrow writing the tables of the export again (with its
defaults and zstd, and with the export's own settings), and orjson writing the COCO file's objects again, for a sample
of them.
"""

# ruff: noqa: C408

import argparse
import json
import multiprocessing
import re
import tempfile
import time
import uuid
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sqlalchemy import insert

from pipeline.export.snapshot import export_snapshot
from pipeline.masks.rle import encode_runs, mask_to_runs
from pipeline.storage.annotators import get_or_create_annotator
from pipeline.storage.campaigns import create_campaign, get_campaign
from pipeline.storage.database import Database, open_database
from schemas.campaigns import CampaignRecord
from schemas.columns import db_now
from schemas.tables import EventResult, EventRow, Image, Instance, MaskRow, Session, Task

SIZES = ((480, 640), (768, 1024), (1080, 1920))
OUTLINES = 2000
DIAMETERS = (16, 600)
TABLES = (Image, Task, Session, EventRow, EventResult, MaskRow, Instance)
TIMES = {"created_at", "updated_at", "server_time"}
ENGINE = {"runtime": "torch", "device": "cpu", "dtype": "float32", "threads": 1}
FORMATS = {"parquet": ["parquet"], "coco": ["coco"], "parquet_and_coco": ["parquet", "coco"]}


class Outlines:
    """Ragged masks anywhere in an image of one size, as the catalogue holds them.

    Moving a mask changes only its first and last run, so that the others are encoded once.
    """

    def __init__(self, random: np.random.Generator, height: int, width: int) -> None:
        self.random, self.height, self.width = random, height, width
        self.pool = [self._outline() for _ in range(OUTLINES)]

    def draw(self) -> dict[str, Any]:
        """A mask's columns."""
        body, runs, side, area = self.pool[self.random.integers(OUTLINES)]
        x, y = int(self.random.integers(self.width - side - 1)), int(self.random.integers(self.height - side - 1))
        first = int(runs[0]) + x * self.height + y
        last = self.height * self.width - first - int(runs[1:-1].sum())
        counts = f"{_number(first)}{body}{_number(last - int(runs[-3]))}"
        return {"rle_counts": counts, "area": area, "bbox": [x, y, side, side]}

    def _outline(self) -> tuple[str, NDArray[np.int64], int, int]:
        low, high = np.log(DIAMETERS[0]), np.log(min(DIAMETERS[1], self.height - 4))
        side = int(np.exp(self.random.uniform(low, high)))
        angles = np.linspace(0, 2 * np.pi, max(12, side // 4), endpoint=False)
        radii = side / 2 * (1 - 0.25 * self.random.random(angles.size))
        points = side / 2 + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        mask = np.zeros((self.height, side + 3), np.uint8)
        cv2.fillPoly(mask, [points.round().astype(np.int32) + 1], 1)
        runs = mask_to_runs(mask.view(np.bool_))
        first, last = _number(int(runs[0])), _number(int(runs[-1] - runs[-3]))
        return encode_runs(runs)[len(first) : -len(last)], runs, side, int(mask.sum())


def _number(value: int) -> str:
    return encode_runs(np.array([value]))


def fill(database: Database, num_images: int, per_image: int, per_mask: int) -> CampaignRecord:
    """A campaign whose images are all labelled."""
    random = np.random.default_rng(0)
    outlines = [Outlines(random, *size) for size in SIZES]
    campaign_id, number = str(uuid.uuid4()), 0
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
        annotators = [get_or_create_annotator(conn, f"bench {place}").id for place in range(5)]
    for start in range(0, num_images, 500):
        rows: dict[Any, list[dict[str, Any]]] = {table: [] for table in TABLES}
        for index in range(start, min(start + 500, num_images)):
            shapes = outlines[index % len(outlines)]
            image, task, session = (str(uuid.uuid4()) for _ in range(3))
            annotator, sha = annotators[index % len(annotators)], random.bytes(32).hex()
            common = {"campaign_id": campaign_id, "image_id": image}
            rows[Image].append(
                dict(id=image, campaign_id=campaign_id, number=index + 1, uri=f"/images/{index}.jpg",
                     file_name=f"{index}.jpg", sha256=sha, phash="0" * 16, group_key=sha, holdout=index % 5 == 0,
                     width=shapes.width, height=shapes.height, format="JPEG", size_bytes=10**6, encode_attempts=0)
            )  # fmt: skip
            rows[Task].append(dict(common, id=task, state="done", priority=0.0, position=index, lease_no=1))
            rows[Session].append(
                dict(common, id=session, task_id=task, annotator_id=annotator, lease_no=1, epoch=1,
                     last_seq=per_image * per_mask, state="submitted")
            )  # fmt: skip
            for item in range(per_image):
                instance, mask, number = str(uuid.uuid4()), str(uuid.uuid4()), number + 1
                shape, pins = shapes.draw(), {"model_digest": "d" * 64, "adapter_digest": "a" * 64}
                x, y, side, _ = shape["bbox"]
                events = [str(uuid.uuid4()) for _ in range(per_mask)]
                digests = [random.bytes(32).hex() for _ in range(per_mask)]
                rows[EventRow] += [
                    dict(event_id=event, session_id=session, seq=item * per_mask + place + 1, session_epoch=1,
                         lease_no=1, instance_id=instance, kind="click", payload_sha256=digests[place],
                         payload={"v": 1, "x": x + side * random.random(), "y": y + side * random.random(),
                                  "is_positive": place % 3 != 1},
                         pins=None if place else pins, annotator_id=annotator)
                    for place, event in enumerate(events)
                ]  # fmt: skip
                rows[EventResult] += [
                    dict(event_id=event, mask_sha256=digest, roi=[y, x, y + side, x + side], engine=ENGINE,
                         scores=[float(np.float32(random.random()))], embedding_digest=sha,
                         latency_ms={"fetch": round(random.random(), 3), "model": round(20 * random.random(), 3)})
                    for event, digest in zip(events, digests, strict=True)
                ]  # fmt: skip
                rows[MaskRow].append(
                    dict(common, **shape, id=mask, number=number, instance_id=instance, version=1, source="annotator",
                         session_id=session, event_id=events[-1], seq=(item + 1) * per_mask, annotator_id=annotator,
                         category_number=1 + number % 2, height=shapes.height, width=shapes.width,
                         mask_sha256=digests[-1], num_clicks=per_mask, model_digest="d" * 64,
                         adapter_digest="a" * 64, embedding_digest=sha)
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


def export(url: str, campaign_name: str, to: str, formats: list[str]) -> dict[str, Any]:
    """Export in this process: counts, CPU seconds, and peak memory before and after."""
    database = open_database(url)
    with database.connect() as conn:
        campaign = get_campaign(conn, campaign_name)
    before = peak_mb()
    report, cpu_s = timed(lambda: export_snapshot(database, campaign, to, formats, images="uri"))
    return {"counts": report.counts, "cpu_s": cpu_s, "before_mb": before, "peak_mb": peak_mb()}


def in_new_process(call: Any, *args: Any) -> Any:
    """What a function returns in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, args)


def peak_mb() -> int:
    """The most memory that this program has had resident, in MB."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024  # type: ignore[index]


def timed(call: Any) -> tuple[Any, float]:
    """A call's result and CPU seconds."""
    began = time.process_time()
    result = call()
    return result, time.process_time() - began


def raw_parquet(folder: Path, **options: Any) -> float:
    """CPU seconds that pyarrow takes to write the tables of an export again, a shard at a time, when they are ready."""
    seconds = 0.0
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        chosen = {name: value.get(path.name.split("-")[0]) if isinstance(value, dict) else value
                  for name, value in options.items()}  # fmt: skip
        seconds += timed(lambda t=table, c=chosen: pq.write_table(t, folder / "raw", compression="zstd", **c))[1]
    (folder / "raw").unlink()
    return seconds


def raw_coco(path: Path, sample: int) -> float:
    """CPU seconds that orjson takes per annotation of a COCO file, line by line into a file, when they are ready."""
    with path.open("rb") as file:
        lines = (line.rstrip(b"],\n") for line in file)
        items = [orjson.loads(line) for line in islice((line for line in lines if b'"segmentation"' in line), sample)]

    def write() -> None:
        with (path.parent / "raw").open("wb") as out:
            for item in items:
                out.write(orjson.dumps(item))
                out.write(b",\n")

    return timed(write)[1] / len(items)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--masks-per-image", type=int, default=10)
    parser.add_argument("--clicks-per-mask", type=int, default=3)
    parser.add_argument("--sample", type=int, default=20_000, help="annotations that orjson writes again")
    parser.add_argument("--keep", metavar="DIR", help="make the catalogue here, or use the one that is here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.keep) as folder:
        path = Path(options.keep or folder, "clickloop.db")
        url = f"sqlite:///{path}"
        if not path.exists():
            in_new_process(make, url, options.images, options.masks_per_image, options.clicks_per_mask)
        runs = {name: in_new_process(export, url, "benchmark", f"{folder}/{name}", FORMATS[name]) for name in FORMATS}
        tables = Path(folder, "parquet", "parquet")
        raw_s = in_new_process(raw_parquet, tables)
        object_s = in_new_process(raw_coco, Path(folder, "coco", "coco", "instances.json"), options.sample)
    counts = runs["parquet"]["counts"]
    rows = counts["images"] + counts["annotations"] + counts["clicks"]
    coco_s = runs["coco"]["cpu_s"] / max(counts["annotations"], 1)
    figures = {
        "rows": counts,
        "cpu_s": {name: round(run["cpu_s"], 3) for name, run in runs.items()} | {"pyarrow": round(raw_s, 3)},
        "parquet_rows_per_cpu_s": round(rows / runs["parquet"]["cpu_s"]),
        "pyarrow_rows_per_cpu_s": round(rows / raw_s),
        "parquet_to_pyarrow_ratio": round(raw_s / runs["parquet"]["cpu_s"], 3),
        "coco_masks_per_cpu_s": round(1 / coco_s),
        "orjson_masks_per_cpu_s": round(1 / object_s),
        "coco_to_orjson_ratio": round(object_s / coco_s, 3),
        "peak_memory_mb": {name: run["peak_mb"] for name, run in runs.items()},
        "memory_before_mb": {name: run["before_mb"] for name, run in runs.items()},
    }
    print(json.dumps(figures, indent=2))


def make(url: str, *sizes: int) -> None:
    """Make the catalogue."""
    fill(open_database(url), *sizes)


if __name__ == "__main__":
    main()
