"""A training step of an adapter from cached encodings against full fine-tuning: CPU time and extra memory.

One step = some clicks on one 512 x 384 photograph: forward, loss, backward, AdamW. Each variant runs in a process of
its own on one thread. Time is CPU time, so that a busy machine changes little; memory is the peak above what the loaded
model took before the first step.

    python benchmarks/adapter_step.py [--model ID] [--clicks 4] [--steps 8]
"""

import argparse
import multiprocessing
import resource
import statistics
import time

import numpy as np
import torch

from pipeline.adapters.kinds import adapter_tensors
from pipeline.adapters.scenes import Scene
from pipeline.adapters.trajectories import crop_target, refine_scene
from pipeline.inference.preprocess import image_to_input
from pipeline.models import create_model
from pipeline.models._base import InteractiveModel
from pipeline.training.losses import nfl
from schemas.clicks import Click

VARIANTS = {
    "adapter, cached encoding": ("head", True),
    "adapter, encoder run each step": ("head", False),
    "full fine-tune": ("full", False),
}


def trainable(model: InteractiveModel, what: str) -> list[torch.nn.Parameter]:
    """Freeze everything but what is trained."""
    head = set(adapter_tensors(model, "head"))
    chosen = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(what == "full" or name in head)
        if parameter.requires_grad:
            chosen.append(parameter)
    return chosen


def measure(model_id: str, what: str, is_cached: bool, clicks: int, steps: int) -> tuple[float, float, int]:
    """(CPU ms per step, extra MB, trained parameters); runs in its own process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = create_model(model_id).eval()
    parameters = trainable(model, what)
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
            with torch.set_grad_enabled(what == "full"):
                encoding = model.encode(image_to_input(model, image))
        scene = Scene(image, encoding)
        losses = []
        for number in range(clicks):
            click = Click(x=200.0 + 10 * number, y=180.0, is_positive=True)
            prediction = refine_scene(model, scene, [click], roi, previous)
            loss = nfl(prediction.logits[:, :1], crop_target(model, scene, target, roi)).mean()
            if is_cached or what == "head":
                loss.backward()
            else:
                losses.append(loss)
        if losses:  # one pass through the encoder for all clicks of the image
            torch.stack(losses).sum().backward()
        optimizer.step()
        times.append(1000 * (time.process_time() - started))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return statistics.median(times[2:]), (peak - base) / 1024, sum(p.numel() for p in parameters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fdrn-compact")
    parser.add_argument("--clicks", type=int, nargs="+", default=[1, 4], help="clicks per image and step")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    for clicks in options.clicks:
        print(f"{options.model}, {clicks} click(s) per step")
        found = {}
        for name, (what, is_cached) in VARIANTS.items():
            with spawn.Pool(1) as pool:
                found[name] = pool.apply(measure, (options.model, what, is_cached, clicks, options.steps))
            ms, extra_mb, count = found[name]
            print(f"  {name:32} {ms:8.0f} CPU ms  {extra_mb:7.0f} MB extra  {count / 1e6:5.2f} M trained", flush=True)
        adapter, full = found["adapter, cached encoding"], found["full fine-tune"]
        print(
            f"  full / adapter time {full[0] / adapter[0]:.1f}   adapter / full extra memory {adapter[1] / full[1]:.2f}"
        )


if __name__ == "__main__":
    main()
