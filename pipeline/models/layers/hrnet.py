"""HRNet: branches of several resolutions side by side, which exchange features after every module.

Source: Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2020; sizes and names
of parameters as in RITM's code (SamsungLabs/ritm_interactive_segmentation b9b4460).
"""

# B batch, C channels, h/w grid of the finest branch (1/4 of the input)

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEM_CHANNELS = 64


def conv_norm(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, has_relu: bool = True
) -> nn.Sequential:
    """Convolution without bias, batch norm, and a ReLU if wanted."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out_channels)
    ]  # fmt: skip
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if has_relu else nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True))) + x)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, four times as wide at the end, and the identity or a projection."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        out = self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = conv_norm(in_channels, out, 1, has_relu=False) if in_channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h, w)."""
        own = F.relu(self.bn1(self.conv1(x)), inplace=True)
        own = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(own)), inplace=True)))
        return F.relu(own + (x if self.downsample is None else self.downsample(x)))


class HighResolutionModule(nn.Module):
    """Blocks on each branch, then every branch becomes the sum of all, resized to it."""

    def __init__(self, widths: Sequence[int], num_blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(own) for _ in range(num_blocks))) for own in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_exchange(widths, target, source) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """One map per branch, in and out."""
        maps = [branch(own) for branch, own in zip(self.branches, maps, strict=True)]
        fused = []
        for target, layers in enumerate(self.fuse_layers):
            size = maps[target].shape[2:]
            total: Tensor | None = None
            for source, own in enumerate(maps):
                moved = layers[source](own)  # type: ignore[index]
                if source > target:
                    moved = F.interpolate(moved, size=size, mode="bilinear", align_corners=True)
                total = moved if total is None else total + moved
            assert total is not None, "there is a branch"
            fused.append(F.relu(total))
        return fused


def _exchange(widths: Sequence[int], target: int, source: int) -> nn.Module:
    """From one branch to another: strided convolutions down, a 1x1 convolution (and resizing later) up."""
    if source == target:
        return nn.Identity()
    if source > target:
        return conv_norm(widths[source], widths[target], 1, has_relu=False)
    steps = [conv_norm(widths[source], widths[source], 3, 2) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, conv_norm(widths[source], widths[target], 3, 2, has_relu=False))


class HighResolutionNet(nn.Module):
    """See the module.

    Args:
        width: Channels of the finest branch; each coarser one has twice as many.
        small: The "s" form: half as many blocks and fewer modules.
        num_stages: 3 or 4; the last stage has as many branches.
    """

    def __init__(self, width: int, small: bool = False, num_stages: int = 4) -> None:
        super().__init__()
        blocks = 2 if small else 4
        self.num_stages = num_stages
        self.widths: tuple[int, ...] = tuple(width << index for index in range(num_stages))
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.conv2 = nn.Conv2d(STEM_CHANNELS, STEM_CHANNELS, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(STEM_CHANNELS)
        out = Bottleneck.expansion * STEM_CHANNELS
        self.layer1 = nn.Sequential(
            Bottleneck(STEM_CHANNELS, STEM_CHANNELS), *(Bottleneck(out, STEM_CHANNELS) for _ in range(blocks - 1))
        )
        modules = {2: 1, 3: 3 if small else 4, 4: 2 if small else 3}
        self.transition1 = nn.ModuleList([conv_norm(out, width, 3), nn.Sequential(conv_norm(out, 2 * width, 3, 2))])
        self.stage2 = _stage(self.widths[:2], modules[2], blocks)
        self.transition2 = _next_branch(self.widths[:3])
        self.stage3 = _stage(self.widths[:3], modules[3], blocks)
        if num_stages == 4:
            self.transition3 = _next_branch(self.widths)
            self.stage4 = _stage(self.widths, modules[4], blocks)

    def stem(self, images: Tensor, added: Tensor | None = None) -> Tensor:
        """Normalised RGB (B, 3, H, W) -> (B, 256, h, w); `added` (B, 64, H/2, W/2) joins after the first layer."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = x if added is None else x + added
        out: Tensor = self.layer1(F.relu(self.bn2(self.conv2(x)), inplace=True))
        return out

    def three_stages(self, images: Tensor, added: Tensor | None = None) -> list[Tensor]:
        """See `stem`; maps at 1/4, 1/8 and 1/16 after the third stage."""
        x = self.stem(images, added)
        maps = self.stage2([self.transition1[0](x), self.transition1[1](x)])
        out: list[Tensor] = self.stage3([*maps, self.transition2[-1](maps[-1])])
        return out

    def fourth_stage(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps of three branches -> of four, down to 1/32."""
        out: list[Tensor] = self.stage4([*maps, self.transition3[-1](maps[-1])])
        return out

    def forward(self, images: Tensor, added: Tensor | None = None) -> list[Tensor]:
        """See `stem`; the maps of the last stage, finest (1/4) first."""
        maps = self.three_stages(images, added)
        return self.fourth_stage(maps) if self.num_stages == 4 else maps


def _stage(widths: Sequence[int], num_modules: int, num_blocks: int) -> nn.Sequential:
    return nn.Sequential(*(HighResolutionModule(widths, num_blocks) for _ in range(num_modules)))


def _next_branch(widths: Sequence[int]) -> nn.ModuleList:
    """A new, coarser branch from the coarsest one; the others go on as they are."""
    same = [nn.Identity() for _ in widths[:-1]]
    return nn.ModuleList([*same, nn.Sequential(conv_norm(widths[-2], widths[-1], 3, 2))])


def same_size(maps: Sequence[Tensor]) -> Tensor:
    """All maps at the finest grid, one after the other along the channels: (B, sum of C, h, w)."""
    size = maps[0].shape[2:]
    return torch.cat(
        [maps[0], *(F.interpolate(own, size=size, mode="bilinear", align_corners=True) for own in maps[1:])], 1
    )
