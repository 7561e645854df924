"""iCMFormer on a plain ViT: image and click tokens go through the first half of the blocks apart, then meet.

The image half does not see the clicks: it is what `encode` computes of a crop. The cut is "crop", since ZoomIn changes
the crop at nearly every early click.

Source: Li et al., "Interactive Image Segmentation with Cross-Modality Vision Transformers", ICCV Workshops 2023.
Weights compatible with lik1996/iCMFormer 0040a85 (MIT), which differs from the paper; the code is followed.
"""

# B batch, N clicks, D embed dim, L tokens, H/W crop px, h/w grid

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from pipeline.models._base import Encoding, InteractiveModel, Prediction
from pipeline.models._registry import register_model
from pipeline.models.layers.coordinates import coordinate_features, to_input_size
from pipeline.models.layers.cross_modality import CrossModalityBlock
from pipeline.models.layers.feature_pyramid import SimpleFeaturePyramid
from pipeline.models.layers.patch_embed import PatchEmbed, check_grid, normalise
from pipeline.models.layers.seg_head import MultiScaleHead
from pipeline.models.layers.transformer import from_windows, init_linear, num_windows, to_windows
from pipeline.models.simpleclick import (
    BASE,
    HUGE,
    LARGE,
    PlainVit,
    PlainVitConfig,
    drop_unused,
    plain_vit_adapter_names,
    plain_vit_settings,
    tokens_to_map,
)
from schemas.clicks import Click


class CrossModalityVit(PlainVit):
    """A plain ViT with the blocks in which clicks read the image; there are depth / 6 + 1 of them."""

    def __init__(self, config: PlainVitConfig) -> None:
        super().__init__(config)
        self.blocks2 = nn.ModuleList(
            CrossModalityBlock(config.embed_dim, config.num_heads) for _ in range(config.depth // 6 + 1)
        )
        init_linear(self.blocks2)

    def meet(self, clicks: Tensor, image: Tensor, grid: tuple[int, int]) -> Tensor:
        """Add to the image tokens what the clicks read in them; inside windows. All (B, L, D) in grid order."""
        counts = num_windows(grid, self.schedule.patch_size)
        clicks, windows = to_windows(clicks, grid, counts), to_windows(image, grid, counts)
        for block in self.blocks2:
            clicks = block(clicks, windows)
        return image + from_windows(clicks, grid, counts)


class ICMFormer(InteractiveModel):
    """See the module.

    Args:
        config: Sizes.
    """

    official_class: ClassVar[str] = "isegm.model.is_icmformer_plainvit_model.PlainVitModel"

    def __init__(self, config: PlainVitConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size = (config.image_size, config.image_size)
        self.patch_embed_coords = PatchEmbed(config.patch_size, 3, config.embed_dim)
        self.backbone = CrossModalityVit(config)
        self.neck = SimpleFeaturePyramid(config.embed_dim, config.pyramid_dims)
        self.head = MultiScaleHead(config.pyramid_dims, config.head_channels)

    def encode(self, images: Tensor) -> Encoding:
        """Image tokens after the first half of the blocks: (B, L, D).

        Raises:
            BadInputError: The crop's sides do not fit the patches or the windows.
        """
        grid = check_grid((images.shape[2], images.shape[3]), self.config.patch_size, self.model_id)
        tokens = self.backbone.patch_embed(normalise(images)) + self.backbone.positions(grid)
        return Encoding({"tokens": self.backbone.run(tokens, grid, 0, self.config.depth // 2).contiguous()}, images)

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
        self.refuse_rois(rois)
        size, patch, half = (previous.shape[2], previous.shape[3]), self.config.patch_size, self.config.depth // 2
        grid = (size[0] // patch, size[1] // patch)
        stream = self.patch_embed_coords(coordinate_features(clicks, previous)) + self.backbone.positions(grid)
        stream = self.backbone.run(stream, grid, 0, half)
        tokens = self.backbone.run(self.backbone.meet(stream, encoding["tokens"], grid), grid, half)
        logits = to_input_size(self.head(self.neck(tokens_to_map(tokens, grid))), size)
        return Prediction(logits, logits.new_ones(logits.shape[0], 1))

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


@register_model("icmformer-base-448")
def icmformer_base() -> ICMFormer:
    """ViT-B/16, 3 cross-modality blocks."""
    return ICMFormer(BASE)


@register_model("icmformer-large-448")
def icmformer_large() -> ICMFormer:
    """ViT-L/16, 5 cross-modality blocks."""
    return ICMFormer(LARGE)


@register_model("icmformer-huge-448")
def icmformer_huge() -> ICMFormer:
    """ViT-H/14, 6 cross-modality blocks."""
    return ICMFormer(HUGE)
