"""iCMFormer on Swin: image, clicks and their sum go through two stages apart, then clicks read the image.

`encode` computes the image stream of the first two stages. The cut is "crop", as in `icmformer`.

Source: Li et al., "Interactive Image Segmentation with Cross-Modality Vision Transformers", ICCV Workshops 2023.
Weights compatible with lik1996/iCMFormer 0040a85 (MIT); where the paper differs (4 cross blocks, say), the code is
followed.
"""

# B batch, N clicks, D embed dim, H/W crop px, h/w grid

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models._base import Encoding, InteractiveModel, Prediction
from pipeline.models._registry import register_model
from pipeline.models.layers.coordinates import OFFICIAL_SETTINGS, coordinate_features, to_input_size
from pipeline.models.layers.cross_modality import CrossModalityBlock
from pipeline.models.layers.patch_embed import normalise
from pipeline.models.layers.seg_head import MultiScaleHead
from pipeline.models.layers.swin import SwinStage
from pipeline.models.simpleclick import drop_unused, plain_vit_adapter_names
from schemas.clicks import Click

_UNUSED = ("backbone.patch_embed_coords.", "head.up_conv1.", "head.up_conv2.")
_PATCH = 4
_DROP_PATH = 0.2
_CROSS_HEADS = 8
_CROSS_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """A Swin backbone with its cross-modality blocks and head.

    Attributes:
        image_size: Side of the square network input in pixels.
        embed_dim: D of the first stage; it doubles with each.
        depths: Blocks per stage.
        num_heads: Per stage.
        window: Side of the windows in tokens.
        num_cross: Cross-modality blocks.
        head_channels: Width of the head.
    """

    image_size: int
    embed_dim: int
    depths: tuple[int, int, int, int] = (2, 2, 18, 2)
    num_heads: tuple[int, int, int, int]
    window: int = 12
    num_cross: int = 8
    head_channels: int


class SwinPatchEmbed(nn.Module):
    """4 x 4 patches to tokens, with LayerNorm; sides are padded to whole patches."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, _PATCH, _PATCH)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H/4, W/4, D)."""
        images = F.pad(images, (0, -images.shape[3] % _PATCH, 0, -images.shape[2] % _PATCH))
        out: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return out


class CrossModalitySwin(nn.Module):
    """The backbone: four stages, the cross-modality blocks between the second and the third, a norm per output."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.patch_embed = SwinPatchEmbed(config.embed_dim)
        rates = torch.linspace(0, _DROP_PATH, sum(config.depths), device="cpu").tolist()
        self.layers = nn.ModuleList()
        for index, depth in enumerate(config.depths):
            dim, before = config.embed_dim << index, sum(config.depths[:index])
            self.layers.append(
                SwinStage(
                    dim, depth, config.num_heads[index], config.window, rates[before : before + depth], merges=index < 3
                )
            )
            self.add_module(f"norm{index}", nn.LayerNorm(dim))
        self.blocks2 = nn.ModuleList(
            CrossModalityBlock(4 * config.embed_dim, _CROSS_HEADS, _CROSS_EPS) for _ in range(config.num_cross)
        )

    def begin(self, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
        """The first two stages on (B, h, w, D): their outputs, and what the third stage gets."""
        outputs = []
        for stage in self.layers[:2]:
            own, tokens = stage(tokens)
            outputs.append(own)
        return outputs, tokens

    def end(self, image: Tensor, clicks: Tensor) -> list[Tensor]:
        """Let the clicks read the image (full attention over the grid), then the last two stages: their outputs."""
        flat, stream = image.flatten(1, 2), clicks.flatten(1, 2)
        for block in self.blocks2:
            stream = block(stream, flat)
        tokens = image + stream.view_as(image)
        outputs = []
        for stage in self.layers[2:]:
            own, tokens = stage(tokens)
            outputs.append(own)
        return outputs

    def output(self, index: int, tokens: Tensor) -> Tensor:
        """(B, h, w, D) of a stage -> normalised map (B, D, h, w)."""
        normed: Tensor = self.get_submodule(f"norm{index}")(tokens)
        return normed.permute(0, 3, 1, 2)


class ICMFormerSwin(InteractiveModel):
    """See the module.

    Args:
        config: Sizes.
    """

    official_class: ClassVar[str] = "isegm.model.is_icmformer_swinformer_model.SwinformerModel"

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size = (config.image_size, config.image_size)
        self.backbone = CrossModalitySwin(config)
        dims = tuple(config.embed_dim << index for index in range(4))
        self.head = MultiScaleHead(dims, config.head_channels)

    def encode(self, images: Tensor) -> Encoding:
        """Patches (B, H/4, W/4, D), and the image stream after two stages (B, H/16, W/16, 4 D)."""
        patches = self.backbone.patch_embed(normalise(images)).contiguous()
        _, stream = self.backbone.begin(patches)
        return Encoding({"patches": patches, "image": stream.contiguous()}, images)

    def refine(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> Prediction:
        """See `InteractiveModel.refine`. One candidate; crops are not looked at, since encode saw them.

        Clicks go through the image's patch embedding, as in the official code.

        Raises:
            ValueError: There are rois.
        """
        self.refuse_rois(rois)
        coordinates = self.backbone.patch_embed(coordinate_features(clicks, previous))
        _, stream = self.backbone.begin(coordinates)
        fine, _ = self.backbone.begin(encoding["patches"] + coordinates)
        maps = [
            self.backbone.output(i, own) for i, own in enumerate([*fine, *self.backbone.end(encoding["image"], stream)])
        ]
        logits = to_input_size(self.head(maps), (previous.shape[2], previous.shape[3]))
        return Prediction(logits, logits.new_ones(logits.shape[0], 1))

    @classmethod
    def remap_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `InteractiveModel.remap_official`. Relative positions follow from the window's size."""
        kept = drop_unused(state, _UNUSED)
        return {name: value for name, value in kept.items() if not name.endswith(".relative_position_index")}

    def options_from_official(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The window: scripts for one data set take 12, for another 7."""
        table = state.get("backbone.layers.0.blocks.0.attn.relative_position_bias_table")
        if table is None or table.ndim != 2 or table.numel() == 0:
            return {}
        side = (math.isqrt(table.shape[0]) + 1) // 2
        return {} if side == self.config.window else {"window": side}

    def official_settings(self) -> Mapping[str, Any]:
        """See `InteractiveModel.official_settings`; heads and windows show in the bias tables."""
        return {**OFFICIAL_SETTINGS, "head_params": {"align_corners": False, "upsample": "x1"}}

    def adapter_parameter_names(self, kind: str) -> tuple[str, ...]:
        """See `InteractiveModel.adapter_parameter_names`; as `plain_vit_adapter_names`."""
        return plain_vit_adapter_names(self, kind) or super().adapter_parameter_names(kind)


@register_model("icmformer-swin-small-224")
def icmformer_swin_small(window: int = 12) -> ICMFormerSwin:
    """Swin-S; windows of 12 (COCO+LVIS) or 7 (SBD)."""
    return ICMFormerSwin(
        SwinConfig(image_size=224, embed_dim=96, num_heads=(3, 6, 12, 24), window=window, head_channels=192)
    )


@register_model("icmformer-swin-base-384")
def icmformer_swin_base(window: int = 12) -> ICMFormerSwin:
    """Swin-B."""
    return ICMFormerSwin(
        SwinConfig(image_size=384, embed_dim=128, num_heads=(4, 8, 16, 32), window=window, head_channels=256)
    )
