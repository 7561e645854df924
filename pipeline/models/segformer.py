"""SegFormer that takes clicks: MiT with the coordinate maps added to its first patch embedding, and the all-MLP head.

FocalClick's network without its refiner, here as a host for ClickAdapter and as a light peer. Its cut is "crop".

Source: Xie et al., "SegFormer", NeurIPS 2021; Chen et al., "FocalClick", CVPR 2022, section 3.1.
"""

# B batch, N clicks, H/W crop px

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models._base import Encoding, HostFeatures, HostShape, InteractiveModel, Prediction
from pipeline.models._registry import register_model
from pipeline.models.fdrn_published import num_heads_of
from pipeline.models.layers.coordinates import coordinate_features, to_input_size
from pipeline.models.layers.hrnet import STEM_CHANNELS
from pipeline.models.layers.mix_transformer import MIT_B0, MIT_B3, MixConfig, MixTransformer
from pipeline.models.layers.patch_embed import check_grid, normalise
from pipeline.models.layers.seg_head import MultiScaleHead
from pipeline.models.ritm import MapsTransform
from pipeline.models.simpleclick import plain_vit_adapter_names
from schemas.clicks import Click


class SegFormer(InteractiveModel):
    """See the module.

    Args:
        config: Of the encoder.
        crop_side: Side of the network input in pixels.
    """

    def __init__(self, config: MixConfig, crop_side: int = 448) -> None:
        super().__init__()
        self.config = config
        self.input_size = (crop_side, crop_side)
        self.maps_transform = nn.Sequential(MapsTransform(), nn.Conv2d(STEM_CHANNELS, config.widths[0], 3, 2, 1))
        self.backbone = MixTransformer(config)
        self.head = MultiScaleHead(config.widths, 256)

    def encode(self, images: Tensor) -> Encoding:
        """The normalised crop: clicks enter at the first patch embedding.

        Raises:
            BadInputError: The crop's sides are no multiples of 32.
        """
        check_grid((images.shape[2], images.shape[3]), 16, self.model_id)
        return Encoding({"images": normalise(images)}, images)

    def refine(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> Prediction:
        """See `InteractiveModel.refine`. One candidate.

        Raises:
            ValueError: There are rois.
        """
        logits = self.host_features(encoding, clicks, previous, crops, rois).logits
        return Prediction(logits, logits.new_ones(logits.shape[0], 1))

    def host_shape(self) -> HostShape:
        """See `InteractiveModel.host_shape`. Early: after the first stage; final: the last map, brought to 1/16 (the
        paper's totals want its width)."""
        widths = self.config.widths
        return HostShape(widths[0], widths[3], num_heads_of(widths[3]), widths)

    def host_features(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> HostFeatures:
        """See `InteractiveModel.host_features`."""
        self.refuse_rois(rois)
        maps = [self.backbone.first(encoding["images"], self.maps_transform(coordinate_features(clicks, previous)))]
        for index in range(1, 4):
            maps.append(self.backbone.stage(index, maps[-1]))
        logits = to_input_size(self.head(maps), (previous.shape[2], previous.shape[3]))
        final = F.interpolate(maps[3], size=maps[2].shape[2:], mode="bilinear", align_corners=False)
        return HostFeatures(maps[0], final, maps, logits)

    def adapter_parameter_names(self, kind: str) -> tuple[str, ...]:
        """See `InteractiveModel.adapter_parameter_names`; as `plain_vit_adapter_names`."""
        return plain_vit_adapter_names(self, kind) or super().adapter_parameter_names(kind)


@register_model("segformer-b0-448")
def segformer_b0() -> SegFormer:
    """MiT-B0, 3.7 M parameters."""
    return SegFormer(MIT_B0)


@register_model("segformer-b3-448")
def segformer_b3() -> SegFormer:
    """MiT-B3, 45 M parameters."""
    return SegFormer(MIT_B3)
