"""What the parts of the training recipe of `fdrn-compact` are worth: short runs from random weights, each with one part
changed.

    python benchmarks/ablations.py --data ROOT [--only base "no hint maps" ...] [--steps 800] [--seeds 1] [--out FILE]

ROOT is a folder of COCO sets with an `index.json`, as for training. Every run trains at half resolution on the same
seeds (`cpu-small`, one mix from the start), and is judged by the robot user on objects of the val splits of the sets of
varied photographs, which no run sees. Prints each run, then a table of means over sets and seeds. A short run says what
a part is worth early; what pays late (more clicks, spoilt starts) may show less than it is worth.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept_runs import add_runs, found_runs, missing
from noc import objects
from torch import Tensor
from torch.nn import functional as F

from pipeline.configs.fdrn_compact import NATURAL_SETS, Run, cpu_late, cpu_small
from pipeline.data import samples
from pipeline.data.samples import TrainingBatches
from pipeline.evaluation.run import evaluate
from pipeline.inference.engines import training_engine
from pipeline.models.fdrn import ImageEncoder, Refiner
from pipeline.models.layers.guidance import click_disks
from pipeline.training import objective
from pipeline.training.trainer import Trainer

MIN_AREA = 1500
MIOU_AT = ("1", "3", "5")


def base(steps: int) -> Run:
    """What the others are compared with."""
    run = cpu_small(steps)
    bfloat16 = training_engine(torch.device("cpu")) == "torch-bfloat16"
    optim = replace(run.train.optim, warmup_steps=min(100, steps // 8))
    return Run(
        train=replace(run.train, bfloat16=bfloat16, loader_workers=0, optim=optim),
        samples=replace(run.samples, early_steps=0),
    )


def with_objective(**changes: Any) -> Callable[[Run], Run]:
    """Other weights of the loss's parts."""
    return lambda run: replace(run, train=replace(run.train, objective=replace(run.train.objective, **changes)))


def with_mix(*mix: Any) -> Callable[[Run], Run]:
    """Other shares of natural, copy-paste, drawn and narrow images."""
    return lambda run: replace(run, samples=replace(run.samples, mix=mix))


def with_clicks(*passes: float) -> Callable[[Run], Run]:
    """Other numbers of clicks before the one that learns."""
    return lambda run: replace(run, train=replace(run.train, click_passes=passes))


def without_spoilt(run: Run) -> Run:
    """Every region starts from the empty mask."""
    return replace(run, samples=replace(run.samples, spoilt_previous=0.0))


def exchanged(owner: Any, name: str, part: Any) -> Callable[[Run], Run]:
    """Another part in the place of one of a module or class, for the rest of this process."""

    def exchange(run: Run) -> Run:
        setattr(owner, name, part)
        return run

    return exchange


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """In the place of the normalised focal loss."""
    counts = target != -1
    truth = target.to(logits.dtype).clamp(min=0)
    loss = F.binary_cross_entropy_with_logits(logits, truth, weight, reduction="none")
    return (loss * counts).sum((1, 2, 3)) / counts.sum((1, 2, 3)).clamp(min=1)


guidance, features = Refiner.guidance, ImageEncoder.forward


