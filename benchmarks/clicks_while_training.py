"""Click latency while an adapter is trained beside the refiner, over that of an idle server; aim: p95 at most 1.5.

    python benchmarks/clicks_while_training.py [--model fdrn-compact] [--clicks 40] [--rounds 2]

Some images are labelled, then clicks on another one are timed at the client, with a short pause after each: a stretch
while the server is idle, one while it trains (the retrain is cancelled afterwards), and so on, and an idle one at last.
"""

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from serve_memory import click, label_image, make_campaign

from flows.client import FINISHED, Client
from flows.temporary_server import serving
from schemas.settings import Settings
from workers.session_client import Api, SessionClient

IMAGES = 8
LABELLED = 6
PER_IMAGE = 60
PER_INSTANCE = 20
PAUSE_S = 0.1
START_S = 120.0


@dataclass(frozen=True)
class Latencies:
    """Milliseconds of clicks."""

    idle: list[float]
    training: list[float]

    def ratio(self, percentile: float = 95) -> float:
        """Training / idle at a percentile."""
        return float(np.percentile(self.training, percentile) / np.percentile(self.idle, percentile))


class Annotator:
    """Clicks anywhere on one image, an instance after the other."""

    def __init__(self, api: Api) -> None:
        claim = api.call("POST", "/api/campaigns/bench/claim", {"claim_id": str(uuid4())})
        self._session = SessionClient(api, claim)
        self._rng = np.random.default_rng(1)
        self._instance, self._made = "", 0

    def clicks(self, count: int) -> list[float]:
        """Milliseconds of so many clicks."""
        found: list[float] = []
        for _ in range(count):
            if self._made % PER_INSTANCE == 0:
                self._instance = str(uuid4())
                self._session.send("open", self._instance)
            answer = click(self._session, self._instance, self._rng, is_positive=self._made % 4 != 3)
            self._made += 1
            found.append(answer.latency_ms)
            time.sleep(PAUSE_S)
        return found


class Training:
    """A retrain of the campaign, under way once this is made."""

    def __init__(self, client: Client, campaign_id: str) -> None:
        self._client = client
        self._id = client.start(campaign_id, "retrain", {"minutes": 10, "promote": "never"})["id"]
        give_up = time.monotonic() + START_S
        while not self.is_running():
            assert time.monotonic() < give_up, "the training did not begin in time"
            time.sleep(0.5)

    def is_running(self) -> bool:
        """Whether steps are being made now."""
        record = self._record()
        assert record["state"] not in FINISHED, record
        progress = record["progress"]
        return bool(progress.get("step") == "train" and progress.get("done"))

    def cancel(self) -> None:
        """Stop it and wait for its end."""
        self._client.call("POST", f"/api/requests/{self._id}/cancel")
        while self._record()["state"] not in FINISHED:
            time.sleep(0.5)

    def _record(self) -> dict[str, Any]:
        return dict(self._client.call("GET", f"/api/requests/{self._id}"))


def measure(model: str = "fdrn-compact", count: int = 40, rounds: int = 2) -> Latencies:
    """Time `count` clicks in each stretch."""
    idle: list[float] = []
    training: list[float] = []
    with tempfile.TemporaryDirectory(prefix="cl-bench-") as folder:
        settings = Settings(workspace=Path(folder) / "workspace")
        make_campaign(settings, Path(folder) / "images", IMAGES, model)
        with serving(settings) as client:
            api = Api(client.url, "bench")
            rng = np.random.default_rng(0)
            for _ in range(LABELLED):
                label_image(api, PER_IMAGE, rng)
            annotator = Annotator(api)
            annotator.clicks(PER_INSTANCE)  # warm
            campaign_id = client.call("GET", "/api/campaigns/bench")["id"]
            for _ in range(rounds):
                idle += annotator.clicks(count)
                run = Training(client, campaign_id)
                training += annotator.clicks(count)
                assert run.is_running(), "the training ended before the clicks did"
                run.cancel()
            idle += annotator.clicks(count)
            api.close()
    return Latencies(idle, training)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fdrn-compact")
    parser.add_argument("--clicks", type=int, default=40, help="of each stretch")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    found = measure(args.model, args.clicks, args.rounds)
    for name, values in (("idle", found.idle), ("training", found.training)):
        p50, p95 = np.percentile(values, [50, 95])
        print(f"{name:<12}{len(values):>5} clicks   p50 {p50:7.1f}   p95 {p95:7.1f} ms")
    print(f"ratio       p50 {found.ratio(50):7.2f}   p95 {found.ratio():7.2f}   aim <= 1.5")
    print(f"load        {os.getloadavg()[0]:7.2f} on {len(os.sched_getaffinity(0))} cores")


if __name__ == "__main__":
    main()
