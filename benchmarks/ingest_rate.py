"""What ingest costs besides what it must do: decode and hash new files, list the others.

    python benchmarks/ingest_rate.py [--images 200] [--unchanged 100000] [--objects 5000] [--rounds 3]

- `ingest_to_raw`: images/s of ingest over those of reading, decoding (Pillow) and hashing (sha256) the same 1080p JPEGs
  in as many threads of another process, in alternation, best round of each (goal >= 0.85). The same with the CPU time
  of both, which load from others spoils less.
- `resync_to_listing`: seconds of a pass over unchanged files over those of listing them, in alternation, median (goal
  <= 1.10), and how many files the pass opened (goal: none). On a local folder, then on an S3 server (moto, in a process
  of its own, whose requests are counted).

Prints the machine's load, too: both want the cores for themselves.
"""

import argparse
import hashlib
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import boto3
import cv2
import numpy as np
from PIL import Image as Picture
from sqlalchemy import insert

from pipeline.ingest.scan import IngestReport, ingest
from pipeline.ingest.sources import list_files
from pipeline.storage.campaigns import create_campaign
from pipeline.storage.database import Database, open_database, upgrade_database
from schemas.campaigns import CampaignRecord
from schemas.tables import Image, Source

THREADS = 2


def new_campaign(database: Database, source: str) -> CampaignRecord:
    """An empty campaign."""
    with database.begin() as conn:
        return create_campaign(
            conn,
            campaign_id=str(uuid.uuid4()),
            name=f"bench {uuid.uuid4()}",
            source_url=source,
            model_id="toy-color",
            model_digest="d" * 64,
            model_key="k",
        )


