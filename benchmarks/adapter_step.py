"""A training step of an adapter from cached encodings against full fine-tuning: CPU time and extra memory.

One step = some clicks on one photograph: forward, loss, backward, AdamW. Each variant runs in a process of its own on
one thread. Time is CPU time, so that a busy machine changes little; memory is the peak above what the loaded model took
before the first step. By default the shipped model, then FDRN with ViT-B as F1 (random weights), whose head adapter is
the aim's: time >= 40, memory <= 0.15 of full fine-tuning with the encoder.

    python benchmarks/adapter_step.py [--model ID ...] [--kind head] [--clicks 1 4] [--steps 8]
"""

import argparse
import itertools
import multiprocessing
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from pipeline.adapters.kinds import adapter_tensors, student_of
from pipeline.adapters.scenes import Scene
from pipeline.adapters.trajectories import crop_target, refine_scene
from pipeline.inference.preprocess import image_to_input
from pipeline.memory import keep_freed_memory
from pipeline.models import create_model
from pipeline.models._base import InteractiveModel
from pipeline.training.losses import nfl
from schemas.clicks import Click
from schemas.requests import ADAPTER_KINDS

VARIANTS = {
    "adapter, cached encoding": (False, True),
    "adapter, encoder run each step": (False, False),
    "full fine-tune with the encoder": (True, False),
}
"""Name -> (is everything trained, is the encoding cached)."""


def student(model: InteractiveModel, kind: str, is_full: bool) -> tuple[InteractiveModel, list[torch.nn.Parameter]]:
    """What runs, and what of it is trained."""
    if is_full:
        return model, list(model.parameters())
    own, trained = student_of(model, adapter_tensors(model, kind))
    return own, list(trained.values())


def steps_of(
    model_id: str, kind: str, is_full: bool, is_cached: bool, clicks: int, steps: int
) -> tuple[float, float, int]:
    """(CPU ms per step, extra MB, trained parameters); runs in its own process."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, parameters = student(create_model(model_id), kind, is_full)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (384, 512, 3), np.uint8)
    target = np.zeros((384, 512), bool)
    target[100:280, 150:380] = True
    with torch.no_grad():
        stored = model.encode(image_to_input(model, image)).to(dtype=torch.float16)
    roi, previous = (60, 100, 320, 430), np.zeros(model.input_size, np.float32)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    times = []
    for _ in range(steps + 2):
        started = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        if is_cached:
            encoding = stored
        else:
            with torch.set_grad_enabled(is_full):
                encoding = model.encode(image_to_input(model, image))
        scene = Scene(image, encoding)
        losses = []
        for number in range(clicks):
            click = Click(x=200.0 + 10 * number, y=180.0, is_positive=True)
            prediction = refine_scene(model, scene, [click], roi, previous)
            loss = nfl(prediction.logits[:, :1], crop_target(model, scene, target, roi)).mean()
            if not is_full:
                loss.backward()
            else:
                losses.append(loss)
        if losses:  # one pass through the encoder for all clicks of the image
            torch.stack(losses).sum().backward()
        optimizer.step()
        times.append(1000 * (time.process_time() - started))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return statistics.median(times[2:]), (peak - base) / 1024, sum(p.numel() for p in parameters)


@dataclass
class Variant:
    """A way to train: median CPU ms per step, extra MB and trained parameters of each process that ran it."""

    name: str
    runs: list[tuple[float, float, int]] = field(default_factory=list)

    @property
    def ms(self) -> float:
        """Median over the processes."""
        return statistics.median(run[0] for run in self.runs)

    @property
    def extra_mb(self) -> float:
        """Likewise."""
        return statistics.median(run[1] for run in self.runs)


def measure(
    model_id: str,
    kind: str = "head",
    clicks: int = 1,
    steps: int = 8,
    rounds: int = 1,
    names: Sequence[str] = tuple(VARIANTS),
) -> list[Variant]:
    """Run variants by turns, each time in a process of its own; the first of them is the adapter, the last is full."""
    spawn = multiprocessing.get_context("spawn")
    variants = [Variant(name) for name in names]
    for _ in range(rounds):
        for variant in variants:
            with spawn.Pool(1) as pool:
                variant.runs.append(pool.apply(steps_of, (model_id, kind, *VARIANTS[variant.name], clicks, steps)))
    return variants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["fdrn-compact", "fdrn-timm:vit_base_patch16_224.mae"])
    parser.add_argument("--kind", choices=ADAPTER_KINDS, default="head")
    parser.add_argument("--clicks", type=int, nargs="+", default=[1, 4], help="clicks per image and step")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    for model_id, clicks in itertools.product(options.model, options.clicks):
        print(f"{model_id}, {clicks} click(s) per step, adapter of kind {options.kind}", flush=True)
        variants = measure(model_id, options.kind, clicks, options.steps)
        for variant in variants:
            millions = variant.runs[0][2] / 1e6
            figures = f"{variant.ms:8.0f} CPU ms  {variant.extra_mb:7.0f} MB extra  {millions:6.2f} M trained"
            print(f"  {variant.name:32} {figures}")
        adapter, _, full = variants
        time_ratio, memory_ratio = full.ms / adapter.ms, adapter.extra_mb / full.extra_mb
        print(f"  full / adapter time {time_ratio:.1f}   adapter / full extra memory {memory_ratio:.2f}")


if __name__ == "__main__":
    main()
