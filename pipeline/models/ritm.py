"""RITM: HRNet with object context; clicks and the previous mask join after the first convolution.

The common baseline of the papers. Its cut is "crop": clicks enter at the stem. The crop keeps its shape (the longer
side becomes 400 px), and the first click is answered on the whole image as it is.

Source: Sofiiuk et al., "Reviving Iterative Training with Mask Guidance for Interactive Segmentation", ICIP 2022.
Weights compatible with SamsungLabs/ritm_interactive_segmentation b9b4460 (MIT): its models with disks of 5 px and the
previous mask.
"""

# B batch, N clicks, H/W crop px, h/w cells at 1/4

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipeline.models._base import Encoding, InteractiveModel, Prediction
from pipeline.models._registry import register_model
from pipeline.models.layers.coordinates import OFFICIAL_SETTINGS, coordinate_features, to_input_size
from pipeline.models.layers.hrnet import STEM_CHANNELS, HighResolutionNet, same_size
from pipeline.models.layers.ocr import ObjectContext
from pipeline.models.layers.patch_embed import normalise
from schemas.clicks import Click


class MapsTransform(nn.Module):
    """Coordinate maps at 1/2, scaled by one learned number ("Conv1S"); indices of layers as in official checkpoints.

    Args:
        in_channels: Of the maps.
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.add_module("0", nn.Conv2d(in_channels, 16, 1))
        self.add_module("2", nn.Conv2d(16, STEM_CHANNELS, 3, 2, 1))
        self.add_module("3", Scale(0.05))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 64, H/2, W/2), rounded up. The scale multiplies the weights, not the (larger) maps."""
        first, second, scale = (self.get_submodule(name) for name in ("0", "2", "3"))
        weight, bias = scale(second.weight), scale(second.bias)
        return nn.functional.conv2d(nn.functional.leaky_relu(first(maps), 0.2), weight, bias, stride=2, padding=1)


class Scale(nn.Module):
    """Times the absolute value of one learned number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), value))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x * self.scale.abs()


class HrnetOcr(HighResolutionNet):
    """HRNet's four branches at 1/4, a coarse mask, object context, the mask.

    Args:
        width: Of the finest branch.
        ocr_width: Key channels of the object context; it is twice as wide.
        small: See `HighResolutionNet`.
    """

    def __init__(self, width: int, ocr_width: int, small: bool) -> None:
        super().__init__(width, small)
        total = sum(self.widths)
        self.conv3x3_ocr = nn.Sequential(
            nn.Conv2d(total, 2 * ocr_width, 3, padding=1), nn.BatchNorm2d(2 * ocr_width), nn.ReLU(inplace=True)
        )
        self.ocr_distri_head = ObjectContext(2 * ocr_width, ocr_width)
        self.cls_head = nn.Conv2d(2 * ocr_width, 1, 1)
        self.aux_head = nn.Sequential(
            nn.Conv2d(total, total, 1), nn.BatchNorm2d(total), nn.ReLU(inplace=True), nn.Conv2d(total, 1, 1)
        )

    def masks(self, images: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        """Mask logits and coarse mask logits, (B, 1, h, w) each."""
        return self.read_out(self(images, added))

    def read_out(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The four branches' maps -> mask logits and coarse mask logits, (B, 1, h, w) each."""
        features = same_size(maps)
        coarse = self.aux_head(features)
        return self.cls_head(self.ocr_distri_head(self.conv3x3_ocr(features), coarse)), coarse


class Ritm(InteractiveModel):
    """See the module.

    Args:
        width: Of HRNet's finest branch.
        ocr_width: Of the object context.
        small: HRNet's "s" form.
    """

    official_class: ClassVar[str] = "isegm.model.is_hrnet_model.HRNetModel"
    input_side = 400
    skip_clicks = 1

    def __init__(self, width: int, ocr_width: int, small: bool = False) -> None:
        super().__init__()
        self.input_size = (400, 400)
        self.maps_transform = MapsTransform()
        self.feature_extractor = HrnetOcr(width, ocr_width, small)

    def encode(self, images: Tensor) -> Encoding:
        """The normalised crop: the first layer that the clicks do not enter is batch norm of the first convolution,
        which costs less than it would to keep."""
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
        self.refuse_rois(rois)
        logits, _ = self.refine_with_coarse(encoding, clicks, previous)
        return Prediction(logits, logits.new_ones(logits.shape[0], 1))

    def refine_with_coarse(
        self, encoding: Encoding, clicks: Sequence[Sequence[Click]], previous: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits and coarse logits (for the auxiliary loss), (B, 1, H, W) each."""
        added = self.maps_transform(coordinate_features(clicks, previous))
        masks, coarse = self.feature_extractor.masks(encoding["images"], added)
        size = (previous.shape[2], previous.shape[3])
        return to_input_size(masks, size), to_input_size(coarse, size)

    def training_outputs(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """See `InteractiveModel.training_outputs`: "mask" and "coarse"."""
        mask, coarse = self.refine_with_coarse(encoding, clicks, previous)
        return {"mask": mask, "coarse": coarse}

    def official_settings(self) -> Mapping[str, Any]:
        """See `InteractiveModel.official_settings`."""
        return {**OFFICIAL_SETTINGS, "use_leaky_relu": True, "binary_prev_mask": False}

    def adapter_parameter_names(self, kind: str) -> tuple[str, ...]:
        """See `InteractiveModel.adapter_parameter_names`. "head": object context and both outputs; "affine": all norms;
        "full": everything."""
        names = [name for name, _ in self.named_parameters()]
        if kind == "affine":
            norms = {name for name, own in self.named_modules() if isinstance(own, nn.BatchNorm2d)}
            return tuple(name for name in names if name.rpartition(".")[0] in norms)
        heads = tuple(f"feature_extractor.{own}." for own in ("conv3x3_ocr", "ocr_distri_head", "cls_head", "aux_head"))
        prefixes = {"head": heads, "full": ("",)}.get(kind, ())
        return tuple(name for name in names if name.startswith(prefixes)) or super().adapter_parameter_names(kind)


@register_model("ritm-hrnet18s")
def ritm_hrnet18s() -> Ritm:
    """HRNet-18 small."""
    return Ritm(18, 48, small=True)


@register_model("ritm-hrnet18")
def ritm_hrnet18() -> Ritm:
    """HRNet-18, 10.0 M parameters."""
    return Ritm(18, 64)


@register_model("ritm-hrnet32")
def ritm_hrnet32() -> Ritm:
    """HRNet-32, 31.0 M parameters."""
    return Ritm(32, 128)
