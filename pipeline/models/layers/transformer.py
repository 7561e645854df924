"""Pre-norm transformer blocks, and token grids cut into windows. Knows tokens, not images or clicks.

Source: Dosovitskiy et al., ICLR 2021 (blocks); Li et al., "Exploring Plain Vision Transformer Backbones", ECCV 2022
(windows without shift); constants of uncbiag/SimpleClick f33112e.
"""

# B batch, L tokens, D embed dim, h/w grid, n windows per side

import torch.nn.functional as F
from torch import Tensor, nn

from schemas.errors import BadInputError

NORM_EPS = 1e-6
_WINDOW_PX = 224
"""A window covers as many patches per side as an image of this size."""


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection in the order query, key, value.

    Args:
        dim: D.
        num_heads: Of D / num_heads channels each; logits are divided by the root of that.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        batch, length, dim = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(batch, length, dim))
        return projected


class Mlp(nn.Module):
    """Two linear layers with exact GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases of every linear layer, as plain ViTs of these papers start."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def num_windows(grid: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """How many windows a grid is cut into, per axis: as many of 224 px as fit, at least one.

    Args:
        grid: (h, w) in tokens.
        patch_size: In pixels.

    Raises:
        BadInputError: The grid cannot be shared out evenly.
    """
    side = _WINDOW_PX // patch_size
    counts = max(1, grid[0] // side), max(1, grid[1] // side)
    if grid[0] % counts[0] or grid[1] % counts[1]:
        raise BadInputError(
            f"An input of {grid[0] * patch_size}x{grid[1] * patch_size} pixels (height x width) does not divide into "
            f"windows of {_WINDOW_PX} pixels. Take multiples of {_WINDOW_PX}."
        )
    return counts


def to_windows(x: Tensor, grid: tuple[int, int], counts: tuple[int, int]) -> Tensor:
    """Tokens of a grid to tokens of its windows.

    Args:
        x: (B, h w, D).
        grid: (h, w).
        counts: Windows per axis, dividing the grid.

    Returns:
        (B n_h n_w, window tokens, D).
    """
    batch, _, dim = x.shape
    height, width = grid[0] // counts[0], grid[1] // counts[1]
    x = x.view(batch, counts[0], height, counts[1], width, dim).transpose(2, 3)
    return x.reshape(-1, height * width, dim)


def from_windows(x: Tensor, grid: tuple[int, int], counts: tuple[int, int]) -> Tensor:
    """The inverse of `to_windows`."""
    dim = x.shape[-1]
    height, width = grid[0] // counts[0], grid[1] // counts[1]
    x = x.view(-1, counts[0], counts[1], height, width, dim).transpose(2, 3)
    return x.reshape(-1, grid[0] * grid[1], dim)


class WindowedBlocks:
    """Runs blocks, most of them inside windows and some on the whole grid, changing the layout only where needed.

    Args:
        depth: Blocks of the whole network.
        patch_size: In pixels.
    """

    def __init__(self, depth: int, patch_size: int) -> None:
        self.patch_size = patch_size
        self.every = 6 if depth == 12 else max(1, depth // 4)

    def is_global(self, index: int) -> bool:
        """Whether block `index` (from 0) sees the whole grid: every g-th does, g = 6 for depth 12, else depth / 4."""
        return (index + 1) % self.every == 0

    def run(self, blocks: nn.ModuleList, x: Tensor, grid: tuple[int, int], first: int, last: int) -> Tensor:
        """Apply blocks `first` to `last` (exclusive) to tokens (B, h w, D) in grid order, giving the same layout."""
        counts = num_windows(grid, self.patch_size)
        is_cut = False
        for index in range(first, last):
            if self.is_global(index) == is_cut:
                x = from_windows(x, grid, counts) if is_cut else to_windows(x, grid, counts)
                is_cut = not is_cut
            x = blocks[index](x)
        return from_windows(x, grid, counts) if is_cut else x
