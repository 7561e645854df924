"""Clicks as network input: the points tensor and the two disk maps. Knows nothing about images or ZoomIn.

Sofiiuk et al., "Reviving Iterative Training with Mask Guidance for Interactive Segmentation", sec. 3.1 (disks instead
of distance maps). Coordinates are network-input pixels on the grid of pixel indices (no half-pixel), kept as floats.
"""

# B batch, N clicks per sign (padded), h/w crop px

from collections.abc import Sequence

import torch
from torch import Tensor

from schemas.clicks import Click

DISK_RADIUS = 5


def clicks_to_points(clicks: Sequence[Sequence[Click]], device: torch.device | str | None = None) -> Tensor:
    """Write clicks as the points tensor of the official models.

    Args:
        clicks: One list per image, in the order made, in crop pixels.
        device: Where the tensor goes.

    Returns:
        (B, 2N, 3) float32: N positive rows, then N negative ones, each (row y, column x, order index), in the order
        made; unused rows are -1. N is the largest number of clicks of one sign in the batch, at least 1.
    """
    signed = [[[(c.y, c.x, i) for i, c in enumerate(own) if c.is_positive == sign] for sign in (True, False)]
              for own in clicks]  # fmt: skip
    num = max([1, *(len(rows) for pair in signed for rows in pair)])
    padding = (-1.0, -1.0, -1.0)
    table = [[row for rows in pair for row in [*rows, *[padding] * (num - len(rows))]] for pair in signed]
    return torch.tensor(table, dtype=torch.float32, device=device)


def disks(points: Tensor, size: tuple[int, int], radius: int = DISK_RADIUS) -> Tensor:
    """Draw clicks as binary disks: 1 where the squared distance to a click of that sign is <= radius².

    A row counts as padding if max(y, x) < 0: a click that left the crop by one coordinate only is still drawn (where
    it can be seen), as in the official code. Only the window around each click is computed, so cost grows by about
    0.15 k pixels per click, not by the map.

    Args:
        points: (B, 2N, 3) float32 as `clicks_to_points` gives.
        size: (h, w) of the maps.
        radius: In pixels.

    Returns:
        (B, 2, h, w) float32 of 0 and 1: positive map, then negative map.
    """
    batch, rows, _ = points.shape
    height, width = size
    offsets = torch.arange(-radius, radius + 2, device=points.device)
    y, x = points[..., 0], points[..., 1]
    row = y.floor().long()[..., None] + offsets
    column = x.floor().long()[..., None] + offsets
    square_y = (row - y[..., None]).square()
    square_x = (column - x[..., None]).square()
    inside_y = (row >= 0) & (row < height) & (torch.maximum(y, x) >= 0)[..., None]
    inside_x = (column >= 0) & (column < width)
    drawn = (square_y[..., :, None] + square_x[..., None, :] <= radius**2) & (
        inside_y[..., :, None] & inside_x[..., None, :]
    )
    plane = torch.arange(batch, device=points.device)[:, None] * 2 + (
        torch.arange(rows, device=points.device) >= rows // 2
    )
    index = (plane[..., None, None] * height + row[..., :, None]) * width + column[..., None, :]
    maps = torch.zeros(batch * 2 * height * width, device=points.device)
    maps[index[drawn]] = 1.0
    return maps.view(batch, 2, height, width)
