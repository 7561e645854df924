"""What a model needs: parameters, arithmetic, time, memory. Measures in this process; call it in a fresh one."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from pipeline.inference.predictor import Predictor
from pipeline.inference.preprocess import image_to_input
from pipeline.models._base import InteractiveModel
from schemas.clicks import Click
from schemas.evaluation import Costs

_CLICKS = 3
"""Timed clicks per image, after one that is not."""


def resident_mib(peak: bool = False) -> float | None:
    """Memory of this process in MiB now, or its peak so far; None where the system does not say (not Linux)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    wanted = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in status.read_text().splitlines() if line.startswith(wanted))
    return int(line.split()[1]) / 1024


def measure_costs(
    model: InteractiveModel,
    images: Sequence[NDArray[np.uint8]],
    learnable: int | None = None,
    baseline: float | None = None,
) -> Costs:
    """Count and time a model on some images.

    Args:
        model: In eval mode; its weights are frozen.
        images: HWC uint8 RGB, at least one; a click is made in the middle of each, then some around it.
        learnable: Parameters of the adapter laid over it; None: all of the model's.
        baseline: `resident_mib` before the model was made, for the peak.
    """
    predictor = Predictor(model)
    encode_ms: list[float] = []
    click_ms: list[float] = []
    for image in images:
        encode_ms.append(_milliseconds(lambda image=image: predictor.set_image(image)))  # type: ignore[misc]
        height, width = image.shape[:2]
        predictor.click(Click(x=width / 2, y=height / 2, is_positive=True))
        for index in range(_CLICKS):
            click = Click(x=width * (0.3 + 0.15 * index), y=height * 0.4, is_positive=index % 2 == 1)
            click_ms.append(_milliseconds(lambda click=click: predictor.click(click)))  # type: ignore[misc]
    encode_gmacs, refine_gmacs = _gmacs(model, images[0])
    on_gpu = next(model.parameters()).is_cuda
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resident_mib(peak=True)
    total = sum(p.numel() for p in model.parameters())
    return Costs(
        parameters=total,
        learnable=total if learnable is None else learnable,
        encode_gmacs=encode_gmacs,
        refine_gmacs=refine_gmacs,
        encode_ms=statistics.median(encode_ms) if model.cut == "image" else None,
        click_ms=statistics.median(click_ms),
        peak_mib=None if peak is None else peak - (0.0 if on_gpu or baseline is None else baseline),
        threads=torch.get_num_threads(),
        device="cuda" if on_gpu else "cpu",
    )


def count_gmacs(call: Callable[[], object]) -> float:
    """Multiply-accumulates (1e9) of matrix products, convolutions and attention in a call; the rest is not counted."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops()) / 2e9


def _gmacs(model: InteractiveModel, image: NDArray[np.uint8]) -> tuple[float | None, float]:
    model.requires_grad_(False)  # torch's counter fails on layers that are given a weight that learns
    device = next(model.parameters()).device
    size = model.input_size
    crops = torch.rand(1, 3, *size, device=device)
    previous = torch.zeros(1, 1, *size, device=device)
    clicks = [[Click(x=size[1] / 2, y=size[0] / 2, is_positive=True)]]
    if model.cut == "crop":
        return None, count_gmacs(lambda: model.refine(model.encode(crops), clicks, previous))
    whole = image_to_input(model, image).to(device)
    with torch.no_grad():
        encoding = model.encode(whole)
    refined = count_gmacs(lambda: model.refine(encoding, clicks, previous, crops))
    return count_gmacs(lambda: model.encode(whole)), refined


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - began)
