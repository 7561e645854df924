"""Multi-scale segmentation head: every scale to the same width, fused at the finest grid, one logit per cell.

Source: the all-MLP decoder of SegFormer (Xie et al., NeurIPS 2021, section 3.2) as SimpleClick uses it
(uncbiag/SimpleClick f33112e): convolutions with bias and ReLU, no normalisation.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class _ConvReLU(nn.Module):
    """1x1 convolution and ReLU; the attribute's name is that of official checkpoints."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class MultiScaleHead(nn.Module):
    """Maps at 1/4, 1/8, 1/16, 1/32 -> logits at 1/4.

    Args:
        in_channels: Of each map, finest first.
        channels: Width of the head.
        dropout: Share of channels dropped in training.
    """

    def __init__(self, in_channels: tuple[int, ...], channels: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_ConvReLU(own, channels) for own in in_channels)
        self.fusion_conv = _ConvReLU(channels * len(in_channels), channels)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, 1, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """List of (B, C_i, h_i, w_i) -> (B, 1, h_0, w_0).

        The fusing convolution acts on each cell and interpolation on each channel, so they change places: every map is
        fused on its own grid, at a third of the arithmetic, and the concatenation at 1/4 is never made.
        """
        size = (maps[0].shape[2], maps[0].shape[3])
        fusion = self.fusion_conv.conv
        parts = fusion.weight.chunk(len(maps), 1)
        fused = F.conv2d(self.convs[0](maps[0]), parts[0], fusion.bias)
        for conv, own, part in zip(self.convs[1:], maps[1:], parts[1:], strict=True):
            coarser = F.conv2d(conv(own), part)
            fused = fused + F.interpolate(coarser, size=size, mode="bilinear", align_corners=False)
        logits: Tensor = self.conv_seg(self.dropout(F.relu(fused)))
        return logits
