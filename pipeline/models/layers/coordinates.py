"""What the official models are told beside the image: previous mask and click disks, and logits at input size."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.clicks.encode import DISK_RADIUS, clicks_to_points, disks
from pipeline.models.layers.patch_embed import IMAGENET_MEAN, IMAGENET_STD
from schemas.clicks import Click

OFFICIAL_SETTINGS: dict[str, Any] = {
    "with_prev_mask": True,
    "use_disks": True,
    "norm_radius": DISK_RADIUS,
    "norm_mean_std": [[*IMAGENET_MEAN], [*IMAGENET_STD]],
}
"""Parameters of the official classes under which their input is `coordinate_features` beside a normalised image."""


def coordinate_features(clicks: Sequence[Sequence[Click]], previous: Tensor) -> Tensor:
    """The three coordinate channels of RITM and its descendants (MODELS 1.1, 1.2).

    Args:
        clicks: One list per image, in crop pixels.
        previous: (B, 1, h, w) probability in [0, 1].

    Returns:
        (B, 3, h, w): previous mask, positive disks, negative disks.
    """
    points = clicks_to_points(clicks, previous.device)
    return torch.cat([previous, disks(points, (previous.shape[2], previous.shape[3])).to(previous.dtype)], 1)


def to_input_size(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, K, h/4, w/4) -> (B, K, h, w), bilinear, corners aligned as the official models do."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=True)
