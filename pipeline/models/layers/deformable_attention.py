"""Multi-scale deformable attention: each cell reads a few places that it chooses itself, on every level.

Source: Zhu et al., "Deformable DETR", ICLR 2021, section 4.1, eq. 3; names of parameters as in its code.
"""

# B batch, L cells of all levels, C channels, h heads, l levels, p points

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int]


class DeformableAttention(nn.Module):
    """See the module.

    Args:
        dim: C.
        num_heads: Of C / num_heads channels each.
        num_levels: Maps that are read.
        num_points: Places per map and head.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.shape = (num_heads, num_levels, num_points)
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._initialise()

    def _initialise(self) -> None:
        """Each head looks in a direction of its own, its points further and further away; all count alike."""
        heads, levels, points = self.shape
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, points + 1).view(1, 1, points, 1)
        offsets = direction.view(heads, 1, 1, 2).expand(heads, levels, points, 2) * steps
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, places: Tensor, values: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Read the levels at the queries' places and around them.

        Args:
            query: (B, Q, C).
            places: (Q, 2) each query's (x, y) in [0, 1] of the map.
            values: (B, L, C) the cells of all levels, level after level.
            grids: (h, w) of each level.

        Returns:
            (B, Q, C).
        """
        batch, num, dim = query.shape
        heads, levels, points = self.shape
        offsets = self.sampling_offsets(query).view(batch, num, heads, levels, points, 2)
        weights = self.attention_weights(query).view(batch, num, heads, levels * points).softmax(-1)
        size = torch.tensor([(w, h) for h, w in grids], dtype=query.dtype, device=query.device)
        at = places.view(1, num, 1, 1, 1, 2) + offsets / size.view(1, 1, 1, levels, 1, 2)
        projected = self.value_proj(values).view(batch, -1, heads, dim // heads)
        sampled = []
        for level, (grid, own) in enumerate(zip(grids, projected.split([h * w for h, w in grids], 1), strict=True)):
            maps = own.permute(0, 2, 3, 1).reshape(batch * heads, -1, *grid)
            where = 2 * at[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1  # (B h, Q, p, 2)
            sampled.append(F.grid_sample(maps, where, padding_mode="zeros", align_corners=False))
        read = torch.cat(sampled, -1) * weights.transpose(1, 2).reshape(batch * heads, 1, num, -1)
        out: Tensor = self.output_proj(read.sum(-1).view(batch, dim, num).transpose(1, 2))
        return out


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention over all levels and a ReLU MLP, post-norm."""

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(dim, num_heads, num_levels, num_points)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, cells: Tensor, positions: Tensor, places: Tensor, grids: Sequence[Grid]) -> Tensor:
        """(B, L, C) -> (B, L, C); positions (1, L, C) are added to queries, not to values."""
        cells = self.norm1(cells + self.self_attn(cells + positions, places, cells, grids))
        out: Tensor = self.norm2(cells + self.linear2(F.relu(self.linear1(cells))))
        return out


def cell_centres(grids: Sequence[Grid], device: torch.device) -> Tensor:
    """(L, 2): (x, y) in [0, 1] of every cell's centre, level after level, row by row."""
    every = []
    for height, width in grids:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        every.append(torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).flatten(0, 1))
    return torch.cat(every)
