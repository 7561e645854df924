"""ClickAdapter's detail extractor: local detail of the image by deformable convolutions, injected into early features.

Source: Li et al., "ClickAdapter", TCSVT 2024, section III-B and eq. 1-3. No code is public; where the text is silent
the choice is in docs/models/clickadapter.md. Knows features and images, not clicks.
"""

# B batch, C channels, h/w grid at 1/16, L = h * w

import torch
from torch import Tensor, nn

from pipeline.models.layers.deformable_conv import DeformableConv
from pipeline.models.layers.transformer import NORM_EPS, Mlp
from pipeline.models.layers.two_way import CrossAttention


def _unit(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        DeformableConv(in_channels, out_channels, 3, stride), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
    )


class SpatialPrior(nn.Module):
    """Image -> spatial features at 1/16.

    Args:
        hidden: hd of the paper; widths are hd/16, hd/8, hd/4 in the stem, then hd/2 and hd.
        out_channels: C of the host's features.
    """

    def __init__(self, hidden: int, out_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _unit(3, hidden // 16, 2),
            nn.MaxPool2d(3, 2, 1),  # second, as in ResNets: the two wider convolutions then cost a quarter
            _unit(hidden // 16, hidden // 8),
            _unit(hidden // 8, hidden // 4),
        )
        self.filter = nn.Sequential(_unit(hidden // 4, hidden // 2, 2), _unit(hidden // 2, hidden, 2))
        self.project = DeformableConv(hidden, out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised RGB -> (B, C, H/16, W/16)."""
        out: Tensor = self.project(self.filter(self.stem(images)))
        return out


class Injector(nn.Module):
    """Spatial features into early host features (eq. 1), both into high-quality features (eq. 2, 3), at 1/4.

    Args:
        dim: C.
        num_heads: Of both attentions.
        out_channels: Of the result.
    """

    def __init__(self, dim: int, num_heads: int, out_channels: int) -> None:
        super().__init__()
        self.norm_early = nn.LayerNorm(dim, eps=NORM_EPS)
        self.norm_spatial = nn.LayerNorm(dim, eps=NORM_EPS)
        self.inject = CrossAttention(dim, num_heads)
        self.gamma = nn.Parameter(torch.zeros(dim))
        self.norm_ffn = nn.LayerNorm(dim, eps=NORM_EPS)
        self.ffn = Mlp(dim, 4 * dim)
        self.norm_query = nn.LayerNorm(dim, eps=NORM_EPS)
        self.norm_injected = nn.LayerNorm(dim, eps=NORM_EPS)
        self.extract = CrossAttention(dim, num_heads)
        self.compress = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 2, 2, 2),
            nn.GroupNorm(1, dim // 2),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, out_channels, 2, 2),
        )

    def forward(self, early: Tensor, spatial: Tensor) -> Tensor:
        """Two maps (B, C, h, w) -> (B, C', 4h, 4w)."""
        grid = early.shape[2:]
        early, spatial = (x.flatten(2).transpose(1, 2) for x in (early, spatial))
        keys = self.norm_spatial(spatial)
        early = early + self.gamma * self.inject(self.norm_early(early), keys, keys)
        spatial = spatial + self.ffn(self.norm_ffn(spatial))
        keys = self.norm_injected(early)
        fine = spatial + self.extract(self.norm_query(spatial), keys, keys)
        out: Tensor = self.compress(fine.transpose(1, 2).unflatten(2, grid))
        return out
