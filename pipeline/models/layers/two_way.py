"""Two-way transformer decoder: a few tokens read an image map and the map reads them back.

Source: Kirillov et al., "Segment Anything", ICCV 2023, section A ("Lightweight mask decoder").
"""

# B batch, N tokens, L map cells, C channels

import torch.nn.functional as F
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Multi-head attention whose inner width may be smaller than its outer one.

    Args:
        dim: C, of queries, keys, values and output.
        num_heads: Heads of the inner width.
        downsample: Inner width is C / downsample.
    """

    def __init__(self, dim: int, num_heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        self.num_heads = num_heads
        self.q = nn.Linear(dim, inner)
        self.k = nn.Linear(dim, inner)
        self.v = nn.Linear(dim, inner)
        self.out = nn.Linear(inner, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, N, C), (B, L, C), (B, L, C) -> (B, N, C)."""
        split = [
            project(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for project, x in ((self.q, query), (self.k, key), (self.v, value))
        ]
        joined = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        out: Tensor = self.out(joined)
        return out


class TwoWayLayer(nn.Module):
    """Self-attention of the tokens, tokens to map, MLP on the tokens, map to tokens; post-norm as in the source.

    Args:
        dim: C.
        num_heads: Of each attention.
        mlp_dim: Width inside the MLP.
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.self_attn = CrossAttention(dim, num_heads)
        self.to_map = CrossAttention(dim, num_heads, downsample=2)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.ReLU(), nn.Linear(mlp_dim, dim))
        self.from_tokens = CrossAttention(dim, num_heads, downsample=2)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))

    def forward(self, tokens: Tensor, cells: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """One layer.

        Args:
            tokens: (B, N, C).
            cells: (B, L, C).
            first: (B, N, C) the tokens as they were learned: their "position", added to queries.

        Returns:
            Tokens and cells, in their shapes.
        """
        query = tokens + first
        tokens = self.norms[0](tokens + self.self_attn(query, query, tokens))
        tokens = self.norms[1](tokens + self.to_map(tokens + first, cells, cells))
        tokens = self.norms[2](tokens + self.mlp(tokens))
        cells = self.norms[3](cells + self.from_tokens(cells, tokens + first, tokens))
        return tokens, cells
