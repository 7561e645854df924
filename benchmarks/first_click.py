"""The first click after `serve` says that it is ready, beside a warm one; aim: at most 3 times as long.

    python benchmarks/first_click.py [--model fdrn-compact] [--boots 3] [--clicks 20]

Each boot is a new `serve` of the same workspace, whose images are encoded. An annotator claims an image, opens an
instance and clicks at once; then does the same with more instances. Milliseconds are wall clock at the client.
"""

import argparse
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from click_latency import Session, first_clicks, make_campaign, write_photographs

from flows.temporary_server import serving
from schemas.settings import Settings


@dataclass(frozen=True)
class Boots:
    """Milliseconds of each boot.

    Attributes:
        first: Of its first click.
        warm: Of the first clicks of later instances, median.
        cache: Where the first click's embedding came from.
    """

    first: list[float]
    warm: list[float]
    cache: list[str]

    @property
    def ratio(self) -> float:
        """First / warm, median of the boots."""
        return statistics.median(first / warm for first, warm in zip(self.first, self.warm, strict=True))


def measure(model: str = "fdrn-compact", boots: int = 3, clicks: int = 20) -> Boots:
    """Boot so many times, after one boot in which the images are encoded."""
    first, warm, cache = [], [], []
    with tempfile.TemporaryDirectory(prefix="cl-bench-") as folder:
        settings = Settings(workspace=Path(folder) / "workspace")
        truth = write_photographs(Path(folder) / "images", boots)
        make_campaign(settings, Path(folder) / "images", model)
        for number in range(1 + boots):
            with serving(settings) as client:
                if not number:
                    campaign = client.call("GET", "/api/campaigns/bench")["id"]
                    done = client.follow(client.start(campaign, "precompute", {})["id"], lambda progress: None)
                    assert done["state"] == "done", done
                    continue
                session = Session(client.url, "bench", f"annotator {number}")
                replies = first_clicks([session], truth, 1 + clicks)
                session.close()
            first.append(replies[0].mask_ms)
            warm.append(statistics.median(reply.mask_ms for reply in replies[1:]))
            cache.append(replies[0].cache)
    return Boots(first, warm, cache)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fdrn-compact")
    parser.add_argument("--boots", type=int, default=3)
    parser.add_argument("--clicks", type=int, default=20, help="after the first one of each boot")
    args = parser.parse_args()
    boots = measure(args.model, args.boots, args.clicks)
    for first, warm, cache in zip(boots.first, boots.warm, boots.cache, strict=True):
        print(f"first click {first:8.1f} ms (embedding from: {cache})   warm {warm:8.1f} ms   {first / warm:6.2f}")
    print(f"ratio       {boots.ratio:8.2f}   aim <= 3")
    print(f"load        {os.getloadavg()[0]:8.2f} on {len(os.sched_getaffinity(0))} cores")


if __name__ == "__main__":
    main()
