"""AdaptiveClick's loss on its queries: match them to masks, then class, dice and adaptive focal loss at every layer.

Source: Lin et al., "AdaptiveClick", TNNLS 2024, section III-D, with the constants and the oddities of the official code
(lab206/AdaptiveClick 543c897), which made the released weights: the target is resized bilinearly and its fractions
count as further, empty-handed masks of class 0; the weight 0.1 lies on the object's class.
"""

# B batch, Q queries, T targets, h/w mask cells, H/W px

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pipeline.training.losses import afl, dice

CLASS_COST, MASK_COST, DICE_COST = 2.0, 5.0, 5.0
CLASS_SHARE, DICE_SHARE, MASK_SHARE = 0.3, 0.3, 0.4
OBJECT_WEIGHT = 0.1


def set_loss(layers: Sequence[tuple[Tensor, Tensor]], target: Tensor) -> Tensor:
    """Loss over all layers.

    Args:
        layers: Class logits (B, Q, 2) and mask logits (B, Q, h, w) of each.
        target: (B, 1, H, W): 1 object, 0 not; other values count as 0 (the published loss knows no "ignore").

    Returns:
        Scalar.
    """
    size = (layers[0][1].shape[2], layers[0][1].shape[3])
    targets = [split_target(own, size) for own in (target == 1).float()]
    total = layers[0][0].new_zeros(())
    for classes, masks in layers:
        total = total + _layer_loss(classes.float(), masks.float(), targets)
    return total


def split_target(target: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The masks and classes that queries are matched to.

    Args:
        target: (1, H, W) of 0 and 1.
        size: (h, w) of the masks.

    Returns:
        Masks (T, h, w) of 0 and 1, classes (T,): one per value of the resized target but the smallest; values below 1
        are cut to 0, so an object with soft edges comes with copies of the background of class 0.
    """
    small = F.interpolate(target[None], size=size, mode="bilinear", align_corners=False)[0, 0]
    values = torch.unique(small)[1:]
    if values.numel() == 0:
        return small.new_zeros(0, *size), torch.zeros(0, dtype=torch.long, device=small.device)
    whole, labels = small.long(), values.long()
    return torch.stack([(whole == label).float() for label in labels]), labels


def match(classes: Tensor, masks: Tensor, targets: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Hungarian matching of one image's queries to its targets.

    Args:
        classes: (Q, 2) logits.
        masks: (Q, h, w) logits.
        targets: (T, h, w).
        labels: (T,).

    Returns:
        Indices of queries and of the targets that they get, (min(Q, T),) each.
    """
    num_queries, num_targets = len(masks), len(targets)
    with torch.no_grad():
        probability = classes.softmax(-1)[:, labels]
        pairs = masks[:, None].expand(-1, num_targets, -1, -1).flatten(0, 1)[:, None]
        wanted = targets.repeat(num_queries, 1, 1)[:, None]
        overlap = dice(pairs, wanted).view(num_queries, num_targets)
        cost = MASK_COST * _focal_cost(masks, targets) + DICE_COST * overlap - CLASS_COST * probability
        rows, columns = linear_sum_assignment(np.nan_to_num(cost.cpu().numpy(), nan=1e6, posinf=1e6, neginf=-1e6))
    return torch.as_tensor(rows, device=masks.device), torch.as_tensor(columns, device=masks.device)


def _focal_cost(masks: Tensor, targets: Tensor, gamma: float = 2.0, delta: float = 0.4) -> Tensor:
    """(Q, T): the official cost of a mask, the adaptive focal loss of whole masks instead of pixels.

    With a the mean probability of the truth and f the mean probability over the target's pixels, the focus is
    g = gamma + 1 - f, the error e = (1 - a)^g, and the cost mu e BCE + e, halved, where mu = T / ((1 + delta g) times
    the sum of e over the query's targets). Which query gets which copy of the background hangs on it.
    """
    predicted, truth = masks.flatten(1), targets.flatten(1)
    count, probability = predicted.shape[1], predicted.sigmoid()
    hits = probability @ truth.T
    area = truth.sum(1)
    agreement = (hits + (1 - probability) @ (1 - truth).T) / count
    focus = gamma + 1 - hits / (area + 1e-12)
    error = (1 - agreement) ** focus
    mu = len(targets) / ((1 + delta * focus) * error.sum(1, keepdim=True) + 1e-12)
    cross_entropy = (F.softplus(-predicted) @ truth.T + F.softplus(predicted) @ (1 - truth).T) / count
    return 0.5 * (mu * error * cross_entropy + error)


def _layer_loss(classes: Tensor, masks: Tensor, targets: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    wanted_class = torch.zeros(classes.shape[:2], dtype=torch.long, device=classes.device)
    chosen: list[Tensor] = []
    wanted: list[Tensor] = []
    for index, (own, labels) in enumerate(targets):
        if len(labels) == 0:
            continue
        rows, columns = match(classes[index], masks[index], own, labels)
        wanted_class[index, rows] = labels[columns]
        chosen.append(masks[index, rows])
        wanted.append(own[columns])
    weight = torch.tensor([1.0, OBJECT_WEIGHT], device=classes.device)
    class_loss = F.cross_entropy(classes.transpose(1, 2), wanted_class, weight)
    if not chosen:
        return CLASS_SHARE * CLASS_COST * class_loss + 0.0 * masks.sum()
    matched, truth = torch.cat(chosen)[:, None], torch.cat(wanted)[:, None]
    count = max(1, sum(len(labels) for _, labels in targets))
    mask_loss, dice_loss = afl(matched, truth).sum() / count, dice(matched, truth).sum() / count
    return (
        CLASS_SHARE * CLASS_COST * class_loss + DICE_SHARE * DICE_COST * dice_loss + MASK_SHARE * MASK_COST * mask_loss
    )
