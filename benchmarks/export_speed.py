"""How fast and in how much memory a snapshot is exported, against what the libraries do with the same content.

    python benchmarks/export_speed.py [--images 2000] [--masks-per-image 10] [--clicks-per-mask 3] [--sample 20000]

Makes a catalogue in a temporary SQLite file: images of three sizes and masks of 16 to 600 pixels, with every click's
result. Exports one snapshot of it as Parquet (images by URI), as COCO and as both, each in a process of its own, and
prints CPU seconds and peak memory. The yardsticks, in the same run, are pyarrow writing the exported tables again
(zstd, else its defaults), orjson writing the COCO file's objects again, and Python's sqlite3 reading the snapshot's
rows.

- `parquet_to_pyarrow` and `coco_to_orjson`: yardstick / whole export, which has to read the database first.
- `parquet_to_floor` and `coco_to_floor`: (yardstick + sqlite3) / whole export.
- `parquet_writer_to_pyarrow` and `coco_writer_to_orjson`: yardstick / writer alone, given ready arrays, on a sample.
- `delta_to_whole`: a delta after a mask was corrected on 1 % of the images, then on as many images as make 1 % of the
  masks / the whole export of the same: CPU time of writing, and of writing and taking the snapshot that both need.
"""

# ruff: noqa: C408

import argparse
import json
import multiprocessing
import re
import sqlite3
import tempfile
import time
import uuid
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sqlalchemy import func, insert, select

from pipeline.export.batches import Clicks, Labels, read_snapshot
from pipeline.export.directory import SnapshotDirectory
from pipeline.export.snapshot import FORMATS, export_snapshot
from pipeline.export.splits import Splits
from pipeline.export.target import Target
from pipeline.masks.rle import encode_runs, mask_to_runs
from pipeline.storage.annotators import get_or_create_annotator
from pipeline.storage.campaigns import create_campaign, get_campaign
from pipeline.storage.database import Database, open_database
from pipeline.storage.snapshots import create_snapshot, get_snapshot
from schemas.campaigns import CampaignRecord
from schemas.columns import db_now
from schemas.tables import EventResult, EventRow, Image, Instance, MaskRow, Session, Task

SIZES = ((480, 640), (768, 1024), (1080, 1920))
OUTLINES = 2000
DIAMETERS = (16, 600)
TABLES = (Image, Task, Session, EventRow, EventResult, MaskRow, Instance)
TIMES = {"created_at", "updated_at", "server_time"}
ENGINE = {"runtime": "torch", "device": "cpu", "dtype": "float32", "threads": 1}
FORMS = {"parquet": ["parquet"], "coco": ["coco"], "parquet_and_coco": ["parquet", "coco"]}


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


def snapshot(url: str) -> tuple[str, float]:
    """Id of a new snapshot, and the CPU seconds that it took."""
    database = open_database(url)
    with database.begin() as conn:
        campaign = get_campaign(conn, "benchmark")
        made, cpu_s = timed(lambda: create_snapshot(conn, campaign.id, "export"))
    return made.id, cpu_s


def export(url: str, snapshot_id: str, to: str, formats: list[str]) -> dict[str, Any]:
    """Export in this process: counts, CPU and wall seconds, and peak memory before and after."""
    database = open_database(url)
    with database.connect() as conn:
        campaign = get_campaign(conn, "benchmark")
    export_snapshot(database, campaign, f"{to}-nothing", formats, images="uri", filters={"states": ["new"]})
    pa.array([""])  # imports pandas where there is one, as in the yardstick
    before, began = peak_mb(), time.perf_counter()
    report, cpu_s = timed(
        lambda: export_snapshot(database, campaign, to, formats, images="uri", snapshot_id=snapshot_id)
    )
    wall_s = time.perf_counter() - began
    return {"counts": report.counts, "cpu_s": cpu_s, "wall_s": wall_s, "before_mb": before, "peak_mb": peak_mb()}