def without_hints(crops: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """No maps of likeness and nearness to the clicked places."""
    hints, current, history = guidance(crops, points)
    return torch.zeros_like(hints), current, history


def in_one_code(crops: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The current click is not told from the earlier ones."""
    hints, _, history = guidance(crops, points)
    return hints, click_disks(points, (crops.shape[2], crops.shape[3])), torch.zeros_like(history)


def no_features(encoder: ImageEncoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """F2 alone."""
    low, high = features(encoder, images)
    return 0 * low, 0 * high


VARIANTS: dict[str, Callable[[Run], Run]] = {
    "base": lambda run: run,
    "F2 without F1": exchanged(ImageEncoder, "forward", no_features),
    "no hint maps": exchanged(Refiner, "guidance", staticmethod(without_hints)),
    "clicks in one code": exchanged(Refiner, "guidance", staticmethod(in_one_code)),
    "cross-entropy": exchanged(objective, "nfl", cross_entropy),
    "no soft IoU": with_objective(soft_iou=0.0),
    "no weight at edges": with_objective(boundary=1.0),
    "nothing drawn": with_mix(0.67, 0.25, 0.0, 0.08),
    "30 % drawn": with_mix(0.42, 0.2, 0.3, 0.08),
    "nothing pasted": with_mix(0.83, 0.0, 0.09, 0.08),
    "colours as they are": exchanged(samples, "jitter_colours", lambda rng, image: image),
    "no windows": exchanged(samples, "cut_window", lambda rng, scene: scene),
    "whole images": exchanged(samples, "sample_roi", lambda rng, target: (0, 0, *target.shape)),
    "no spoilt starts": without_spoilt,
    "one click": with_clicks(1.0),
    "up to eight clicks": with_clicks(*cpu_late().train.click_passes),
}
"""Name -> the run with one part changed; it may also change what this process trains."""


def carry_out(task: tuple[str, int, argparse.Namespace]) -> dict[str, Any]:
    """Train and judge one variant; in a process of its own."""
    name, seed, options = task
    torch.set_num_threads(1)
    run = VARIANTS[name](base(options.steps))
    train = replace(run.train, seed=run.train.seed + seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(train, TrainingBatches(options.data, run.samples, train.seed, train.steps), Path(folder))
        result = trainer.run()
        model = trainer.finish()
    sets = {}
    for place in judged_sets(options.data):
        chosen = objects(place / "annotations.json", place / "images", "val", MIN_AREA, options.objects)
        if chosen:
            report = evaluate(model, chosen, (0.80, 0.85, 0.90), flip=False, data=place.name)
            sets[place.name] = {**report.noc, **{f"miou@{k}": report.miou_at[k] for k in MIOU_AT}}
    minutes = result.seconds / 60
    return {"variant": name, "seed": seed, "settings": settings_of(options), "minutes": minutes, "sets": sets}


def judged_sets(root: Path) -> list[Path]:
    """Sets of varied photographs that are there."""
    return [root / name for name in NATURAL_SETS if (root / name / "annotations.json").exists()]


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What two runs must share to stand in one table."""
    return {"data": str(options.data), "steps": options.steps, "objects": options.objects}


def mean(rows: list[dict[str, Any]], figure: str) -> float:
    """Over sets and seeds."""
    return float(np.mean([own[figure] for row in rows for own in row["sets"].values()]))


def describe(row: dict[str, Any]) -> str:
    """One line about a run."""
    return f"{row['variant']}, seed {row['seed']}: NoC@85 {mean([row], '85'):.2f}, {row['minutes']:.1f} min"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of sets with an index.json")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--objects", type=int, default=12, help="of each set, spread evenly")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--out", type=Path, help="JSON lines; runs of the same settings found there are not repeated")
    options = parser.parse_args()
    if options.data is None:
        print("ablations: skipped, they need --data ROOT")
        return
    rows = found_runs(options.out, settings_of(options))
    asked = [(name, seed) for seed in range(options.seeds) for name in options.only]
    left = missing(rows, ("variant", "seed"), asked)
    add_runs(rows, carry_out, [(*key, options) for key in left], options.jobs, options.out, describe)
    print("| variant | seeds | NoC@80 | @85 | @90 | mIoU@1 | @3 | @5 | minutes |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.only:
        own = [row for row in rows if row["variant"] == name]
        clicks = " | ".join(f"{mean(own, target):.2f}" for target in ("80", "85", "90"))
        ious = " | ".join(f"{mean(own, f'miou@{k}'):.3f}" for k in MIOU_AT)
        print(f"| {name} | {len(own)} | {clicks} | {ious} | {np.mean([row['minutes'] for row in own]):.1f} |")


if __name__ == "__main__":
    main()
