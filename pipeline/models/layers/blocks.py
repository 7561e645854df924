"""Dense convolution blocks with batch normalisation. No depthwise ones: they are slower than dense on CPUs."""

from torch import Tensor, nn


class ConvNormAct(nn.Sequential):
    """Convolution without bias, BatchNorm, ReLU; keeps the grid for stride 1."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class ResBlock(nn.Module):
    """Basic residual block: two 3x3 convolutions, 1x1 projection shortcut where the shape changes.

    Source: He et al., CVPR 2016, section 3; the form that FDRN calls ResBlock is not stated, this is the choice here.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = ConvNormAct(in_channels, out_channels, 3, stride)
        norm = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(norm.weight)  # starts as the shortcut: trains faster from scratch
        self.second = nn.Sequential(nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False), norm)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h/stride, w/stride)."""
        out: Tensor = self.act(self.second(self.first(x)) + self.shortcut(x))
        return out
