"""SimpleClick: a plain ViT that takes the clicks at its patch embedding, a simple feature pyramid, a light head.

Clicks enter before the first block, so only the image's patch embedding cannot change: the cut is "crop".

Source: Liu et al., "SimpleClick: Interactive Image Segmentation with Simple Vision Transformers", ICCV 2023. Weights
compatible with uncbiag/SimpleClick f33112e (MIT).
"""

# B batch, N clicks, D embed dim, L tokens, H/W crop px, h/w grid

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipeline.models._base import Encoding, HostFeatures, HostShape, InteractiveModel, Prediction
from pipeline.models._registry import register_model
from pipeline.models.layers.coordinates import OFFICIAL_SETTINGS, coordinate_features, to_input_size
from pipeline.models.layers.feature_pyramid import SimpleFeaturePyramid
from pipeline.models.layers.patch_embed import PatchEmbed, check_grid, normalise, resize_pos_embed
from pipeline.models.layers.seg_head import MultiScaleHead
from pipeline.models.layers.transformer import Block, WindowedBlocks, init_linear
from schemas.clicks import Click
from schemas.errors import BadCheckpointError

_UNUSED = (
    "backbone.cls_token",
    "backbone.fc_norm.",
    "backbone.head.",
    "head.up_conv1.",
    "head.up_conv2.",
)
"""Saved in official checkpoints and read by no forward pass."""
_ENCODER = ("patch_embed.", "pos_embed", "blocks.")
"""What MAE trains of a plain ViT."""


@dataclass(frozen=True, kw_only=True)
class PlainVitConfig:
    """A plain ViT with its pyramid and head.

    Attributes:
        image_size: Side of the square input that positions were trained at, in pixels.
        patch_size: In pixels.
        embed_dim: D.
        depth: Blocks.
        num_heads: Per block.
        pyramid_dims: Channels at 1/4, 1/8, 1/16, 1/32.
        head_channels: Width of the head.
    """

    image_size: int = 448
    patch_size: int = 16
    embed_dim: int
    depth: int
    num_heads: int
    pyramid_dims: tuple[int, int, int, int]
    head_channels: int = 256


XTINY = PlainVitConfig(embed_dim=160, depth=8, num_heads=4, pyramid_dims=(96, 192, 288, 384), head_channels=128)
BASE = PlainVitConfig(embed_dim=768, depth=12, num_heads=12, pyramid_dims=(128, 256, 512, 1024))
LARGE = PlainVitConfig(embed_dim=1024, depth=24, num_heads=16, pyramid_dims=(192, 384, 768, 1536))
HUGE = PlainVitConfig(patch_size=14, embed_dim=1280, depth=32, num_heads=16, pyramid_dims=(240, 480, 960, 1920))


class PlainVit(nn.Module):
    """Patch embedding of the image, positions and blocks; no norm at the end."""

    def __init__(self, config: PlainVitConfig) -> None:
        super().__init__()
        side = config.image_size // config.patch_size
        self.grid = (side, side)
        self.patch_embed = PatchEmbed(config.patch_size, 3, config.embed_dim)
        self.pos_embed = nn.Parameter(torch.empty(1, side * side, config.embed_dim))
        nn.init.normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(Block(config.embed_dim, config.num_heads) for _ in range(config.depth))
        init_linear(self.blocks)
        self.schedule = WindowedBlocks(config.depth, config.patch_size)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """(1, L, D) at a grid."""
        return resize_pos_embed(self.pos_embed, self.grid, grid)

    def run(self, tokens: Tensor, grid: tuple[int, int], first: int = 0, last: int | None = None) -> Tensor:
        """Blocks `first` to `last` on tokens (B, L, D) in grid order."""
        return self.schedule.run(self.blocks, tokens, grid, first, len(self.blocks) if last is None else last)

    def load_mae(self, state: Mapping[str, Tensor], path: Path) -> None:
        """Take the encoder that MAE trained (timm's or the official names), as published runs start.

        Positions are resized to this grid; what there is no place for (class token, final norm, decoder) is left out.

        Args:
            state: Of the file.
            path: What messages call it.

        Raises:
            BadCheckpointError: A part of the encoder is missing or of another shape.
        """
        own = {name: value for name, value in self.state_dict().items() if name.startswith(_ENCODER)}
        taken = {name: value for name, value in state.items() if name in own}
        positions = taken.get("pos_embed")
        if positions is not None and positions.ndim == 3:
            side = math.isqrt(positions.shape[1])  # of the grid; the class token makes it one more than a square
            taken["pos_embed"] = resize_pos_embed(positions[:, -side * side :], (side, side), self.grid)
        wrong = [name for name in own if name not in taken or taken[name].shape != own[name].shape]
        if wrong:
            raise BadCheckpointError(
                f"{path} is no MAE encoder of this size: {wrong[0]} is missing or of another shape."
            )
        self.load_state_dict(taken, strict=False)


def tokens_to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h w, D) -> (B, D, h, w)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *grid)


