"""Swin transformer stages on token grids of any size. Knows tokens, not images or clicks.

Source: Liu et al., "Swin Transformer", ICCV 2021, sections 3.1-3.3 (shifted windows, relative position bias, patch
merging); names of parameters as in the official backbone.
"""

# B batch, D embed dim, h/w grid, M window side, n windows

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.layers.transformer import Attention, Mlp

_BLOCKED = -100.0
"""Added to logits between tokens that only the cyclic shift brought together, as in the official code."""


class WindowAttention(Attention):
    """Attention inside M x M windows with a learned bias per relative position and head."""

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__(dim, num_heads)
        self.window = window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def bias(self) -> Tensor:
        """(heads, M M, M M): of each query-key pair."""
        side = self.window
        cells = torch.arange(side * side, device=self.relative_position_bias_table.device)
        rows = (cells // side)[:, None] - cells // side + side - 1
        columns = (cells % side)[:, None] - cells % side + side - 1
        return self.relative_position_bias_table[rows * (2 * side - 1) + columns].permute(2, 0, 1)

    def forward(self, x: Tensor, blocked: Tensor | None = None) -> Tensor:
        """Attend inside each window.

        Args:
            x: (B, n, M M, D).
            blocked: (n, M M, M M) added to the logits, or None.
        """
        batch, windows, length, dim = x.shape
        qkv = self.qkv(x).view(batch, windows, length, 3, self.num_heads, -1).permute(3, 0, 1, 4, 2, 5)
        bias = self.bias() if blocked is None else self.bias() + blocked[:, None]
        out = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=bias.to(x.dtype))
        projected: Tensor = self.proj(out.transpose(2, 3).reshape(batch, windows, length, dim))
        return projected


class SwinBlock(nn.Module):
    """Windowed attention (shifted by `shift` cells) and MLP, pre-norm; grids are padded to whole windows."""

    def __init__(self, dim: int, num_heads: int, window: int, shift: int, drop_path: float) -> None:
        from timm.layers import DropPath  # here: it takes a second, and few models need it

        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path: nn.Module = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, D) -> (B, h, w, D)."""
        x = x + self.drop_path(self._attend(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out

    def _attend(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        side = self.window
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = x.shape[1] // side, x.shape[2] // side
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        cut = x.view(batch, rows, side, columns, side, dim).transpose(2, 3).reshape(batch, -1, side * side, dim)
        cut = self.attn(cut, self._blocked(rows, columns, x.device) if self.shift else None)
        x = cut.view(batch, rows, columns, side, side, dim).transpose(2, 3).reshape(x.shape)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), (1, 2))
        return x[:, :height, :width]

    def _blocked(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """(n, M M, M M): 0 between tokens that were neighbours before the shift, else `_BLOCKED`."""
        side, shift = self.window, self.shift

        def parts(count: int) -> Tensor:
            place = torch.arange(count * side, device=device)
            return (place >= count * side - side).long() + (place >= count * side - shift).long()

        label = parts(rows)[:, None] * 3 + parts(columns)
        label = label.view(rows, side, columns, side).transpose(1, 2).reshape(rows * columns, side * side)
        return (label[:, None] != label[:, :, None]) * _BLOCKED


class PatchMerging(nn.Module):
    """2 x 2 neighbours to one token of twice the width; odd grids are padded with zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, D) -> (B, h/2, w/2, 2 D), rounded up."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        out: Tensor = self.reduction(self.norm(x))
        return out


class SwinStage(nn.Module):
    """Blocks at one resolution, every second one shifted by half a window, then patch merging (not in the last)."""

    def __init__(
        self, dim: int, depth: int, num_heads: int, window: int, drop_paths: list[float], merges: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(dim, num_heads, window, 0 if index % 2 == 0 else window // 2, drop_paths[index])
            for index in range(depth)
        )
        self.downsample = PatchMerging(dim) if merges else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, h, w, D) -> the stage's output, and what the next stage gets."""
        for block in self.blocks:
            x = block(x)
        return x, x if self.downsample is None else self.downsample(x)
