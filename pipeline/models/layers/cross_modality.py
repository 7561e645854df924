"""Cross-modality block: a stream of click tokens reads a stream of image tokens, which stays as it is.

Source: Li et al., "iCMFormer", ICCV Workshops 2023, section 3.2, in the form of lik1996/iCMFormer 0040a85.
"""

# B batch, L tokens, D embed dim

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.layers.transformer import NORM_EPS, Attention, Mlp


class CrossAttention(Attention):
    """Attention whose queries come from one stream and whose keys and values from another.

    One fused projection holds all three, as in the official code; of each stream only its own part is computed.
    """

    def forward(self, query: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        """(B, L, D) and (B, L', D) -> (B, L, D)."""
        batch, length, dim = query.shape
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(query, weight[:dim], bias[:dim])
        kv = F.linear(context, weight[dim:], bias[dim:])
        q = q.view(batch, length, self.num_heads, -1).transpose(1, 2)
        kv = kv.view(batch, context.shape[1], 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, kv[0], kv[1])
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(batch, length, dim))
        return projected


class CrossModalityBlock(nn.Module):
    """Self-attention of the clicks, clicks to image, MLP; each pre-norm with a residual. Both inputs of the second
    attention go through the same norm.

    Args:
        dim: D.
        num_heads: Of both attentions.
        eps: Of the norms.
    """

    def __init__(self, dim: int, num_heads: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn1 = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.attn2 = CrossAttention(dim, num_heads)
        self.norm3 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, clicks: Tensor, image: Tensor) -> Tensor:
        """Click tokens (B, L, D) and image tokens (B, L, D) -> click tokens."""
        clicks = clicks + self.attn1(self.norm1(clicks))
        clicks = clicks + self.attn2(self.norm2(clicks), self.norm2(image))
        out: Tensor = clicks + self.mlp(self.norm3(clicks))
        return out
