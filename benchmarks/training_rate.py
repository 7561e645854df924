"""How many regions a second a training run of the shipped model learns from, and what it waits for.

One core alone makes batches and places clicks; then whole steps run as `clickloop train` runs them, the median of which
counts, the first ones left out. What makes batches keeps up with so many steps as the last line says.

    python benchmarks/training_rate.py [--run gpu --device cuda] [--data DIR] [--steps 10]
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.configs.fdrn_compact import RUNS, Run, on_device
from pipeline.data.samples import Batch, TrainingBatches
from pipeline.training.clicks import later_click, opening_clicks
from pipeline.training.trainer import Trainer

WARM_STEPS = 3


def click_seconds(batch: Batch) -> tuple[float, float]:
    """CPU seconds a region of opening clicks and of one later click, on one thread."""
    rng, truth, previous = np.random.default_rng(0), batch.targets.numpy(), batch.previous.numpy()
    times = []
    for place in (
        lambda region: opening_clicks(rng, truth[region], previous[region]),
        lambda region: later_click(rng, truth[region], np.roll(truth[region] == 1, 9, 1)),
    ):
        began = time.thread_time()
        for region in range(len(truth)):
            place(region)
        times.append((time.thread_time() - began) / len(truth))
    return times[0], times[1]


def step_seconds(run: Run, batches: TrainingBatches, steps: int) -> float:
    """Wall seconds of a step, median."""
    ends: list[float] = []
    train = replace(run.train, steps=WARM_STEPS + steps, log_every=1, save_every_s=1e9)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(train, batches, Path(folder)).run(progress=lambda *_: ends.append(time.perf_counter()))
    return statistics.median(np.diff(ends[WARM_STEPS - 1 :]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--run", choices=RUNS, default="gpu" if has_gpu else "cpu-late")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if has_gpu else "cpu")
    parser.add_argument("--data", type=Path, help="folder of training sets; drawn scenes alone without it")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    run = on_device(RUNS[options.run](), options.device)
    batches = TrainingBatches(options.data, run.samples, 0, WARM_STEPS + options.steps)
    regions = run.samples.num_images * run.samples.rois_per_image
    batch = batches[0]
    began = time.thread_time()
    for step in range(3):
        batch = batches[step]
    made = 3 * regions / (time.thread_time() - began)
    opening, later = click_seconds(batch)
    shares = np.array(run.train.click_passes) / sum(run.train.click_passes)
    passes = float(shares @ np.arange(len(shares)))
    clicked = 1 / (opening + passes * later)
    seconds = step_seconds(run, batches, options.steps)
    print(
        f"{options.run} on {options.device}: {regions} regions a step, {passes:.1f} clicks before the one that learns"
    )
    print(f"batches   {made:8.0f} regions/s of one core")
    print(
        f"clicks    {clicked:8.0f} regions/s of one core ({1000 * opening:.2f} + {passes:.1f} x {1000 * later:.2f} ms)"
    )
    print(f"steps     {regions / seconds:8.0f} regions/s, {1000 * seconds:.0f} ms each")
    print(
        f"cores that keep up: {regions / seconds / made:.1f} for batches, {regions / seconds / clicked:.1f} for clicks"
    )


if __name__ == "__main__":
    main()
