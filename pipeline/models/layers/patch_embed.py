"""Images to patch tokens, and positional embeddings at another grid. Knows no transformer."""

# B batch, C channels, H/W px, h/w grid, L = h * w tokens, D embed dim

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.errors import BadInputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor) -> Tensor:
    """RGB in [0, 1], (B, 3, H, W), to zero mean and unit variance by the statistics of ImageNet."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    return (images - mean) / std


class PatchEmbed(nn.Module):
    """One token per patch by a strided convolution, without norm.

    Args:
        patch_size: In pixels.
        in_channels: C.
        embed_dim: D.
    """

    def __init__(self, patch_size: int, in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, patch_size)
        nn.init.xavier_uniform_(self.proj.weight.view(embed_dim, -1))
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, D), row by row; H and W are multiples of the patch size."""
        tokens: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return tokens.contiguous()  # as it comes back from a file, so that both give the same bits


def check_grid(size: tuple[int, int], patch_size: int, model_id: str) -> tuple[int, int]:
    """The token grid of an input size.

    Args:
        size: (H, W) in pixels.
        patch_size: In pixels.
        model_id: For the message.

    Raises:
        BadInputError: A side is no multiple of two patches (the pyramid halves the grid once).
    """
    step = 2 * patch_size
    if size[0] % step or size[1] % step or 0 in size:
        raise BadInputError(
            f"{model_id} takes inputs whose sides are multiples of {step} pixels, not {size[0]}x{size[1]} "
            "(height x width). Choose another target size."
        )
    return size[0] // patch_size, size[1] // patch_size


def resize_pos_embed(pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Positional embedding of one grid at another: bicubic, not antialiased (MODELS 1.9).

    Args:
        pos_embed: (1, L, D) of the old grid, without a class token.
        old: (h, w) it was trained at.
        new: (h, w) wanted.

    Returns:
        (1, L', D); the same tensor when the grids are equal.
    """
    if old == new:
        return pos_embed
    maps = pos_embed.reshape(1, *old, -1).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=new, mode="bicubic", align_corners=False)
    return maps.permute(0, 2, 3, 1).flatten(1, 2)
