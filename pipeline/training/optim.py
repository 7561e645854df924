"""Device, learning rate by step, and averaged weights."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from schemas.errors import BadInputError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with warm-up, a stable stretch and a linear decay to zero, so that any slice can be decayed to a model.

    Attributes:
        learning_rate: At the plateau.
        weight_decay: On weights of convolutions and linear layers only.
        warmup_steps: Linear from 0.
        decay_steps: Linear to 2 % over the last so many steps.
        clip_norm: Largest norm of the gradient.
        ema: Decay of the averaged weights per step.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 500
    decay_steps: int = 0
    clip_norm: float = 1.0
    ema: float = 0.9995


def training_device(name: str) -> torch.device:
    """The device to train on.

    Raises:
        BadInputError: It is a GPU, and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInputError(
            "There is no GPU here that PyTorch can use. Train with --device cpu, or see `clickloop doctor`."
        )
    return torch.device(name)


def learning_rate_at(step: int, steps: int, config: OptimConfig) -> float:
    """The rate for 0-based `step` of `steps`."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    left = (steps - step) / config.decay_steps if config.decay_steps else 1.0
    return config.learning_rate * min(warm, max(0.02, min(1.0, left)))


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW; norms and biases are not decayed."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    """Move averaged weights and statistics towards the model's, in place; faster in the first steps."""
    rate = 1 - min(decay, (1 + step) / (10 + step))
    state = model.state_dict()
    moving = [name for name, value in state.items() if value.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in moving], [state[name] for name in moving], rate)
    for name in state.keys() - set(moving):
        average[name].copy_(state[name])
