"""How much each part of a model matters to what it was trained on, so that retraining leaves those parts alone.

The diagonal of the Fisher information, estimated as the mean squared gradient of the loss on training objects, pulls
each parameter back to where it was (elastic weight consolidation: Kirkpatrick et al., "Overcoming catastrophic
forgetting in neural networks", PNAS 2017, equation 3). Kept as one value for each output channel: a few kilobytes
beside the shipped weights, and nobody's data.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.adapters.kinds import adapter_tensors, student_of
from pipeline.adapters.scenes import Scene
from pipeline.adapters.steps import AdapterConfig, object_losses
from pipeline.models import default_weights_path
from pipeline.models._base import InteractiveModel
from schemas.errors import NotFoundError


def shipped_importance(model_id: str, weights_digest: str) -> dict[str, Tensor]:
    """What ships beside a model's weights.

    Args:
        model_id: Registered id.
        weights_digest: Of the weights in use: those of other weights say nothing about them.

    Returns:
        Name of a parameter -> (output channels,) values of 0 and more, whose mean over all parameters after the cut is
        1; empty where nothing ships for these weights.
    """
    try:
        path = importance_path(default_weights_path(model_id))
    except NotFoundError:
        return {}
    if not path.exists():
        return {}
    with safe_open(path, framework="pt") as file:
        if file.metadata()["weights"] != weights_digest:
            return {}
        return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118


def importance_path(weights: Path) -> Path:
    """The file beside a file of weights."""
    return weights.with_name(f"{weights.stem}.importance.safetensors")


def measure_importance(
    model: InteractiveModel, objects: Iterable[tuple[Scene, NDArray[np.bool_]]], seed: int = 0
) -> dict[str, Tensor]:
    """Measure it on objects, each clicked as in retraining.

    Args:
        model: With its weights, without an adapter; its parameters ask for no gradients afterwards.
        objects: Scenes and bool (H, W) masks of what the model was trained on.
        seed: Of the clicks.

    Returns:
        See `shipped_importance`.
    """
    student, trained = student_of(model, adapter_tensors(model, "full"))
    squares = {name: torch.zeros(parameter.shape[:1]) for name, parameter in trained.items()}
    config, rng, total = AdapterConfig(), np.random.default_rng(seed), 0.0
    for scene, mask in objects:
        losses = 0
        for loss in object_losses(student, scene, mask, [], rng, config):
            loss.backward()  # type: ignore[no-untyped-call]
            losses += 1
        for name, parameter in trained.items():
            if parameter.grad is not None:
                square = (parameter.grad / losses).square().cpu()
                squares[name] += square.flatten(1).mean(1) if square.ndim > 1 else square
                total += float(square.sum())
                parameter.grad = None
    mean = total / sum(parameter.numel() for parameter in trained.values())
    return {name: square / mean for name, square in squares.items()}


def save_importance(importance: Mapping[str, Tensor], path: Path, model_id: str, weights_digest: str) -> None:
    """Write it as float32 safetensors."""
    header = {"format": "clickloop-importance-1", "model": model_id, "weights": weights_digest}
    save_file({name: values.contiguous() for name, values in importance.items()}, path, header)
