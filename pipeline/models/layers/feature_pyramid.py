"""Simple feature pyramid: maps at 1/4, 1/8, 1/16 and 1/32 from the one map of a plain ViT.

Source: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022, section 3, in the
form of SimpleClick (uncbiag/SimpleClick f33112e): GroupNorm with one group, exact GELU, every convolution with bias.
"""

from torch import Tensor, nn


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, channels)


class SimpleFeaturePyramid(nn.Module):
    """(B, D, h, w), h and w even -> maps of 4h, 2h, h and h/2 rows.

    Args:
        in_dim: D.
        out_dims: Channels at 1/4, 1/8, 1/16 and 1/32.
    """

    def __init__(self, in_dim: int, out_dims: tuple[int, int, int, int]) -> None:
        super().__init__()
        o4, o8, o16, o32 = out_dims
        m4, m8, m32 = max(2 * o4, in_dim // 2), max(o8, in_dim // 2), max(o32, 2 * in_dim)
        self.down_4 = nn.Sequential(
            nn.ConvTranspose2d(in_dim, m4, 2, 2),
            _norm(m4),
            nn.GELU(),
            nn.ConvTranspose2d(m4, m4 // 2, 2, 2),
            _norm(m4 // 2),
            nn.Conv2d(m4 // 2, o4, 1),
            _norm(o4),
            nn.GELU(),
        )
        self.down_8 = nn.Sequential(
            nn.ConvTranspose2d(in_dim, m8, 2, 2), _norm(m8), nn.Conv2d(m8, o8, 1), _norm(o8), nn.GELU()
        )
        self.down_16 = nn.Sequential(nn.Conv2d(in_dim, o16, 1), _norm(o16), nn.GELU())
        self.down_32 = nn.Sequential(
            nn.Conv2d(in_dim, m32, 2, 2), _norm(m32), nn.Conv2d(m32, o32, 1), _norm(o32), nn.GELU()
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Finest first."""
        return [self.down_4(x), self.down_8(x), self.down_16(x), self.down_32(x)]