def drop_unused(state: Mapping[str, Tensor], unused: tuple[str, ...] = _UNUSED) -> dict[str, Tensor]:
    """An official state dict without what no forward pass reads; the class token's position goes, too."""
    kept = {name: value for name, value in state.items() if not name.startswith(unused)}
    positions = kept.get("backbone.pos_embed")
    if positions is not None and positions.ndim == 3:
        kept["backbone.pos_embed"] = positions[:, 1:]
    return kept


def plain_vit_settings(config: PlainVitConfig) -> dict[str, Any]:
    """`InteractiveModel.official_settings` of a plain ViT in the official classes of SimpleClick and iCMFormer."""
    return {
        **OFFICIAL_SETTINGS,
        "random_split": False,
        "backbone_params": {"num_heads": config.num_heads},
        "head_params": {"align_corners": False, "upsample": "x1"},
    }


def plain_vit_adapter_names(model: nn.Module, kind: str) -> tuple[str, ...]:
    """Names of what an adapter replaces in a model of `backbone`, `neck` and `head`; none for kinds that it has not.

    "output": the head; "head": pyramid and head; "affine": all norms; "full": everything.
    """
    names = [name for name, _ in model.named_parameters()]
    if kind == "affine":
        norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm | nn.GroupNorm)}
        return tuple(name for name in names if name.rpartition(".")[0] in norms)
    prefixes = {"output": ("head.",), "head": ("neck.", "head."), "full": ("",)}.get(kind, ())
    return tuple(name for name in names if name.startswith(prefixes))


class SimpleClick(InteractiveModel):
    """See the module.

    Args:
        config: Sizes.
    """

    official_class: ClassVar[str] = "isegm.model.is_plainvit_model.PlainVitModel"

    def __init__(self, config: PlainVitConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size = (config.image_size, config.image_size)
        self.patch_embed_coords = PatchEmbed(config.patch_size, 3, config.embed_dim)
        self.backbone = PlainVit(config)
        self.neck = SimpleFeaturePyramid(config.embed_dim, config.pyramid_dims)
        self.head = MultiScaleHead(config.pyramid_dims, config.head_channels)

    def encode(self, images: Tensor) -> Encoding:
        """Patch tokens of the crop, positions added: (B, L, D).

        Raises:
            BadInputError: The crop's sides do not fit the patches.
        """
        grid = check_grid((images.shape[2], images.shape[3]), self.config.patch_size, self.model_id)
        tokens = self.backbone.patch_embed(normalise(images)) + self.backbone.positions(grid)
        return Encoding({"tokens": tokens}, images)

    def refine(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> Prediction:
        """See `InteractiveModel.refine`. One candidate; crops are not looked at, since encode saw them.

        Raises:
            ValueError: There are rois.
        """
        logits = self.host_features(encoding, clicks, previous, crops, rois).logits
        return Prediction(logits, logits.new_ones(logits.shape[0], 1))

    def host_shape(self) -> HostShape:
        """See `InteractiveModel.host_shape`."""
        dim = self.config.embed_dim
        return HostShape(dim, dim, self.config.num_heads, self.config.pyramid_dims)

    def host_features(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> HostFeatures:
        """See `InteractiveModel.host_features`. Early: after the first quarter of the blocks."""
        self.refuse_rois(rois)
        size, patch, quarter = previous.shape[2:], self.config.patch_size, self.config.depth // 4
        grid = (size[0] // patch, size[1] // patch)
        tokens = encoding["tokens"] + self.patch_embed_coords(coordinate_features(clicks, previous))
        early = self.backbone.run(tokens, grid, 0, quarter)
        final = tokens_to_map(self.backbone.run(early, grid, quarter), grid)
        pyramid = self.neck(final)
        logits = to_input_size(self.head(pyramid), (size[0], size[1]))
        return HostFeatures(tokens_to_map(early, grid), final, pyramid, logits)

    @classmethod
    def remap_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `InteractiveModel.remap_official`."""
        return drop_unused(state)

    def official_settings(self) -> Mapping[str, Any]:
        """See `InteractiveModel.official_settings`."""
        return plain_vit_settings(self.config)

    def adapter_parameter_names(self, kind: str) -> tuple[str, ...]:
        """See `InteractiveModel.adapter_parameter_names`; as `plain_vit_adapter_names`."""
        return plain_vit_adapter_names(self, kind) or super().adapter_parameter_names(kind)


@register_model("simpleclick-xtiny-448")
def simpleclick_xtiny() -> SimpleClick:
    """4 M parameters."""
    return SimpleClick(XTINY)


@register_model("simpleclick-base-448")
def simpleclick_base() -> SimpleClick:
    """ViT-B/16, 96.5 M parameters."""
    return SimpleClick(BASE)


@register_model("simpleclick-large-448")
def simpleclick_large() -> SimpleClick:
    """ViT-L/16, 322 M parameters."""
    return SimpleClick(LARGE)


@register_model("simpleclick-huge-448")
def simpleclick_huge() -> SimpleClick:
    """ViT-H/14, 659 M parameters."""
    return SimpleClick(HUGE)
