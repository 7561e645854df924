"""What a retrained adapter gains on a domain that the model never saw: NoC on held-out images before and after.

Needs a folder with annotations.json (COCO, images marked train and val) and images/. Its train split plays the accepted
masks, its val split the hold-out:

    python benchmarks/adapter_gain.py --data DIR --train-images 60 --objects 100 --minutes 5

Masks are the truth here, so no figure is flattered by masks that the live model made itself.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from pipeline.adapters.evaluate import AdapterReport, EvaluationConfig, evaluate_adapter
from pipeline.adapters.gate import GateConfig, decide
from pipeline.adapters.kinds import adapted
from pipeline.adapters.scenes import AdapterImage, AdapterTarget
from pipeline.adapters.source import CachedSource
from pipeline.adapters.steps import AdapterConfig
from pipeline.adapters.train import train_adapter
from pipeline.data.coco import read_coco, read_image
from pipeline.masks.rle import mask_to_rle
from pipeline.models import load_model
from schemas.predictions import ImageRef


def read_split(folder: Path, split: str, max_images: int, max_objects: int, min_area: int) -> list[AdapterImage]:
    """The first images of a split with some of their objects, as accepted masks."""
    dataset = read_coco(folder / "annotations.json", folder / "images", split)
    targets: dict[int, list[AdapterTarget]] = {}
    for sample in dataset.samples:
        own = targets.get(sample.image.image_id, [])
        if sample.is_crowd or len(own) >= max_objects or (len(targets) >= max_images and not own):
            continue
        truth = sample.read_gt() == 1
        if truth.sum() >= min_area:
            own.append(AdapterTarget(str(sample.annotation_id), sample.category_id, mask_to_rle(truth)))
            targets[sample.image.image_id] = own
    images = []
    for image in dataset.images:
        if targets.get(image.image_id):
            ref = ImageRef(sha256=str(image.path), uri=str(image.path), width=image.width, height=image.height)
            images.append(AdapterImage(ref, str(image.path), tuple(targets[image.image_id])))
    return images


def first_masks(images: Iterable[AdapterImage], count: int) -> list[AdapterImage]:
    """The images that hold the first so many masks; of the last one only those that are left."""
    kept: list[AdapterImage] = []
    left = count
    for image in images:
        if left <= 0:
            break
        kept.append(replace(image, targets=image.targets[:left]))
        left -= len(kept[-1].targets)
    return kept


def line(name: str, report: AdapterReport) -> str:
    """One row of the table."""
    s = report.summary()
    return (
        f"{name:10} NoC@85 {s['noc']['85']:6.2f}  NoC@90 {s['noc']['90']:6.2f}  NoF@90 {s['nof']['90']:4d}"
        + "".join(f"  mIoU@{k} {v:.3f}" for k, v in s["miou_at"].items())
        + f"  broken promises {s['monotone']['violations']}/{s['monotone']['clicks']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of a COCO set with train and val splits")
    parser.add_argument("--model", default="default")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--train-images", type=int, default=60)
    parser.add_argument("--objects-per-image", type=int, default=6)
    parser.add_argument("--objects", type=int, default=100, help="held-out objects")
    parser.add_argument("--min-area", type=int, default=400, help="smaller objects are left out, in pixels")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="other AdapterConfig values")
    options = parser.parse_args()
    if options.data is None:
        print("adapter gain: skipped, it needs --data DIR")
        return
    torch.set_num_threads(options.threads)
    model = load_model(options.model, checkpoint=options.checkpoint)
    limits = (options.objects_per_image, options.min_area)
    training = read_split(options.data, "train", options.train_images, *limits)
    held_out = read_split(options.data, "val", 10_000, *limits)
    source = CachedSource(model, lambda image: read_image(Path(image.ref.uri)), max_bytes=2_000_000_000)
    evaluation = EvaluationConfig(max_masks=options.objects, replay=False)
    chosen = dict(item.split("=", 1) for item in options.set)
    values = {name: json.loads(value) for name, value in chosen.items()}
    config = AdapterConfig(max_steps=options.steps, max_minutes=options.minutes, seed=options.seed, **values)

    print(f"{options.data.name}: {len(training)} training images, {sum(len(i.targets) for i in training)} masks")
    live = evaluate_adapter(model, held_out, source, evaluation)
    assert live is not None
    print(line("live", live), flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = train_adapter(model, training, source, config, Path(folder) / "checkpoint")
    print(
        f"trained {result.steps} steps in {time.monotonic() - started:.0f} s, kept step {result.best_step};"
        f" validation mIoU {result.live_iou or 0:.4f} -> {result.best_iou or 0:.4f}"
    )
    print([(row["step"], round(row["iou"], 4)) for row in result.history])
    candidate = evaluate_adapter(adapted(model, result.tensors), held_out, source, evaluation)
    assert candidate is not None
    print(line("candidate", candidate))
    decision = decide(live.objects, candidate.objects, GateConfig())
    print("gate:", "promoted" if decision.promote else "rejected", *decision.reasons)
    print(json.dumps({"improvement": decision.figures.get("improvement"), "config": asdict(config)}))


if __name__ == "__main__":
    main()
