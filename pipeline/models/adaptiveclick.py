"""AdaptiveClick: SimpleClick's backbone, a deformable pixel decoder, and queries that are aware of clicks.

Each query is a candidate mask; the official single output is their sum, weighted by how sure each is to be an object.
Clicks enter before the first block: the cut is "crop".

Source: Lin et al., "AdaptiveClick: Click-Aware Transformer With Adaptive Focal Loss for Interactive Image
Segmentation", TNNLS 2024. Weights compatible with lab206/AdaptiveClick 543c897 (MIT), whose code is followed where the
paper differs.
"""

# B batch, N clicks, Q queries, C channels, H/W crop px, h/w cells at 1/4

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models._base import Encoding, InteractiveModel, Prediction
from pipeline.models._registry import register_model
from pipeline.models.layers.coordinates import OFFICIAL_SETTINGS, coordinate_features, to_input_size
from pipeline.models.layers.deformable_attention import DeformableEncoderLayer, cell_centres
from pipeline.models.layers.feature_pyramid import SimpleFeaturePyramid
from pipeline.models.layers.masked_decoder import ClickAwareDecoder, LayerOutput
from pipeline.models.layers.patch_embed import PatchEmbed, check_grid, normalise
from pipeline.models.layers.positions import sine_positions
from pipeline.models.simpleclick import BASE, HUGE, PlainVit, PlainVitConfig, drop_unused, tokens_to_map
from schemas.clicks import Click

_UNUSED = ("backbone.cls_token", "backbone.fc_norm.", "backbone.head.", "criterion.")
_SAVED_TWICE = {
    "pixel_decoder.adapter_1.": "pixel_decoder.lateral_convs.0.",
    "pixel_decoder.layer_1.": "pixel_decoder.output_convs.0.",
}
_GROUPS = 32
_POINTS = 4


@dataclass(frozen=True, kw_only=True)
class AdaptiveClickConfig:
    """Sizes.

    Attributes:
        vit: The backbone; its pyramid and head widths are not used.
        pyramid_dims: Channels at 1/4, 1/8, 1/16, 1/32.
        dim: C of both decoders.
        num_heads: Of their attentions.
        num_queries: Q.
        encoder_layers: Of the pixel decoder (the paper says 6, the code 4).
        decoder_layers: Of the mask decoder.
        encoder_hidden: Width inside the pixel decoder's MLPs.
        decoder_hidden: Width inside the mask decoder's MLPs.
    """

    vit: PlainVitConfig
    pyramid_dims: tuple[int, int, int, int]
    dim: int = 256
    num_heads: int = 8
    num_queries: int = 10
    encoder_layers: int = 4
    decoder_layers: int = 9
    encoder_hidden: int = 1024
    decoder_hidden: int = 2048


class DeformableEncoder(nn.Module):
    """Deformable layers over the cells of three levels."""

    def __init__(self, config: AdaptiveClickConfig, num_levels: int) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(num_levels, config.dim))
        nn.init.normal_(self.level_embed)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            DeformableEncoderLayer(config.dim, config.num_heads, num_levels, _POINTS, config.encoder_hidden)
            for _ in range(config.encoder_layers)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, h_i, w_i), in and out."""
        grids = [(own.shape[2], own.shape[3]) for own in maps]
        cells = torch.cat([own.flatten(2).transpose(1, 2) for own in maps], 1)
        positions = torch.cat(
            [
                sine_positions(grid, cells.shape[2], cells.device).flatten(2).transpose(1, 2) + self.level_embed[level]
                for level, grid in enumerate(grids)
            ],
            1,
        )
        places = cell_centres(grids, cells.device)
        layers: nn.ModuleList = self.encoder.get_submodule("layers")  # type: ignore[assignment]
        for layer in layers:
            cells = layer(cells, positions, places, grids)
        parts = torch.split(cells, [h * w for h, w in grids], 1)
        batch = cells.shape[0]
        return [own.transpose(1, 2).reshape(batch, -1, *grid) for own, grid in zip(parts, grids, strict=True)]


def _projection(in_channels: int, out_channels: int, kernel: int = 1, has_relu: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2), nn.GroupNorm(_GROUPS, out_channels)
    ]  # fmt: skip
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if has_relu else nn.Sequential(*layers)


class PixelDecoder(nn.Module):
    """Pyramid of the backbone's map, deformable encoder on its three coarse levels, mask features at 1/4."""

    def __init__(self, config: AdaptiveClickConfig) -> None:
        super().__init__()
        dim = config.dim
        self.neck = SimpleFeaturePyramid(config.vit.embed_dim, config.pyramid_dims)
        self.input_proj = nn.ModuleList(_projection(own, dim) for own in config.pyramid_dims[:0:-1])
        self.transformer = DeformableEncoder(config, len(self.input_proj))
        self.lateral_convs = nn.ModuleList([_projection(config.pyramid_dims[0], dim, has_relu=True)])
        self.output_convs = nn.ModuleList([_projection(dim, dim, 3, has_relu=True)])
        self.mask_features = nn.Conv2d(dim, dim, 1)

    def forward(self, features: Tensor) -> tuple[list[Tensor], Tensor]:
        """(B, D, h, w) at 1/16 -> maps at 1/32, 1/16, 1/8 and mask features at 1/4, all of C channels."""
        fine, *coarse = self.neck(features)
        maps = self.transformer([project(own) for project, own in zip(self.input_proj, coarse[::-1], strict=True)])
        lateral = self.lateral_convs[0](fine)
        size = (lateral.shape[2], lateral.shape[3])
        finer = lateral + F.interpolate(maps[-1], size=size, mode="bilinear", align_corners=False)
        return maps, self.mask_features(self.output_convs[0](finer))


