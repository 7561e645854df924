"""How many annotators one refiner holds: closed-loop clicks through a real gateway, think time about 2 s.

    python benchmarks/load.py [--model fdrn-compact] [--limit-ms 100] [--most 128] [--seconds 12]

Annotators each have a session on a 1080p photograph of their own and click on its object, over and over. Their number
is doubled until the 95th percentile of a click (from sending it to having its mask) is above the limit, then halved in
on. Twice the number that held is tried, too, to see whether the server pushes back or collapses, then four annotators
again, to see whether it recovers. At the end every acknowledged click must be in the log. The clients run on the same
cores.
"""

import argparse
import json
import os
import random
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from click_latency import STAGES, TIMEOUT_S, Session, make_campaign, wait_for_embeddings, write_photographs
from numpy.typing import NDArray
from sqlalchemy import func, select

from flows.temporary_server import serving
from pipeline.storage.database import open_database
from schemas.settings import Settings
from schemas.tables import EventRow

THINK_S = 2.0
BESIDE = 40
"""Photographs whose embeddings are made beside four annotators."""
CLICKS = 12
"""Of an instance, before the next one is begun."""
HALVINGS = 2


@dataclass
class Tally:
    """What came back: masks by warmth with their stages, the steps they took, refusals by code."""

    masks: list[tuple[float, str, dict[str, float]]] = field(default_factory=list)
    steps: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    acked: int = 0

    def add(self, other: "Tally") -> None:
        self.masks += other.masks
        self.steps += other.steps
        self.refusals += other.refusals
        self.acked += other.acked


class Annotator(Session):
    """Clicks on an object until told to stop; a refusal is counted and taken as the answer."""

    def __init__(self, url: str, campaign: str, name: str, truth: NDArray[np.bool_]) -> None:
        super().__init__(url, campaign, name)
        self._rng = random.Random(name)
        self._places = np.argwhere(truth)
        self._instance, self._left = "", 0

    def work(self, until: float, think_s: float) -> Tally:
        """Think and click until then."""
        tally = Tally()
        time.sleep(self._rng.uniform(0, think_s))
        while time.monotonic() < until:
            if not self._left:
                self._instance, self._left = self.open(wants_mask=False), CLICKS
            self._left -= 1
            y, x = self._places[self._rng.randrange(len(self._places))]
            self._click(float(x), float(y), tally)
            time.sleep(self._rng.uniform(0.5, 1.5) * think_s)
        return tally

    def _click(self, x: float, y: float, tally: Tally) -> None:
        frame = self._frame("click", self._instance, {"x": x, "y": y, "is_positive": True}, True)
        began = time.perf_counter()
        self._socket.send(frame)
        while True:
            message: dict[str, Any] = json.loads(self._socket.recv(timeout=TIMEOUT_S))
            if message["type"] == "ack":
                self._seq += 1
                tally.acked += 1
            elif message["type"] == "mask":
                tally.masks.append((1e3 * (time.perf_counter() - began), message["cache"], message["latency_ms"]))
                tally.steps += message["steps"]
                return
            else:
                error = message["error"]
                tally.refusals[error["code"]] += 1
                time.sleep(error["details"].get("retry_after_s", 0))
                return


def line(name: str, values: list[float]) -> str:
    """Count and percentiles."""
    if not values:
        return f"  {name:10} none"
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return f"  {name:10} {len(values):5d}  p50 {p50:7.1f}  p95 {p95:7.1f}  p99 {p99:7.1f} ms"


