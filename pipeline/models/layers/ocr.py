"""Object-contextual representations: every cell reads the one object region that a coarse mask describes.

Source: Yuan et al., "Object-Contextual Representations for Semantic Segmentation", ECCV 2020, section 3; names of
parameters as in RITM's code.
"""

# B batch, C channels, K regions, h/w grid

import torch
from torch import Tensor, nn


def _unit(in_channels: int, out_channels: int) -> list[nn.Module]:
    norm = nn.Sequential(nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))
    return [nn.Conv2d(in_channels, out_channels, 1, bias=False), norm]


class ObjectAttention(nn.Module):
    """Cells attend to region vectors."""

    def __init__(self, channels: int, key_channels: int) -> None:
        super().__init__()
        self.f_pixel = nn.Sequential(*_unit(channels, key_channels), *_unit(key_channels, key_channels))
        self.f_object = nn.Sequential(*_unit(channels, key_channels), *_unit(key_channels, key_channels))
        self.f_down = nn.Sequential(*_unit(channels, key_channels))
        self.f_up = nn.Sequential(*_unit(key_channels, channels))

    def forward(self, cells: Tensor, regions: Tensor) -> Tensor:
        """Cells (B, C, h, w) and regions (B, C, K, 1) -> (B, C, h, w)."""
        query = self.f_pixel(cells).flatten(2).transpose(1, 2)
        key, value = self.f_object(regions).flatten(2), self.f_down(regions).flatten(2).transpose(1, 2)
        weights = torch.softmax(query @ key * key.shape[1] ** -0.5, -1)
        read = (weights @ value).transpose(1, 2).reshape(cells.shape[0], -1, *cells.shape[2:])
        out: Tensor = self.f_up(read)
        return out


class ObjectContext(nn.Module):
    """Cells beside what they read of the regions, merged.

    Args:
        channels: C, in and out.
        key_channels: Of queries, keys and values.
        dropout: Share of channels dropped in training.
    """

    def __init__(self, channels: int, key_channels: int, dropout: float = 0.05) -> None:
        super().__init__()
        self.object_context_block = ObjectAttention(channels, key_channels)
        self.conv_bn_dropout = nn.Sequential(*_unit(2 * channels, channels), nn.Dropout2d(dropout))

    def forward(self, cells: Tensor, masks: Tensor) -> Tensor:
        """Cells (B, C, h, w) and coarse mask logits (B, K, h, w) -> (B, C, h, w)."""
        weights = torch.softmax(masks.flatten(2), -1)
        regions = (weights @ cells.flatten(2).transpose(1, 2)).transpose(1, 2)[..., None]
        out: Tensor = self.conv_bn_dropout(torch.cat([self.object_context_block(cells, regions), cells], 1))
        return out
