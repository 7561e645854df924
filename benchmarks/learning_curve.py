"""How fast a model learns a domain: NoC on the same held-out objects after retraining on N masks, over kinds and seeds.

N masks of the train split (truth masks, at most 5 an image, images in an order drawn by the seed; smaller N are parts
of larger ones) train an adapter from cached encodings; the objects of the val split are clicked before and after.
Prints each run, then per kind and N the mean over seeds and the change in NoC@90 with its 95 % interval (paired
bootstrap, by image). Where several kinds are asked for, every fourth image of the train split trains none: its objects
choose the kind, so that the choice does not flatter what is reported. With `--old` the same adapters also click objects
of sets that the model knew before: what it forgets.
A file of results (`--out`) lets a stopped run go on, and several processes share the work (`--jobs`).

    python benchmarks/learning_curve.py --data DIR [--counts 25 50 100 200 400] [--kinds head lora] [--out FILE]
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapter_gain import first_masks, read_split
from kept_runs import add_runs, found_runs, missing
from numpy.typing import NDArray

from pipeline.adapters.evaluate import AdapterReport, EvaluationConfig, evaluate_adapter
from pipeline.adapters.gate import GateConfig, paired_bootstrap
from pipeline.adapters.kinds import adapted
from pipeline.adapters.scenes import AdapterImage
from pipeline.adapters.source import CachedSource
from pipeline.adapters.steps import AdapterConfig
from pipeline.adapters.train import train_adapter
from pipeline.data.coco import read_image
from pipeline.evaluation.costs import resident_mib
from pipeline.evaluation.metrics import clicks_to_reach
from pipeline.evaluation.plot import check_plot_path, plot_curves
from pipeline.models import default_weights_path, load_model, resolve_model_id, weights_digest
from schemas.requests import ADAPTER_KINDS

MASKS_PER_IMAGE = 5
CLICKS = 20
NO_KIND = "none"


def draw(images: Sequence[AdapterImage], count: int, seed: int) -> list[AdapterImage]:
    """The first so many masks of the images in the seed's order."""
    return first_masks((images[index] for index in np.random.default_rng(seed).permutation(len(images))), count)


def figures(report: AdapterReport) -> dict[str, Any]:
    """NoC by object at both targets."""
    return {
        "noc90": [clicks_to_reach(curve, 0.90, CLICKS) for curve in report.curves],
        "noc85": [clicks_to_reach(curve, 0.85, CLICKS) for curve in report.curves],
        "groups": [own.group for own in report.objects],
        "nof90": sum(max(curve, default=0.0) < 0.90 for curve in report.curves),
    }


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What two runs must share to stand in one table."""
    names = ("data", "model", "checkpoint", "objects", "min_area", "steps", "minutes", "old", "old_objects")
    weights = weights_digest(options.checkpoint or default_weights_path(resolve_model_id(options.model)))
    own = {name: str(getattr(options, name)) for name in names}
    return own | {"weights": weights, "chooses": str(len(options.kinds) > 1)}


def run(task: tuple[str, int, int, argparse.Namespace]) -> dict[str, Any]:
    """One retraining (count 0: none) and its evaluation."""
    kind, count, seed, options = task
    torch.set_num_threads(options.threads)
    model = load_model(options.model, checkpoint=options.checkpoint)
    limits = (MASKS_PER_IMAGE, options.min_area)
    held_out = read_split(options.data, "val", 10_000, *limits)
    source = CachedSource(model, lambda image: read_image(Path(image.ref.uri)), max_bytes=2_000_000_000)
    evaluation = EvaluationConfig(max_masks=options.objects, max_clicks=CLICKS, replay=False)
    row: dict[str, Any] = {"kind": kind, "count": count, "seed": seed, "settings": settings_of(options)}
    learnable = read_split(options.data, "train", 10_000, *limits)
    choosing = learnable[::4] if len(options.kinds) > 1 else []
    if choosing:
        learnable = [image for index, image in enumerate(learnable) if index % 4]
    candidate = model
    if count:
        chosen = draw(learnable, count, seed)
        config = AdapterConfig.for_masks(
            count, kind=kind, seed=seed, max_steps=options.steps, max_minutes=options.minutes
        )
        began, cpu = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            result = train_adapter(model, chosen, source, config, Path(folder) / "checkpoint")
        row |= {
            "masks": sum(len(image.targets) for image in chosen),
            "images": len(chosen),
            "steps": result.steps,
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - cpu,
            "peak_mib": resident_mib(peak=True),
        }
        candidate = adapted(model, result.tensors)
    report = evaluate_adapter(candidate, held_out, source, evaluation)
    assert report is not None
    row["broken_promises"] = sum(own.violations for own in report.objects) / sum(own.clicks for own in report.objects)
    if choosing:
        other = evaluate_adapter(candidate, choosing, source, replace(evaluation, max_masks=options.choosing))
        assert other is not None
        row["choosing"] = figures(other)["noc90"]
    row["old"] = {}
    for folder in options.old:
        known = read_split(folder, "val", 10_000, *limits)
        other = evaluate_adapter(candidate, known, source, replace(evaluation, max_masks=options.old_objects))
        assert other is not None
        row["old"][folder.name] = figures(other)
    return row | figures(report)


def describe(row: dict[str, Any]) -> str:
    """One run as a line."""
    text = (
        f"{row['kind']:12} {row['count']:5d} masks  seed {row['seed']}  NoC@85 {np.mean(row['noc85']):6.2f}"
        f"  NoC@90 {np.mean(row['noc90']):6.2f}  NoF@90 {row['nof90']:4d} of {len(row['noc90'])}"
    )
    if "choosing" in row:
        text += f"  others {np.mean(row['choosing']):6.2f}"
    if row["count"]:
        text += f"  {row['images']} images, {row['steps']} steps, {row['seconds']:.0f} s ({row['cpu_seconds']:.0f} CPU)"
    for name, old in row["old"].items():
        text += f"  {name} {np.mean(old['noc90']):.2f}"
    return text


def mean_noc(rows: Sequence[dict[str, Any]], kind: str, count: int, objects: str = "noc90") -> NDArray[np.float64]:
    """NoC@90 by object, mean over the seeds."""
    own = [row[objects] for row in rows if row["count"] == count and row["kind"] in (kind, NO_KIND)]
    result: NDArray[np.float64] = np.mean(np.array(own, float), axis=0)
    return result


def change(before: NDArray[np.float64], after: NDArray[np.float64], groups: Sequence[str]) -> str:
    """The change of a mean, with its interval over objects."""
    gain = paired_bootstrap(before - after, groups, GateConfig(), np.random.default_rng(0))
    share = 100 / before.mean()
    return f"{share * after.mean() - 100:6.1f}%  [{-gain.high * share:.1f} %, {-gain.low * share:.1f} %]"


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Per kind and count: mean over seeds against no retraining, with the interval over objects."""
    live = next(row for row in rows if row["count"] == 0)
    before = np.array(live["noc90"], float)
    lines = [f"{'kind':12} {'masks':>5} {'seeds':>5} {'NoC@85':>7} {'NoC@90':>7} {'change':>7}  95 % interval"]
    lines.append(f"{'none':12} {0:5d} {'':5} {np.mean(live['noc85']):7.2f} {before.mean():7.2f}")
    for kind, count in sorted({(row["kind"], row["count"]) for row in rows if row["count"]}):
        own = [row for row in rows if row["count"] == count and row["kind"] == kind]
        after = mean_noc(rows, kind, count)
        text = f"{kind:12} {count:5d} {len(own):5d} {np.mean([row['noc85'] for row in own]):7.2f} {after.mean():7.2f}"
        lines.append(f"{text} {change(before, after, live['groups'])}")
        for name, old in live["old"].items():
            known = np.array(old["noc90"], float)
            then = np.mean([row["old"][name]["noc90"] for row in own], axis=0)
            text = f"{'':12} {name}: {known.mean():.2f} to {then.mean():.2f}"
            lines.append(f"{text} {change(known, then, old['groups'])}")
    if "choosing" in live:
        lines.append(f"chosen on {len(live['choosing'])} other objects: {best_kind(rows)}")
    return lines