class Bench:
    """Annotators on one server."""

    def __init__(self, url: str, truth: NDArray[np.bool_], seconds: float) -> None:
        self._url, self._truth, self._seconds = url, truth, seconds
        self._annotators: list[Annotator] = []
        self.acked = 0

    def run(self, count: int, think_s: float = THINK_S) -> float:
        """Let so many work for a while; print; the 95th percentile in ms, infinite where a click was refused."""
        while len(self._annotators) < count:
            name = f"annotator-{len(self._annotators)}"
            self._annotators.append(Annotator(self._url, "bench", name, self._truth))
        until = time.monotonic() + think_s + self._seconds
        total = Tally()
        with ThreadPoolExecutor(count) as pool:
            for tally in pool.map(lambda annotator: annotator.work(until, think_s), self._annotators[:count]):
                total.add(tally)
        self.acked += total.acked
        times = [took for took, _, _ in total.masks]
        p95 = float(np.percentile(times, 95)) if times else float("inf")
        masks, steps = (number / (think_s + self._seconds) for number in (len(times), total.steps))
        refused = ", ".join(f"{times_refused} {code}" for code, times_refused in total.refusals.items()) or "none"
        load = os.getloadavg()[0]
        print(f"{count} annotators: {masks:.1f} masks/s, {steps:.1f} steps/s, refused: {refused}, load {load:.1f}")
        for kind in sorted({cache for _, cache, _ in total.masks}):
            print(line(kind, [took for took, cache, _ in total.masks if cache == kind]))
        for stage in STAGES:
            print(line(f"- {stage}", [stages.get(stage, 0.0) for _, _, stages in total.masks]))
        rest = [took - sum(stages.get(stage, 0.0) for stage in STAGES) for took, _, stages in total.masks]
        print(line("- rest", rest), flush=True)
        return float("inf") if total.refusals else p95

    def forget_others(self, embeddings: Path) -> None:
        """Delete the embeddings of the images that nobody has claimed."""
        claimed = {annotator.claim["image"]["sha256"] for annotator in self._annotators}
        for path in embeddings.rglob("*.safetensors"):
            if path.stem not in claimed:
                path.unlink()

    def close(self) -> None:
        for annotator in self._annotators:
            annotator.close()


def search(bench: Bench, limit_ms: float, most: int) -> int:
    """The largest tried number that holds the limit; 0 if none does."""
    held, broke = 0, 0
    number = 4
    while not broke and number <= most:
        if bench.run(number) <= limit_ms:
            held, number = number, 2 * number
        else:
            broke = number
    for _ in range(HALVINGS if held and broke else 0):
        number = (held + broke) // 2
        if bench.run(number) <= limit_ms:
            held = number
        else:
            broke = number
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fdrn-compact")
    parser.add_argument("--limit-ms", type=float, default=100.0)
    parser.add_argument("--most", type=int, default=128, help="annotators")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each try, after the first think time")
    options = parser.parse_args()
    threading.stack_size(256 * 1024)
    with tempfile.TemporaryDirectory(prefix="cl-bench-") as folder:
        settings = Settings(workspace=Path(folder) / "workspace")
        photographs = options.most + BESIDE
        truth = write_photographs(Path(folder) / "images", photographs)
        key = make_campaign(settings, Path(folder) / "images", options.model)
        embeddings = Path(settings.resolved_storage_url) / "embeddings" / key
        with serving(settings) as client:
            client.start("bench", "precompute", {})
            wait_for_embeddings(embeddings, photographs)
            bench = Bench(client.url, truth, options.seconds)
            bench.run(2)  # warm
            held = search(bench, options.limit_ms, options.most)
            print(f"\n{held} annotators hold p95 <= {options.limit_ms:.0f} ms; four beside a precompute:")
            bench.forget_others(embeddings)
            client.start("bench", "precompute", {})
            bench.run(4)
            print("twice as many as hold:")
            bench.run(max(4, min(options.most, 2 * held)))
            print("all, without a pause, then four:")
            bench.run(options.most, think_s=0)
            bench.run(4)
            bench.close()
        database = open_database(settings.resolved_database_url)
        with database.connect() as conn:
            query = select(func.count()).select_from(EventRow).where(EventRow.kind == "click")
            logged = conn.execute(query).scalar_one()
        database.close()
        print(f"clicks acknowledged {bench.acked}, in the log {logged}")
        if logged != bench.acked:
            raise SystemExit("An acknowledged click is not in the log, or one that was not acknowledged is.")


if __name__ == "__main__":
    main()