def correct(url: str, every: int) -> None:
    """Correct the newest mask of each image whose number `every` divides, in a session of its own."""
    database = open_database(url)
    task, instance, mask = (table.__table__ for table in (Task, Instance, MaskRow))
    with database.begin() as conn:
        last = conn.execute(select(func.max(mask.c.number))).scalar_one()
        lease_no = conn.execute(select(func.max(Session.lease_no))).scalar_one() + 1
        newest = select(func.max(mask.c.number)).join(Image, Image.id == mask.c.image_id)
        newest = newest.where(Image.number % every == 0).group_by(mask.c.image_id)
        found = conn.execute(
            select(mask, instance.c.id.label("instance"), task.c.id.label("task"))
            .join(instance, instance.c.mask_id == mask.c.id)
            .join(task, task.c.image_id == mask.c.image_id)
            .where(mask.c.number.in_(newest))
        ).all()
        rows: dict[Any, list[dict[str, Any]]] = {table: [] for table in (Session, EventRow, MaskRow, Instance)}
        for number, old in enumerate(found, last + 1):
            session, event, made, corrected = (str(uuid.uuid4()) for _ in range(4))
            common = {"campaign_id": old.campaign_id, "image_id": old.image_id}
            rows[Session].append(
                dict(common, id=session, task_id=old.task, annotator_id=old.annotator_id, lease_no=lease_no, epoch=1,
                     last_seq=1, state="submitted")
            )  # fmt: skip
            rows[EventRow].append(
                dict(event_id=event, session_id=session, seq=1, session_epoch=1, lease_no=lease_no,
                     instance_id=corrected, kind="click", payload_sha256=old.mask_sha256, pins=None,
                     annotator_id=old.annotator_id, payload={"v": 1, "x": 1.5, "y": 2.5, "is_positive": True})
            )  # fmt: skip
            new = dict(id=made, number=number, instance_id=corrected, session_id=session, event_id=event, seq=1)
            rows[MaskRow].append({column.name: getattr(old, column.name) for column in mask.c} | new)
            rows[Instance].append(
                dict(common, id=corrected, session_id=session, state="accepted", category_number=old.category_number,
                     unsure=False, mask_id=made, opened_mask_id=old.id)
            )  # fmt: skip
        for table, values in rows.items():
            times = {c.name: db_now() for c in table.__table__.c if c.name in TIMES}
            conn.execute(insert(table).values(times), values)


def delta(url: str, since: str, to: str, formats: list[str]) -> dict[str, Any]:
    """What a delta holds, and the CPU seconds of a new snapshot, of writing it and of writing a delta to it."""
    database = open_database(url)
    with database.connect() as conn:
        campaign = get_campaign(conn, "benchmark")
    export_snapshot(database, campaign, f"{to}-nothing", formats, images="uri", filters={"states": ["new"]})
    with database.begin() as conn:
        made, snapshot_s = timed(lambda: create_snapshot(conn, campaign.id, "export"))
    options: dict[str, Any] = {"formats": formats, "images": "uri", "snapshot_id": made.id}
    _, whole_s = timed(lambda: export_snapshot(database, campaign, f"{to}-whole", **options))
    options["since_snapshot"] = since
    report, delta_s = timed(lambda: export_snapshot(database, campaign, f"{to}-delta", **options))
    return {"counts": report.counts, "snapshot_s": snapshot_s, "whole_s": whole_s, "delta_s": delta_s}


def writers(url: str, snapshot_id: str, to: str, sample: int) -> dict[str, float]:
    """CPU seconds per mask that the writers take for the first masks, when the arrays are there: the best of three."""
    database = open_database(url)
    with database.connect() as conn:
        record = get_snapshot(conn, snapshot_id)
    parts: list[Labels | Clicks] = []
    masks = 0
    with closing(read_snapshot(database, record, Splits(), clicks=True)) as found:
        for part in found:
            if isinstance(part, Labels) and masks >= sample:
                break
            masks += part.annotations.num_rows if isinstance(part, Labels) else 0
            parts.append(part)
    categories = [(category.number, category.name) for category in record.categories]
    seconds = {}
    for name in ("parquet", "coco"):
        seconds[name] = min(write(name, parts, categories, f"{to}/{name}-{turn}") for turn in range(3)) / masks
    return seconds


def write(form: str, parts: list[Labels | Clicks], categories: list[tuple[int, str]], to: str) -> float:
    """CPU seconds to write parts as a format."""

    def work() -> None:
        writer = FORMATS[form](target)
        for part in parts:
            if isinstance(part, Labels):
                writer.add_labels(part)
            else:
                writer.add_clicks(part.table)
        writer.finish()

    with SnapshotDirectory(to) as directory:
        target = Target(directory, "", {}, categories, {}, embed=False, tick=lambda: None)
        return timed(work)[1]


def raw_read(url: str, snapshot_id: str) -> tuple[float, float]:
    """CPU seconds that sqlite3 takes to fetch a snapshot's masks, and its events with their results."""
    conn = sqlite3.connect(url.removeprefix("sqlite:///"))
    masks = "SELECT m.* FROM snapshot_items s JOIN masks m ON m.id = s.mask_id WHERE s.snapshot_id = ?"
    events = (
        "SELECT e.*, r.* FROM events e LEFT JOIN event_results r ON r.event_id = e.event_id "
        f"WHERE e.session_id IN (SELECT session_id FROM ({masks}))"
    )

    def fetch(query: str) -> None:
        cursor = conn.execute(query, (snapshot_id,))
        while cursor.fetchmany(5000):
            pass

    return timed(lambda: fetch(masks))[1], timed(lambda: fetch(events))[1]


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


