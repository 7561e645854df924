"""Losses on logits. Pure functions; they know nothing about models or the training loop."""

# B batch, H/W px

import torch
from torch import Tensor


def nfl(logits: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 2.0, weight: Tensor | None = None) -> Tensor:
    """Normalised focal loss: a focal loss whose weights are rescaled, per sample, to sum to the number of pixels.

    Args:
        logits: (B, 1, H, W), before the sigmoid.
        target: (B, 1, H, W): 1 inside, 0 outside, -1 doesn't count.
        alpha: Factor of the loss.
        gamma: Focusing exponent.
        weight: (B, 1, H, W) optional weight of each pixel's loss (ours, e.g. a boundary band); 1 is the paper's loss.

    Returns:
        (B,) loss of each sample: the sum over its pixels divided by the number of those that count. The normalising
        factor carries no gradient.

    Source: Sofiiuk et al., "AdaptIS: Adaptive Instance Selection Network", sec. 3.3; constants as in the official code
        of SimpleClick (uncbiag/SimpleClick f33112e).
    """
    counts = target != -1
    probability = logits.sigmoid()
    pt = torch.where(counts, 1 - (target - probability).abs(), torch.ones_like(probability))
    beta = (1 - pt) ** gamma
    num_valid = counts.sum((1, 2, 3)).to(logits.dtype)
    with torch.no_grad():
        factor = num_valid / (beta.sum((1, 2, 3)) + 1e-12)
    loss = -alpha * factor[:, None, None, None] * beta * torch.log((pt + 1e-12).clamp(max=1.0))
    if weight is not None:
        loss = loss * weight
    return loss.sum((1, 2, 3)) / num_valid.clamp(min=1)