def best_kind(rows: Sequence[dict[str, Any]]) -> str:
    """The kind with the lowest NoC@90 on the choosing objects, mean over the counts that all kinds were trained on."""
    kinds = sorted({row["kind"] for row in rows if row["count"]})
    counts = set.intersection(*({row["count"] for row in rows if row["kind"] == kind} for kind in kinds))
    return min(kinds, key=lambda kind: np.mean([mean_noc(rows, kind, count, "choosing") for count in counts]))


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """NoC@90 against masks, a curve for each kind."""
    curves: dict[str, dict[str, float]] = {}
    for kind in sorted({row["kind"] for row in rows if row["count"]}):
        counts = sorted({row["count"] for row in rows if row["kind"] in (kind, NO_KIND)})
        curves[kind] = {str(count): float(mean_noc(rows, kind, count).mean()) for count in counts}
    plot_curves(curves, {}, "accepted masks", "NoC@90 on held-out objects", path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of a COCO set with train and val splits")
    parser.add_argument("--model", default="default")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=ADAPTER_KINDS, default=["head"])
    parser.add_argument("--counts", type=int, nargs="+", default=[25, 50, 100, 200, 400])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--objects", type=int, default=150, help="held-out objects")
    parser.add_argument("--choosing", type=int, default=60, help="objects that choose the kind")
    parser.add_argument("--old", type=Path, nargs="+", default=[], help="folders of sets that the model knew before")
    parser.add_argument("--old-objects", type=int, default=40, help="held-out objects of each of them")
    parser.add_argument("--min-area", type=int, default=400, help="smaller objects are left out, in pixels")
    parser.add_argument("--steps", type=int, help="default: what retraining makes with so many masks")
    parser.add_argument("--minutes", type=float, help="of training at most; default: likewise")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="JSON lines; runs of the same settings found there are not repeated")
    parser.add_argument("--plot", type=Path, help="a picture of the curves")
    options = parser.parse_args()
    if options.plot:
        check_plot_path(options.plot)
    if options.data is None:
        print("learning curve: skipped, it needs --data DIR")
        return
    rows = found_runs(options.out, settings_of(options))
    asked = [(NO_KIND, 0, 0)]
    asked += [
        (kind, count, seed) for seed in range(options.seeds) for count in options.counts for kind in options.kinds
    ]
    tasks = [(*key, options) for key in missing(rows, ("kind", "count", "seed"), asked)]
    print(
        f"{options.data.name}, {options.model}, {', '.join(options.kinds)}: {options.objects} held-out objects at most"
    )
    add_runs(rows, run, tasks, options.jobs, options.out, describe)
    print("\n".join(summary(rows)))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