def raw_parquet(folder: Path) -> float:
    """CPU seconds that pyarrow takes to write the tables of an export again, a shard at a time, when they are ready."""
    seconds = 0.0
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        seconds += timed(lambda t=table: pq.write_table(t, folder / "raw", compression="zstd"))[1]
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


def measure(
    images: int = 2000,
    masks_per_image: int = 10,
    clicks_per_mask: int = 3,
    sample: int = 20_000,
    keep: str | None = None,
) -> dict[str, Any]:
    """Export and read and write again; the arguments are those of the command line.

    Returns:
        rows, cpu_s, wall_s, ratios, rows_per_cpu_s, peak_memory_mb, memory_before_mb and delta_to_whole, each a dict.
    """
    with tempfile.TemporaryDirectory(dir=keep) as folder:
        path = Path(keep or folder, "clickloop.db")
        url = f"sqlite:///{path}"
        if not path.exists():
            in_new_process(make, url, images, masks_per_image, clicks_per_mask)
        made, snapshot_s = in_new_process(snapshot, url)
        runs = {name: in_new_process(export, url, made, f"{folder}/{name}", FORMS[name]) for name in FORMS}
        masks_s, events_s = in_new_process(raw_read, url, made)
        pyarrow_s = in_new_process(raw_parquet, Path(folder, "parquet", "parquet"))
        object_s = in_new_process(raw_coco, Path(folder, "coco", "coco", "instances.json"), sample)
        alone = in_new_process(writers, url, made, folder, sample)
        deltas: dict[str, dict[str, Any]] = {}
        for what, every in (("images", 100), ("masks", max(1, 100 // masks_per_image))):
            in_new_process(correct, url, every)
            for form, formats in FORMS.items():
                name = f"{form}_1_percent_of_{what}"
                deltas[name] = in_new_process(delta, url, made, f"{folder}/{name}", formats)
    counts = runs["parquet"]["counts"]
    rows, masks = counts["images"] + counts["annotations"] + counts["clicks"], counts["annotations"]
    parquet_s, coco_s, orjson_s = runs["parquet"]["cpu_s"], runs["coco"]["cpu_s"], object_s * masks
    seconds = {name: run["cpu_s"] for name, run in runs.items()} | {
        "snapshot": snapshot_s, "pyarrow": pyarrow_s, "orjson": orjson_s, "sqlite3_masks": masks_s,
        "sqlite3_events": events_s,
    }  # fmt: skip
    ratios = {
        "parquet_to_pyarrow": pyarrow_s / parquet_s,
        "parquet_to_floor": (pyarrow_s + masks_s + events_s) / parquet_s,
        "parquet_writer_to_pyarrow": pyarrow_s / masks / alone["parquet"],
        "coco_to_orjson": orjson_s / coco_s,
        "coco_to_floor": (orjson_s + masks_s) / coco_s,
        "coco_writer_to_orjson": object_s / alone["coco"],
    }
    return {
        "rows": counts,
        "cpu_s": {name: round(value, 3) for name, value in seconds.items()},
        "wall_s": {name: round(run["wall_s"], 3) for name, run in runs.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "rows_per_cpu_s": {"parquet": round(rows / parquet_s), "coco": round(masks / coco_s)},
        "peak_memory_mb": {name: run["peak_mb"] for name, run in runs.items()},
        "memory_before_mb": {name: run["before_mb"] for name, run in runs.items()},
        "delta_to_whole": {
            name: {
                "written": round(run["delta_s"] / run["whole_s"], 3),
                "with_snapshot": round((run["delta_s"] + run["snapshot_s"]) / (run["whole_s"] + run["snapshot_s"]), 3),
                "delta_cpu_s": round(run["delta_s"], 3),
                **{what: run["counts"][what] for what in ("images", "annotations")},
            }
            for name, run in deltas.items()
        },
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--masks-per-image", type=int, default=10)
    parser.add_argument("--clicks-per-mask", type=int, default=3)
    parser.add_argument("--sample", type=int, default=20_000, help="annotations that orjson writes again")
    parser.add_argument("--keep", metavar="DIR", help="make the catalogue here, or use the one that is here")
    options = parser.parse_args()
    figures = measure(options.images, options.masks_per_image, options.clicks_per_mask, options.sample, options.keep)
    print(json.dumps(figures, indent=2))


def make(url: str, *sizes: int) -> None:
    """Make the catalogue."""
    fill(open_database(url), *sizes)


if __name__ == "__main__":
    main()
