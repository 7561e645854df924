"""Losses on logits. Pure functions; they know nothing about models or the training loop."""

# B batch, H/W px

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-12


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


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, mean over the pixels that count.

    Args:
        logits: (B, 1, H, W), before the sigmoid.
        target: (B, 1, H, W): 1 inside, 0 outside, -1 doesn't count; soft values in between are allowed.

    Returns:
        (B,) loss of each sample, 0 where no pixel counts.
    """
    counts = target != -1
    loss = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype).clamp(min=0), reduction="none")
    return _mean_where(loss, counts)


def poly(logits: Tensor, target: Tensor, epsilon: float = 1.0) -> Tensor:
    """Poly-1 cross-entropy: BCE + epsilon (1 - pt), mean over the pixels that count; arguments as for `bce`.

    Source: Leng et al., "PolyLoss", ICLR 2022, eq. 4; AdaptiveClick, Table VIII, compares with it.
    """
    counts = target != -1
    truth = target.to(logits.dtype).clamp(min=0)
    loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return _mean_where(loss + epsilon * (truth - logits.sigmoid()).abs(), counts)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - (2 sum(p y) + 1) / (sum p + sum y + 1) over the pixels that count; arguments as for `bce`.

    Source: Milletari et al., "V-Net", 3DV 2016, in the smoothed form of lab206/AdaptiveClick 543c897.
    """
    probability, truth = _counted(logits, target)
    both = (probability * truth).sum((1, 2, 3))
    return 1 - (2 * both + 1) / (probability.sum((1, 2, 3)) + truth.sum((1, 2, 3)) + 1)


def soft_iou(logits: Tensor, target: Tensor) -> Tensor:
    """1 - sum(p y) / sum(max(p, y)) over the pixels that count; 0 where nothing is and nothing is said; as for `bce`.

    Source: RITM's code (SamsungLabs/ritm_interactive_segmentation b9b4460), its soft IoU.
    """
    probability, truth = _counted(logits, target)
    both = (probability * truth).sum((1, 2, 3))
    either = torch.maximum(probability, truth).sum((1, 2, 3))
    return 1 - (both + 1e-8) / (either + 1e-8)


def afl(logits: Tensor, target: Tensor, gamma: float = 2.0, delta: float = 0.4, alpha: float = 1.0) -> Tensor:
    """Adaptive focal loss: the focus of each mask grows with how badly its object is predicted.

    With pt the probability of the truth, gamma_d = gamma + 1 - mean of pt over the object (no gradient; gamma + 1 for
    an empty one), beta = (1 - pt)^gamma_d and mu = n / ((1 + delta gamma_d) sum beta) (no gradient), a pixel's loss is
    0.5 (mu beta BCE + alpha (1 - pt)^(gamma_d + 1)).

    Args:
        logits: (B, 1, H, W), before the sigmoid.
        target: (B, 1, H, W): 1 inside, 0 outside, -1 doesn't count (ours: the official code has no such label).
        gamma: Focusing exponent of a perfect prediction.
        delta: How far the normalisation falls as the focus grows.
        alpha: Weight of the polynomial term.

    Returns:
        (B,) mean over the pixels that count.

    Source: Lin et al., "AdaptiveClick", TNNLS 2024, section III-D, as in lab206/AdaptiveClick 543c897.
    """
    counts = target != -1
    truth = target.to(logits.dtype).clamp(min=0)
    probability = logits.sigmoid()
    pt = torch.where(counts, truth * probability + (1 - truth) * (1 - probability), torch.ones_like(probability))
    error = 1 - pt
    valid = counts.sum((1, 2, 3)).to(logits.dtype)
    with torch.no_grad():
        found = (pt * truth * counts).sum((1, 2, 3)) / ((truth * counts).sum((1, 2, 3)) + _EPS)
        focus = (gamma + 1 - found)[:, None, None, None]
    beta = error**focus
    with torch.no_grad():
        mu = valid[:, None, None, None] / ((1 + delta * focus) * beta.sum((1, 2, 3), keepdim=True) + _EPS)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return _mean_where(0.5 * (mu * beta * cross_entropy + alpha * error ** (focus + 1)), counts)


def trimap(mask: Tensor) -> Tensor:
    """Where a mask's edge is: the pixels that change when it is shrunk eight times and grown again, dilated twice.

    Args:
        mask: (B, 1, H, W) of 0 and 1 (others count as 0).

    Returns:
        (B, 1, H, W) of 0 and 1.

    Source: Chen et al., "FocalClick", CVPR 2022, section 3.3.
    """
    inside = (mask == 1).float()
    size = (inside.shape[2], inside.shape[3])
    small = F.interpolate(
        inside, size=(max(1, size[0] // 8), max(1, size[1] // 8)), mode="bilinear", align_corners=False
    )
    again = F.interpolate(small, size=size, mode="bilinear", align_corners=False) > 0.5
    edge = (again != (inside > 0.5)).float()
    for _ in range(2):
        edge = F.max_pool2d(edge, 3, 1, 1)
    return edge


def boundary_nfl(logits: Tensor, target: Tensor) -> Tensor:
    """NFL weighted 1 on the trimap and 0.5 elsewhere, divided by the sum of the weights; arguments as for `nfl`.

    Source: Chen et al., "FocalClick", CVPR 2022, section 3.3 (the loss of the refined mask).
    """
    weight = 0.5 * trimap(target) + 0.5
    counts = (target != -1).to(logits.dtype)
    total = (weight * counts).sum((1, 2, 3)).clamp(min=_EPS)
    return nfl(logits, target, weight=weight) * counts.sum((1, 2, 3)).clamp(min=1) / total


def _counted(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and truth, both 0 where a pixel doesn't count."""
    counts = (target != -1).to(logits.dtype)
    return logits.sigmoid() * counts, target.to(logits.dtype).clamp(min=0) * counts


def _mean_where(loss: Tensor, counts: Tensor) -> Tensor:
    return (loss * counts).sum((1, 2, 3)) / counts.sum((1, 2, 3)).clamp(min=1)
