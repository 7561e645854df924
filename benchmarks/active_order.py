"""Whether the order in which images are labeled saves masks: NoC on the same held-out objects after retraining on the
first N masks of each order.

`random` draws the images by the seed; the other orders are those of `clickloop order`, from one look at the train split
with the model as it is. Truth masks, at most 5 an image. Prints each run, then per order and N the mean over the seeds,
the change against the random order with its 95 % interval (paired bootstrap, by image), and how many masks the order
needs to come where the random one is with the most masks (linear between the counts).

    python benchmarks/active_order.py --data DIR [--orders random uncertainty mixed] [--counts 25 50 100] [--out FILE]
"""

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from adapter_gain import first_masks, read_split
from kept_runs import add_runs, found_runs, missing
from learning_curve import MASKS_PER_IMAGE, change, figures

from pipeline.adapters.evaluate import EvaluationConfig, evaluate_adapter
from pipeline.adapters.kinds import adapted
from pipeline.adapters.scenes import AdapterImage
from pipeline.adapters.source import CachedSource
from pipeline.adapters.steps import AdapterConfig
from pipeline.adapters.train import train_adapter
from pipeline.data.coco import read_image
from pipeline.models import default_weights_path, load_model, resolve_model_id, weights_digest
from pipeline.models._base import InteractiveModel
from pipeline.ordering import GRID, Look, look_of, order_images
from pipeline.prelabels import find_prelabels
from schemas.requests import OrderBy

RANDOM = "random"
ORDERS = (RANDOM, *(by for by in get_args(OrderBy) if by != "plain"))


def look_at(model: InteractiveModel, source: CachedSource, images: Sequence[AdapterImage]) -> list[Look]:
    """What orders are made of."""
    scenes = (source.scene(image) for image in images)
    return [look_of(find_prelabels(model, scene.image, scene.encoding, GRID)) for scene in scenes]


def in_order(by: str, images: Sequence[AdapterImage], looks: Sequence[Look], seed: int) -> list[AdapterImage]:
    """The images as they would be labeled. Where two are worth the same, the seed's order decides."""
    drawn = np.random.default_rng(seed).permutation(len(images))
    if by == RANDOM:
        return [images[index] for index in drawn]
    order = order_images(by, [looks[index] for index in drawn], seed=seed)  # type: ignore[arg-type]
    return [images[drawn[index]] for index in order]


def run(task: tuple[str, int, int, Sequence[Look], argparse.Namespace]) -> dict[str, Any]:
    """One retraining (count 0: none) and its evaluation."""
    by, count, seed, looks, options = task
    torch.set_num_threads(1)
    model = load_model(options.model, checkpoint=options.checkpoint)
    source = CachedSource(model, lambda image: read_image(Path(image.ref.uri)), max_bytes=2_000_000_000)
    learnable = read_split(options.data, "train", 10_000, MASKS_PER_IMAGE, options.min_area)
    held_out = read_split(options.data, "val", 10_000, MASKS_PER_IMAGE, options.min_area)
    row: dict[str, Any] = {"order": by, "count": count, "seed": seed, "settings": settings_of(options)}
    candidate = model
    if count:
        chosen = first_masks(in_order(by, learnable, looks, seed), count)
        config = AdapterConfig(seed=seed, max_steps=options.steps, max_minutes=options.minutes)
        candidate = adapted(model, train_adapter(model, chosen, source, config).tensors)
        row["images"] = len(chosen)
    report = evaluate_adapter(candidate, held_out, source, EvaluationConfig(max_masks=options.objects, replay=False))
    assert report is not None
    return row | figures(report)


def settings_of(options: argparse.Namespace) -> dict[str, str]:
    """What two runs must share to stand in one table."""
    weights = weights_digest(options.checkpoint or default_weights_path(resolve_model_id(options.model)))
    own = {name: str(getattr(options, name)) for name in ("data", "model", "objects", "min_area", "steps", "minutes")}
    return own | {"weights": weights}


def masks_needed(curve: dict[int, float], target: float) -> float | None:
    """The smallest number of masks at which a curve of NoC comes down to the target; None where it does not."""
    counts = sorted(curve)
    if curve[counts[0]] <= target:
        return float(counts[0])
    for few, many in pairwise(counts):
        if curve[many] <= target:
            return few + (many - few) * (curve[few] - target) / (curve[few] - curve[many])
    return None


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Per order and count, and what each order saves."""
    live = next(row for row in rows if row["count"] == 0)
    lines = [f"no retraining: NoC@85 {np.mean(live['noc85']):.2f}, NoC@90 {np.mean(live['noc90']):.2f}"]
    curves: dict[str, dict[int, float]] = {}
    means = {}
    for by, count in dict.fromkeys((row["order"], row["count"]) for row in rows if row["count"]):
        own = [row for row in rows if (row["order"], row["count"]) == (by, count)]
        means[by, count] = np.mean(np.array([row["noc90"] for row in own], float), axis=0)
        curves.setdefault(by, {0: float(np.mean(live["noc90"]))})[count] = float(means[by, count].mean())
        text = f"{by:12} {count:5d} masks {len(own)} seeds  images {np.mean([row['images'] for row in own]):5.1f}"
        text += f"  NoC@85 {np.mean([row['noc85'] for row in own]):5.2f}  NoC@90 {means[by, count].mean():5.2f}"
        if by != RANDOM and (RANDOM, count) in means:
            text += f"  against random {change(means[RANDOM, count], means[by, count], live['groups'])}"
        lines.append(text)
    if RANDOM in curves:
        most = max(curves[RANDOM])
        target = curves[RANDOM][most]
        for by, curve in curves.items():
            needed = masks_needed(curve, target)
            told = f"more than {max(curve)}" if needed is None else f"{needed:.0f}"
            lines.append(f"{by:12} needs {told} masks for NoC@90 {target:.2f}")
    return lines


def describe(row: dict[str, Any]) -> str:
    """One line about a run."""
    images = f", {row['images']} images" if "images" in row else ""
    told = f"{row['count']} masks{images}, seed {row['seed']}: NoC@90 {np.mean(row['noc90']):.2f}"
    return f"{row['order']:12} {told}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of a COCO set with train and val splits")
    parser.add_argument("--model", default="default")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--counts", type=int, nargs="+", default=[25, 50, 100])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--objects", type=int, default=150, help="held-out objects")
    parser.add_argument("--min-area", type=int, default=400, help="smaller objects are left out, in pixels")
    parser.add_argument("--steps", type=int, default=300, help="of each training, as retraining makes")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each training at most")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--out", type=Path, help="JSON lines; runs of the same settings found there are not repeated")
    options = parser.parse_args()
    if options.data is None:
        print("active order: skipped, it needs --data DIR")
        return
    rows = found_runs(options.out, settings_of(options))
    asked = [(RANDOM, 0, 0)]
    asked += [(by, n, seed) for seed in range(options.seeds) for n in options.counts for by in options.orders]
    left = missing(rows, ("order", "count", "seed"), asked)
    if left:
        torch.set_num_threads(1)
        model = load_model(options.model, checkpoint=options.checkpoint)
        source = CachedSource(model, lambda image: read_image(Path(image.ref.uri)))
        looks = look_at(model, source, read_split(options.data, "train", 10_000, MASKS_PER_IMAGE, options.min_area))
        add_runs(rows, run, [(*key, looks, options) for key in left], options.jobs, options.out, describe)
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
