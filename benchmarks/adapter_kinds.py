"""The kinds of adapters side by side: what they hold, what a step costs, what they reach (ClickAdapter, Tables IV-V).

Each kind trains the same steps on the same masks of a COCO set's train split, in a process of its own, and is then
clicked with on the same objects of the val split: boundary NoC (clicks until boundary IoU, dilation 0.02, reaches the
target; 20 where it never does), NoC, and mean IoUs. Masks are the truth, encodings are cached, flip is off.

    python benchmarks/adapter_kinds.py --data DIR [--samples 500] [--steps 150] [--objects 40] [--kinds head full ...]
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from adapter_gain import first_masks, read_split

from pipeline.adapters.kinds import adapted
from pipeline.adapters.scenes import AdapterImage
from pipeline.adapters.source import CachedSource
from pipeline.adapters.steps import AdapterConfig
from pipeline.adapters.train import train_adapter
from pipeline.data.coco import read_image
from pipeline.evaluation.costs import resident_mib
from pipeline.evaluation.metrics import mean_at, noc
from pipeline.evaluation.robot import evaluate_sample
from pipeline.inference.predictor import Predictor
from pipeline.masks.rle import rle_to_mask
from pipeline.models import load_model
from pipeline.models._base import InteractiveModel
from schemas.requests import ADAPTER_KINDS

NONE = "none"
CLICKS = 20


def quality(model: InteractiveModel, images: list[AdapterImage]) -> str:
    """Figures of a model on the targets of these images."""
    predictor = Predictor(model)
    ious, bious = [], []
    for image in images:
        pixels = read_image(Path(image.ref.uri))
        for target in image.targets:
            curve = evaluate_sample(predictor, pixels, rle_to_mask(target.rle), target=1.01, max_clicks=CLICKS)
            ious.append(curve.ious)
            bious.append(curve.bious)

    return (
        f"bNoC@85 {noc(bious, 0.85, CLICKS):5.2f}  bNoC@90 {noc(bious, 0.90, CLICKS):5.2f}"
        f"  NoC@90 {noc(ious, 0.90, CLICKS):5.2f}  mIoU@5 {mean_at(ious, 5):.3f}"
        f"  mBIoU@5 {mean_at(bious, 5):.3f}"
    )


def measure(kind: str, options: argparse.Namespace) -> str:
    """The row of one kind; runs in its own process."""
    torch.set_num_threads(options.threads)
    model = load_model(options.model, checkpoint=options.checkpoint)
    limits = (options.objects_per_image, options.min_area)
    held_out = first_masks(read_split(options.data, "val", 10_000, *limits), options.objects)
    if kind == NONE:
        return f"{'-':>8} {'-':>8} {'-':>8}  {quality(model, held_out)}"
    training = first_masks(read_split(options.data, "train", 10_000, *limits), options.samples)
    source = CachedSource(model, lambda image: read_image(Path(image.ref.uri)), max_bytes=4_000_000_000)
    config = AdapterConfig(
        kind=kind, max_steps=options.steps, max_minutes=60, seed=options.seed, validation_share=0.0, mirror=False
    )
    for image in training:
        source.scene(image, False, config.max_side)
    before = resident_mib() or 0.0
    took: list[float] = []
    last = time.process_time()

    def progress(_: object) -> None:
        nonlocal last
        took.append(time.process_time() - last)
        last = time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        result = train_adapter(model, training, source, config, Path(folder) / "checkpoint", progress)
    extra = (resident_mib(peak=True) or 0.0) - before
    learnable = sum(tensor.numel() for tensor in result.tensors.values())
    costs = f"{learnable / 1e6:8.3f} {np.mean(took):8.2f} {extra:8.0f}"
    return f"{costs}  {quality(adapted(model, result.tensors), held_out)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of a COCO set with train and val splits")
    parser.add_argument("--model", default="default")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=(NONE, *ADAPTER_KINDS), default=[NONE, *ADAPTER_KINDS])
    parser.add_argument("--samples", type=int, default=500, help="masks to train on")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--objects", type=int, default=40, help="held-out objects")
    parser.add_argument("--objects-per-image", type=int, default=6)
    parser.add_argument("--min-area", type=int, default=400, help="smaller objects are left out, in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.data is None:
        print("adapter kinds: skipped, it needs --data DIR")
        return
    print(f"{options.data.name}: {options.samples} masks, {options.steps} steps, {options.objects} held-out objects")
    print(f"{'kind':12} {'M learn':>8} {'CPU s/it':>8} {'MiB more':>8}")
    spawn = multiprocessing.get_context("spawn")
    for kind in options.kinds:
        with spawn.Pool(1) as pool:
            print(f"{kind:12} {pool.apply(measure, (kind, options))}", flush=True)


if __name__ == "__main__":
    main()
