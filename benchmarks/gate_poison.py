"""Whether the gate keeps poisoned retrains out and lets clean ones in.

For each seed: N clean masks of the train split train an adapter (clean, judged against no adapter), then 2 N masks of
which a share is poisoned (shifted, inverted, or an ellipse anywhere) train another (poisoned, judged against the clean
one, which is then live). Both are judged on held-out objects with true masks, and with the same share of them poisoned.

    python benchmarks/gate_poison.py --data DIR [--masks 100] [--share 0.3] [--kind KIND] [--seeds 0 1 ...] [--out FILE]

A file of results (`--out`) lets a stopped run go on. Needs annotations.json (COCO, train and val) and images/.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from adapter_gain import read_split
from learning_curve import MASKS_PER_IMAGE, draw
from numpy.typing import NDArray

from pipeline.adapters.evaluate import EvaluationConfig, evaluate_adapter
from pipeline.adapters.gate import GateConfig, GateDecision, ObjectResult, decide
from pipeline.adapters.kinds import adapted
from pipeline.adapters.scenes import AdapterImage
from pipeline.adapters.source import CachedSource
from pipeline.adapters.steps import AdapterConfig
from pipeline.adapters.train import train_adapter
from pipeline.data.coco import read_image
from pipeline.masks.rle import mask_to_rle, rle_to_mask
from pipeline.models import load_model
from pipeline.models._base import InteractiveModel


def poisoned_mask(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Another mask than the true one: moved by half to all of its box, inverted, or an ellipse of its size anywhere."""
    height, width = mask.shape
    ys, xs = np.nonzero(mask)
    box_h, box_w = int(np.ptp(ys)) + 1, int(np.ptp(xs)) + 1
    kind = rng.integers(3)
    if kind == 0:
        angle, share = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1)
        move = np.array([[1, 0, share * box_w * np.cos(angle)], [0, 1, share * box_h * np.sin(angle)]], np.float32)
        moved = cv2.warpAffine(mask.astype(np.uint8), move, (width, height), flags=cv2.INTER_NEAREST) > 0
        return moved if moved.any() else ~mask
    if kind == 1:
        return ~mask
    drawn = np.zeros(mask.shape, np.uint8)
    centre = (int(rng.integers(width)), int(rng.integers(height)))
    cv2.ellipse(drawn, centre, (max(2, box_w // 2), max(2, box_h // 2)), rng.uniform(0, 180), 0, 360, 1, -1)
    return drawn > 0


def poison(images: Sequence[AdapterImage], share: float, seed: int) -> list[AdapterImage]:
    """The images with a share of their masks poisoned."""
    rng = np.random.default_rng((seed, 1))
    return [
        replace(
            image,
            targets=tuple(
                replace(target, rle=mask_to_rle(poisoned_mask(rle_to_mask(target.rle), rng)))
                if rng.random() < share
                else target
                for target in image.targets
            ),
        )
        for image in images
    ]


class Bench:
    """What all seeds share: model, images, encodings."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model = load_model(options.model, checkpoint=options.checkpoint)
        limits = (MASKS_PER_IMAGE, options.min_area)
        self.learnable = read_split(options.data, "train", 10_000, *limits)
        self.held_out = read_split(options.data, "val", 10_000, *limits)
        self.source = CachedSource(self.model, lambda i: read_image(Path(i.ref.uri)), max_bytes=2_000_000_000)

    def train(self, images: Sequence[AdapterImage], seed: int) -> InteractiveModel:
        masks = sum(len(image.targets) for image in images)
        kind = self.options.kind or self.model.default_adapter(masks)
        limits = {"max_steps": self.options.steps, "max_minutes": self.options.minutes}
        config = AdapterConfig.for_masks(masks, kind=kind, seed=seed, **limits)
        with tempfile.TemporaryDirectory() as folder:
            result = train_adapter(self.model, list(images), self.source, config, Path(folder) / "checkpoint")
        return adapted(self.model, result.tensors)

    def judge(self, model: InteractiveModel, truth: Sequence[AdapterImage]) -> tuple[ObjectResult, ...]:
        report = evaluate_adapter(
            model, truth, self.source, EvaluationConfig(max_masks=self.options.objects, replay=False)
        )
        assert report is not None
        return report.objects

    @cached_property
    def live_on_truth(self) -> tuple[ObjectResult, ...]:
        """The same for every seed."""
        return self.judge(self.model, self.held_out)

    def run(self, seed: int) -> dict[str, Any]:
        """Both retrains of a seed, and what the gate says."""
        began = time.perf_counter()
        clean = self.train(draw(self.learnable, self.options.masks, seed), seed)
        more = draw(self.learnable, 2 * self.options.masks, seed)
        spoilt = self.train(poison(more, self.options.share, seed), seed)
        row: dict[str, Any] = {"seed": seed}
        for truth, images in (("true", self.held_out), ("poisoned", poison(self.held_out, self.options.share, seed))):
            live = self.live_on_truth if truth == "true" else self.judge(self.model, images)
            first, second = self.judge(clean, images), self.judge(spoilt, images)
            row[truth] = {
                "clean": shown(decide(live, first, GateConfig())),
                "poisoned": shown(decide(first, second, GateConfig())),
            }
        return row | {"seconds": time.perf_counter() - began}


def shown(decision: GateDecision) -> dict[str, Any]:
    """What is kept of a decision."""
    figures = decision.figures
    return {
        "promoted": decision.promote,
        "reasons": decision.reasons,
        "noc": (figures["live_noc"], figures["candidate_noc"]),
        "broken_promises": figures["candidate_violation_share"],
    }


def describe(row: dict[str, Any]) -> str:
    """One seed as a line."""
    parts = [f"seed {row['seed']}"]
    for truth in ("true", "poisoned"):
        for name in ("clean", "poisoned"):
            own = row[truth][name]
            outcome = "promoted" if own["promoted"] else "rejected"
            parts.append(f"{name} on {truth} masks {own['noc'][0]:.2f} -> {own['noc'][1]:.2f} {outcome}")
    return "; ".join(parts) + f" ({row['seconds']:.0f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of a COCO set with train and val splits")
    parser.add_argument("--model", default="default")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--masks", type=int, default=100)
    parser.add_argument("--share", type=float, default=0.3, help="of the masks that are poisoned")
    parser.add_argument("--kind", help="of adapter; default: what retraining makes of so many masks")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--objects", type=int, default=100, help="held-out objects")
    parser.add_argument("--min-area", type=int, default=400, help="smaller objects are left out, in pixels")
    parser.add_argument("--steps", type=int, help="of each training; default: what retraining takes for so many masks")
    parser.add_argument("--minutes", type=float, help="of each training at most; default likewise")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON lines; seeds found there are not repeated")
    options = parser.parse_args()
    if options.data is None:
        print("gate under poison: skipped, it needs --data DIR")
        return
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    if options.out is not None and options.out.exists():
        rows = [json.loads(line) for line in options.out.read_text().splitlines()]
    bench = Bench(options)
    for seed in options.seeds:
        if any(row["seed"] == seed for row in rows):
            continue
        rows.append(bench.run(seed))
        print(describe(rows[-1]), flush=True)
        if options.out is not None:
            with options.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    for truth in ("true", "poisoned"):
        kept_out = sum(not row[truth]["poisoned"]["promoted"] for row in rows)
        let_in = sum(row[truth]["clean"]["promoted"] for row in rows)
        print(f"held-out masks {truth}: {let_in} of {len(rows)} clean retrains promoted, ", end="")
        print(f"{kept_out} of {len(rows)} poisoned ones rejected")


if __name__ == "__main__":
    main()
