"""Fixed sine positions of the cells of a map.

Source: Carion et al., "DETR", ECCV 2020, and its code: normalised to 2 pi, temperature 10000, the rows' half first.
"""

import math

import torch
from torch import Tensor

_TEMPERATURE = 10000.0
_EPS = 1e-6


def sine_positions(grid: tuple[int, int], dim: int, device: torch.device | None = None) -> Tensor:
    """Positions of a grid's cells.

    Args:
        grid: (h, w).
        dim: Channels, a multiple of 4; half of them tell the row, half the column.
        device: Where the tensor goes.

    Returns:
        (1, dim, h, w) float32.
    """
    half = dim // 2
    channel = torch.arange(half, dtype=torch.float32, device=device)
    wavelength = _TEMPERATURE ** (2 * torch.div(channel, 2, rounding_mode="floor") / half)

    def along(count: int) -> Tensor:
        place = torch.arange(1, count + 1, dtype=torch.float32, device=device)
        angle = (place / (count + _EPS) * (2 * math.pi))[:, None] / wavelength
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], 2).flatten(1)

    rows = along(grid[0])[:, None].expand(*grid, half)
    columns = along(grid[1])[None].expand(*grid, half)
    return torch.cat([rows, columns], 2).permute(2, 0, 1)[None]
