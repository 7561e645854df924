"""Masked-attention decoder: queries read the maps inside the masks that they predict, and around positive clicks.

Source: Cheng et al., "Mask2Former", CVPR 2022, section 3.2; the click-aware mask: Lin et al., "AdaptiveClick", TNNLS
2024, section III-C, in the form of lab206/AdaptiveClick 543c897.
"""

# B batch, Q queries, C channels, S cells of one map, h/w cells at 1/4, H/W crop px

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.layers.positions import sine_positions

LayerOutput = tuple[Tensor, Tensor]
"""Class logits (B, Q, classes) and mask logits (B, Q, h, w)."""


class _CrossLayer(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, positions: Tensor, keys: Tensor, values: Tensor, blocked: Tensor) -> Tensor:
        read = self.multihead_attn(queries + positions, keys, values, attn_mask=blocked, need_weights=False)[0]
        out: Tensor = self.norm(queries + read)
        return out


class _SelfLayer(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, positions: Tensor) -> Tensor:
        placed = queries + positions
        out: Tensor = self.norm(queries + self.self_attn(placed, placed, queries, need_weights=False)[0])
        return out


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor) -> Tensor:
        out: Tensor = self.norm(queries + self.linear2(F.relu(self.linear1(queries))))
        return out


class _MaskMlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


class ClickAwareDecoder(nn.Module):
    """Queries to masks.

    Args:
        dim: C, of maps, queries and mask features.
        num_queries: Q.
        num_layers: Each reads one map, in turn.
        num_heads: Of every attention.
        hidden: Width inside the MLPs.
        num_levels: Maps.
        num_classes: Logits per query.
    """

    def __init__(
        self,
        dim: int,
        num_queries: int,
        num_layers: int,
        num_heads: int,
        hidden: int,
        num_levels: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.transformer_cross_attention_layers = nn.ModuleList(_CrossLayer(dim, num_heads) for _ in range(num_layers))
        self.transformer_self_attention_layers = nn.ModuleList(_SelfLayer(dim, num_heads) for _ in range(num_layers))
        self.transformer_ffn_layers = nn.ModuleList(_FeedForward(dim, hidden) for _ in range(num_layers))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        self.decoder_norm = nn.LayerNorm(dim)
        self.query_feat = nn.Embedding(num_queries, dim)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.level_embed = nn.Embedding(num_levels, dim)
        self.class_embed = nn.Linear(dim, num_classes)
        self.mask_embed = _MaskMlp(dim)

    def forward(self, maps: Sequence[Tensor], mask_features: Tensor, clicks: Tensor) -> list[LayerOutput]:
        """Predictions before the first layer and after each.

        Args:
            maps: (B, C, h_i, w_i), coarsest first.
            mask_features: (B, C, h, w).
            clicks: (B, H, W) map of the positive clicks.
        """
        grids = [(own.shape[2], own.shape[3]) for own in maps]
        values = [own.flatten(2).transpose(1, 2) + self.level_embed.weight[level] for level, own in enumerate(maps)]
        keys = [
            own + sine_positions(grid, own.shape[2], own.device).to(own.dtype).flatten(2).transpose(1, 2)
            for own, grid in zip(values, grids, strict=True)
        ]
        queries = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)
        positions = self.query_embed.weight[None]
        outputs = [self._predict(queries, mask_features)]
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for index, (cross, own, feed_forward) in enumerate(layers):
            level = index % len(maps)
            blocked = self._blocked(outputs[-1], clicks, grids[level])
            queries = cross(queries, positions, keys[level], values[level], blocked)
            queries = feed_forward(own(queries, positions))
            outputs.append(self._predict(queries, mask_features))
        return outputs

    def _predict(self, queries: Tensor, mask_features: Tensor) -> LayerOutput:
        normed = self.decoder_norm(queries)
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(normed), mask_features)
        return self.class_embed(normed), masks

    @torch.no_grad()
    def _blocked(self, output: LayerOutput, clicks: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B heads, Q, S) bool: cells that a query may not read, outside its mask and away from positive clicks.

        Clicks count for queries that take themselves for an object. A query with nothing to read may read everything.
        """
        classes, masks = output
        inside = F.interpolate(masks, size=grid, mode="bilinear", align_corners=False).sigmoid() >= 0.5
        near = clicks[:, None]
        for _ in range(int(math.log(clicks.shape[-1] / grid[1], 2))):
            near = F.max_pool2d(near, 3, 2, 1)
        near = F.interpolate(near, size=grid, mode="bilinear", align_corners=False) >= 0.5
        is_object = classes.argmax(-1).bool()[:, :, None, None]
        blocked = ~(inside | (near & is_object)).flatten(2)
        blocked &= ~blocked.all(-1, keepdim=True)
        return blocked[:, None].expand(-1, self.num_heads, -1, -1).flatten(0, 1)