class AdaptiveClick(InteractiveModel):
    """See the module.

    Args:
        config: Sizes.
    """

    official_class: ClassVar[str] = "isegm.model.is_adaptiveclick_model.AdaptiveClickModel"

    def __init__(self, config: AdaptiveClickConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size = (config.vit.image_size, config.vit.image_size)
        self.patch_embed_coords = PatchEmbed(config.vit.patch_size, 3, config.vit.embed_dim)
        self.backbone = PlainVit(config.vit)
        self.pixel_decoder = PixelDecoder(config)
        self.click_aware_decoder = ClickAwareDecoder(
            config.dim, config.num_queries, config.decoder_layers, config.num_heads, config.decoder_hidden,
            num_levels=3, num_classes=2,
        )  # fmt: skip

    def encode(self, images: Tensor) -> Encoding:
        """Patch tokens of the crop, positions added: (B, L, D).

        Raises:
            BadInputError: The crop's sides do not fit the patches.
        """
        grid = check_grid((images.shape[2], images.shape[3]), self.config.vit.patch_size, self.model_id)
        tokens = self.backbone.patch_embed(normalise(images)) + self.backbone.positions(grid)
        return Encoding({"tokens": tokens}, images)

    def refine_layers(
        self, encoding: Encoding, clicks: Sequence[Sequence[Click]], previous: Tensor
    ) -> list[LayerOutput]:
        """Class logits (B, Q, 2) and mask logits (B, Q, h, w) at 1/4 before the decoder and after each of its layers:
        what the training loss looks at."""
        patch = self.config.vit.patch_size
        grid = (previous.shape[2] // patch, previous.shape[3] // patch)
        coordinates = coordinate_features(clicks, previous)
        tokens = self.backbone.run(encoding["tokens"] + self.patch_embed_coords(coordinates), grid)
        maps, mask_features = self.pixel_decoder(tokens_to_map(tokens, grid))
        outputs: list[LayerOutput] = self.click_aware_decoder(maps, mask_features, coordinates[:, 1])
        return outputs

    def refine(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> Prediction:
        """See `InteractiveModel.refine`. The official output, then every query in its own order, not ranked.

        A query's score is its probability of being an object times the mean probability inside its mask (as
        Mask2Former scores instances); the official output has the mean of the scores under the weights it is made of.

        Raises:
            ValueError: There are rois.
        """
        self.refuse_rois(rois)
        classes, masks = self.refine_layers(encoding, clicks, previous)[-1]
        weights = classes[..., 1].sigmoid()
        summed = torch.einsum("bq,bqhw->bhw", weights, masks)[:, None]
        logits = to_input_size(torch.cat([summed, masks], 1), (previous.shape[2], previous.shape[3]))
        inside = (masks > 0).to(masks.dtype)
        certainty = (masks.sigmoid() * inside).sum((2, 3)) / inside.sum((2, 3)).clamp_min(1)
        scores = classes.softmax(-1)[..., 1] * certainty
        own = (weights * scores).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        ids = tuple(range(1 + masks.shape[1]))
        return Prediction(logits, torch.cat([own, scores], 1), ids, is_ranked=False)

    @classmethod
    def remap_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `InteractiveModel.remap_official`. Two convolutions are saved twice; the copies go where they agree."""
        kept = drop_unused(state, _UNUSED)
        for prefix, twin in _SAVED_TWICE.items():
            for name in [name for name in kept if name.startswith(prefix)]:
                other = kept.get(twin + name.removeprefix(prefix))
                if other is not None and torch.equal(kept[name], other):
                    del kept[name]
        return kept

    def official_settings(self) -> Mapping[str, Any]:
        """See `InteractiveModel.official_settings`; "cfg" is what the official code calls its configuration."""
        heads = {"BACKBONE": {"NUM_HEADS": self.config.vit.num_heads}, "MASK_FORMER": {"NHEADS": self.config.num_heads}}
        return {**OFFICIAL_SETTINGS, "cfg": {"random_split": False, "MODEL": heads}}

    def adapter_parameter_names(self, kind: str) -> tuple[str, ...]:
        """See `InteractiveModel.adapter_parameter_names`. "head": both decoders' mask side; "affine": all norms;
        "full": everything."""
        names = [name for name, _ in self.named_parameters()]
        if kind == "affine":
            norms = {name for name, own in self.named_modules() if isinstance(own, nn.LayerNorm | nn.GroupNorm)}
            return tuple(name for name in names if name.rpartition(".")[0] in norms)
        prefixes = {"head": ("click_aware_decoder.",), "full": ("",)}.get(kind, ())
        chosen = tuple(name for name in names if name.startswith(prefixes))
        return chosen or super().adapter_parameter_names(kind)


@register_model("adaptiveclick-base-448")
def adaptiveclick_base() -> AdaptiveClick:
    """ViT-B/16."""
    return AdaptiveClick(AdaptiveClickConfig(vit=BASE, pyramid_dims=(256, 512, 1024, 2048)))


@register_model("adaptiveclick-huge-448")
def adaptiveclick_huge() -> AdaptiveClick:
    """ViT-H/14."""
    return AdaptiveClick(AdaptiveClickConfig(vit=HUGE, pyramid_dims=(512, 1024, 2048, 4096)))