def write_photographs(folder: Path, count: int) -> None:
    """JPEGs of 1920x1080 with soft shapes and some grain, about 500 kB each."""
    folder.mkdir()
    for seed in range(count):
        rng = np.random.default_rng(seed)
        soft = cv2.resize(rng.integers(0, 256, (9, 16, 3), np.uint8), (1920, 1080), interpolation=cv2.INTER_CUBIC)
        picture = cv2.add(soft, rng.integers(0, 16, soft.shape, np.uint8))
        cv2.imwrite(str(folder / f"{seed:05d}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])


def decode_and_hash(path: Path) -> str:
    """The yardstick."""
    data = path.read_bytes()
    np.asarray(Picture.open(io.BytesIO(data)).convert("RGB"))
    return hashlib.sha256(data).hexdigest()


def decode_and_hash_all(files: list[Path]) -> None:
    """In threads, as ingest reads."""
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(decode_and_hash, files))


def seconds(call: Callable[[], Any]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def both_seconds(call: Callable[..., Any], *args: Any) -> tuple[float, float]:
    """Wall and CPU seconds of this process."""
    began, cpu = time.perf_counter(), time.process_time()
    call(*args)
    return time.perf_counter() - began, time.process_time() - cpu


def ingest_figures(database: Database, folder: Path, count: int, rounds: int) -> dict[str, float]:
    """Rates of new files."""
    write_photographs(folder, count)
    files = sorted(folder.iterdir())

    def whole() -> None:
        report = ingest(database, new_campaign(database, str(folder)), str(folder), threads=THREADS)
        assert report.registered == count

    times = []
    with get_context("spawn").Pool(1) as other:  # whose allocator is as Python's programs have it
        other.apply(decode_and_hash_all, (files,))  # imports; the page cache holds the files afterwards
        for _ in range(rounds):
            times.append((*other.apply(both_seconds, (decode_and_hash_all, files)), *both_seconds(whole)))
    raw_s, raw_cpu_s, ingest_s, ingest_cpu_s = (min(column) for column in zip(*times, strict=True))
    return {
        "raw_images_per_s": count / raw_s,
        "ingest_images_per_s": count / ingest_s,
        "ingest_to_raw": raw_s / ingest_s,
        "ingest_to_raw_cpu_time": raw_cpu_s / ingest_cpu_s,
    }


def register(database: Database, url: str) -> CampaignRecord:
    """A campaign to which all that is listed is known, as after a first pass (which would take minutes)."""
    campaign, now = new_campaign(database, url), datetime.now(UTC)
    images, sources = [], []
    for number, file in enumerate(list_files(url).files, 1):
        digest, image_id = file.uri_sha256, str(uuid.uuid4())
        of_both = {"campaign_id": campaign.id, "uri": file.uri}
        images.append(
            of_both
            | {"id": image_id, "number": number, "file_name": file.file_name, "sha256": digest, "phash": digest[:16]}
            | {"group_key": digest, "holdout": False, "width": 1920, "height": 1080, "format": "JPEG"}
            | {"size_bytes": 1, "encode_attempts": 0, "created_at": now}
        )
        sources.append(
            of_both
            | {"uri_sha256": digest, "version": file.version, "state": "registered", "image_id": image_id}
            | {"reason": None, "seen_at": now}
        )
    with database.begin() as conn:
        conn.execute(insert(Image), images)
        conn.execute(insert(Source), sources)
    return campaign


def resync_figures(database: Database, url: str, rounds: int) -> dict[str, float]:
    """Seconds of listing and of a pass in which nothing is new."""
    campaign = register(database, url)

    def again() -> IngestReport:
        return ingest(database, campaign, url)

    report = again()
    assert report.unchanged == report.files > 0
    times = [(seconds(lambda: list_files(url)), seconds(again)) for _ in range(rounds)]
    listing_s, pass_s = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "files": report.files,
        "listing_s": listing_s,
        "resync_s": pass_s,
        "resync_to_listing": statistics.median(whole / listing for listing, whole in times),
    }


def local_figures(database: Database, folder: Path, count: int, rounds: int) -> dict[str, float]:
    """Of a folder, 1000 files in each subfolder; files that are opened are counted by an audit hook."""
    for start in range(0, count, 1000):
        part = folder / f"{start:06d}"
        part.mkdir(parents=True)
        for number in range(start, min(start + 1000, count)):
            (part / f"{number:06d}.jpg").write_bytes(b"%d" % number)
    opened = []

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and str(args[0]).startswith(str(folder)):
            opened.append(args[0])

    sys.addaudithook(audit)
    figures = resync_figures(database, str(folder), rounds)
    return figures | {"files_read": len(opened)}


@contextmanager
def s3_server(folder: Path) -> Iterator[Path]:
    """moto's server, which the environment points to; its log of requests."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    log = folder / "s3.log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            for _ in range(300):
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield log
        finally:
            server.terminate()
            server.wait(10)


def s3_figures(database: Database, folder: Path, count: int, rounds: int) -> dict[str, float]:
    """Of a bucket."""
    with s3_server(folder) as log:
        client = boto3.client("s3")
        client.create_bucket(Bucket="bench")
        for number in range(count):
            client.put_object(Bucket="bench", Key=f"images/{number:06d}.jpg", Body=b"%d" % number)
        figures = resync_figures(database, "s3://bench/images", rounds)
        requests = log.read_text(errors="replace")
    return figures | {"files_read": requests.count('"GET /bench/images/')}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--unchanged", type=int, default=100_000)
    parser.add_argument("--objects", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = f"sqlite:///{folder}/clickloop.db"
        upgrade_database(url)
        database = open_database(url)
        load = os.getloadavg()[0]
        figures = {
            "new, 1080p JPEG": ingest_figures(database, folder / "new", args.images, args.rounds),
            "unchanged, folder": local_figures(database, folder / "unchanged", args.unchanged, args.rounds),
            "unchanged, S3": s3_figures(database, folder, args.objects, args.rounds),
        }
        database.close()
    print(f"load before and after: {load:.1f}, {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for what, found in figures.items():
        print(f"{what}: {json.dumps({key: round(value, 3) for key, value in found.items()})}")


if __name__ == "__main__":
    main()
