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
        return affinity(self.to_key(f_high), self.to_query(f_high), self.printed_form)

    def forward(self, f_high: Tensor, g_high: Tensor) -> Tensor:
        """Image features (B, Ci, h, w) and guidance features (B, C, h, w) -> (B, C, h, w)."""
        value = self.to_value(g_high).flatten(2)
        spread = torch.bmm(value, self.attention(f_high).transpose(1, 2).to(value.dtype)).view_as(g_high)
        out: Tensor = self.merge(torch.cat([spread, g_high], 1))
        return out


class PublishedIntegration(nn.Module):
    """Semantic integration in the published size, with keys and queries that the image encoder made.

    Where the parameters sit is inferred from the paper's counts (28 C (C + V) of them, V the channels of the value).

    Args:
        channels: C, of the guidance features, in and out.
        value_channels: V.
        printed_form: See `SemanticIntegration`.
    """

    def __init__(self, channels: int, value_channels: int = 256, printed_form: bool = False) -> None:
        super().__init__()
        self.to_value = nn.Conv2d(channels, value_channels, 3, 1, 1)
        self.merge = ResBlock(channels + value_channels, channels)
        self.project = nn.Conv2d(channels + value_channels, channels, 3, 1, 1)
        self.printed_form = printed_form

    def forward(self, key: Tensor, query: Tensor, g_high: Tensor) -> Tensor:
        """Keys and queries (B, K, h, w) and guidance features (B, C, h, w) -> (B, C, h, w)."""
        value = self.to_value(g_high)
        weights = affinity(key, query, self.printed_form).transpose(1, 2).to(value.dtype)
        spread = torch.bmm(value.flatten(2), weights).view_as(value)
        merged = self.merge(torch.cat([spread, g_high], 1))
        out: Tensor = self.project(torch.cat([spread, merged], 1))
        return out


def affinity(key: Tensor, query: Tensor, printed_form: bool = False) -> Tensor:
    """How much each place reads of each other one.

    Args:
        key: (B, K, h, w).
        query: (B, K, h, w).
        printed_form: Columns sum to 1 and the logits are not scaled, as printed in eq. 3; else rows do and they are.

    Returns:
        (B, L, L) float32.
    """
    rows, columns = key.flatten(2).transpose(1, 2).float(), query.flatten(2).float()
    if printed_form:
        return torch.softmax(rows @ columns, dim=1)
    return torch.softmax(rows @ columns * rows.shape[2] ** -0.5, dim=2)


class TextureIntegration(nn.Module):
    """Sharpen guidance features by low image features: ResBlock of their concatenation."""

    def __init__(self, image_channels: int, channels: int) -> None:
        super().__init__()
        self.merge = ResBlock(image_channels + channels, channels)

    def forward(self, f_low: Tensor, g_low: Tensor) -> Tensor:
        """Image features (B, Ci, h, w) and guidance features (B, C, h, w) -> (B, C, h, w)."""
        out: Tensor = self.merge(torch.cat([f_low, g_low], 1))
        return out
