"""FDRN's two meeting points of image features and guidance features: semantic at 1/16, texture at 1/4.

Source: Zeng et al., "Feature Decoupling-Recycling Network", ACM MM 2023, section 3.3.1, eq. 3-5.
"""

import torch
from torch import Tensor, nn

from pipeline.models.layers.blocks import ResBlock


class SemanticIntegration(nn.Module):
    """Spread guidance over places that look alike: X = A conv(g), A = softmax(K Q'), then ResBlock of (X, g).

    The paper prints the softmax over the first index although the product sums over the second, and does not scale;
    here the rows of A sum to 1 and the logits are divided by sqrt(channels), unless `printed_form` is set.

    Args:
        image_channels: Channels of the high image features.
        key_channels: Channels of keys and queries.
        channels: Channels of the guidance features, in and out.
        printed_form: Columns of A sum to 1 and the logits are not scaled, as printed.
    """

    def __init__(self, image_channels: int, key_channels: int, channels: int, printed_form: bool = False) -> None:
        super().__init__()
        self.to_key = nn.Conv2d(image_channels, key_channels, 3, 1, 1)
        self.to_query = nn.Conv2d(image_channels, key_channels, 3, 1, 1)
        self.to_value = nn.Conv2d(channels, channels, 3, 1, 1)
        self.merge = ResBlock(2 * channels, channels)
        self.printed_form = printed_form

    def attention(self, f_high: Tensor) -> Tensor:
        """(B, L, L) weights of places of `f_high`, float32."""
        key = self.to_key(f_high).flatten(2).transpose(1, 2).float()
        query = self.to_query(f_high).flatten(2).float()
        if self.printed_form:
            return torch.softmax(key @ query, dim=1)
        return torch.softmax(key @ query * key.shape[2] ** -0.5, dim=2)

    def forward(self, f_high: Tensor, g_high: Tensor) -> Tensor:
        """Image features (B, Ci, h, w) and guidance features (B, C, h, w) -> (B, C, h, w)."""
        value = self.to_value(g_high).flatten(2)
        spread = torch.bmm(value, self.attention(f_high).transpose(1, 2).to(value.dtype)).view_as(g_high)
        out: Tensor = self.merge(torch.cat([spread, g_high], 1))
        return out


class TextureIntegration(nn.Module):
    """Sharpen guidance features by low image features: ResBlock of their concatenation."""

    def __init__(self, image_channels: int, channels: int) -> None:
        super().__init__()
        self.merge = ResBlock(image_channels + channels, channels)

    def forward(self, f_low: Tensor, g_low: Tensor) -> Tensor:
        """Image features (B, Ci, h, w) and guidance features (B, C, h, w) -> (B, C, h, w)."""
        out: Tensor = self.merge(torch.cat([f_low, g_low], 1))
        return out
