"""What a restart of a finished precompute costs beside its first run, in wall clock; aim: at most 1 %.

    python benchmarks/precompute_restart.py [--model default] [--images 400] [--restarts 5]

The whole flow is timed, with Prefect's share, database and actors running already in both. The restart has a fixed
part, so that the ratio falls with the number of images; CPU time of this process says how much of it waits for others.
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from precompute_rate import make_images

from pipeline.campaigns import CampaignSpec, create_campaign
from pipeline.ingest.scan import ingest
from schemas.settings import Settings


@dataclass(frozen=True)
class Runs:
    """Seconds.

    Attributes:
        first: Of the run that encodes everything.
        restarts: Of the later ones.
        restart_cpu: CPU time of this process in each of them, median.
    """

    first: float
    restarts: list[float]
    restart_cpu: float

    @property
    def ratio(self) -> float:
        """Median restart / first run."""
        return statistics.median(self.restarts) / self.first


def measure(model_id: str = "default", count: int = 400, restarts: int = 5) -> Runs:
    """Precompute so many new images, then ask for the same again."""
    with tempfile.TemporaryDirectory(prefix="cl-bench-") as folder:
        settings = Settings(workspace=Path(folder) / "workspace")
        from flows.prefect_env import configure_prefect, start_ephemeral_server

        configure_prefect(settings.workspace)
        from flows.jobs import new_job
        from flows.runner import run_flow
        from flows.services import open_services

        images = Path(folder) / "images"
        images.mkdir()
        make_images(images, count)
        with open_services(settings) as services:
            spec = CampaignSpec(id=str(uuid4()), name="bench", images=str(images), labels=("thing",), model=model_id)
            campaign = create_campaign(services.database, services.storage_url, spec)
            ingest(services.database, campaign, str(images))
            services.pool()
            start_ephemeral_server()
            walls, cpus = [], []
            for number in range(1 + restarts):
                with new_job(services, "precompute", campaign.id, {}) as job:
                    wall, cpu = time.perf_counter(), time.process_time()
                    result = run_flow(job)
                    walls.append(time.perf_counter() - wall)
                    cpus.append(time.process_time() - cpu)
                assert result["encoded"] == (0 if number else count), result
    return Runs(walls[0], walls[1:], statistics.median(cpus[1:]))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--restarts", type=int, default=5)
    args = parser.parse_args()
    runs = measure(args.model, args.images, args.restarts)
    restart = statistics.median(runs.restarts)
    print(f"first run   {runs.first:8.2f} s for {args.images} images")
    print(f"restart     {restart:8.3f} s, {runs.restart_cpu:.3f} s of CPU in this process")
    print(f"ratio       {runs.ratio:8.4f}   aim <= 0.01")
    print(f"load        {os.getloadavg()[0]:8.2f} on {len(os.sched_getaffinity(0))} cores")


if __name__ == "__main__":
    main()
