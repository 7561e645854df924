"""What training minimises for one refine step: mask, boundary, coarse mask and the model's own quality estimate."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.training.losses import nfl


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights of the parts.

    Attributes:
        soft_iou: Of the soft IoU loss; the focal loss has weight 1.
        boundary: Weight of pixels in the boundary band; others have 1.
        boundary_px: Half width of that band in crop pixels.
        coarse: Of the auxiliary loss at 1/16.
        score: Of the squared error of the predicted IoU.
    """

    soft_iou: float = 0.5
    boundary: float = 2.0
    boundary_px: int = 3
    coarse: float = 0.2
    score: float = 0.2


def boundary_weights(target: Tensor, inside: float, half_width: int) -> Tensor:
    """(R, 1, h, w) truth in {0, 1} -> weight `inside` within `half_width` px of the object's edge, 1 elsewhere."""
    side = 2 * half_width + 1
    dilated = F.max_pool2d(target, side, 1, half_width)
    eroded = -F.max_pool2d(-target, side, 1, half_width)
    return 1 + (inside - 1) * (dilated - eroded)


def soft_iou_loss(logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """1 - sum(p y) / sum(p + y - p y), weighted per pixel, mean over the batch."""
    probs = torch.sigmoid(logits)
    both = (probs * target * weights).sum((1, 2, 3))
    either = ((probs + target - probs * target) * weights).sum((1, 2, 3))
    return (1 - (both + 1e-3) / (either + 1e-3)).mean()


def mask_iou(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """(R,) IoU of logits > 0 and truth over counted pixels; 1 where both are empty."""
    mask = (logits > 0) & (counted > 0)
    truth = (target > 0.5) & (counted > 0)
    both, either = (mask & truth).sum((1, 2, 3)), (mask | truth).sum((1, 2, 3))
    return torch.where(either > 0, both / either.clamp_min(1), torch.ones_like(both, dtype=torch.float32)).float()


def objective(
    logits: Tensor, coarse: Tensor, score: Tensor, target: Tensor, config: ObjectiveConfig
) -> tuple[Tensor, Tensor]:
    """Total loss and the IoU of each region.

    Args:
        logits: (R, 1, h, w).
        coarse: (R, 1, h/16, w/16).
        score: (R, 1) before the sigmoid.
        target: (R, h, w) int8 with -1 for pixels that do not count.
        config: Weights.
    """
    logits, coarse, score = logits.float(), coarse.float(), score.float()
    truth = (target == 1).float()[:, None]
    counted = (target >= 0).float()[:, None]
    weights = boundary_weights(truth, config.boundary, config.boundary_px) * counted
    loss = nfl(logits, target[:, None], weight=weights).mean()
    loss = loss + config.soft_iou * soft_iou_loss(logits, truth, weights)
    coarse_truth = F.adaptive_avg_pool2d(truth, (coarse.shape[2], coarse.shape[3]))
    loss = loss + config.coarse * F.binary_cross_entropy_with_logits(coarse, coarse_truth)
    iou = mask_iou(logits.detach(), truth, counted)
    loss = loss + config.score * (torch.sigmoid(score[:, 0]) - iou).square().mean()
    return loss, iou
