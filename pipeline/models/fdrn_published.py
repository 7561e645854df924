"""FDRN as published: an image encoder F1 that runs once, and a mask network F2 that recycles its features per click.

F1 is the first three stages of HRNet or MiT, or any timm backbone; F2 is RITM's or FocalClick's network with the two
integrations after its third (HRNet) or first and third (MiT) stage.

Source: Zeng et al., "Feature Decoupling-Recycling Network for Fast Interactive Segmentation", ACM MM 2023. No code is
public; what is inferred and chosen is in docs/models/fdrn.md.
"""

# B images, R regions (R = B), N clicks, h/w crop px

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models._base import Encoding, HostFeatures, HostShape, InteractiveModel, Prediction
from pipeline.models._registry import register_family, register_model
from pipeline.models.layers.coordinates import to_input_size
from pipeline.models.layers.focus_refiner import FocusRefiner, focus_boxes
from pipeline.models.layers.guidance import click_disks, clicks_to_sequence
from pipeline.models.layers.hrnet import STEM_CHANNELS, HighResolutionNet
from pipeline.models.layers.integration import PublishedIntegration, TextureIntegration
from pipeline.models.layers.mix_transformer import MIT_B0, MIT_B1, MIT_B3, MixConfig, MixTransformer
from pipeline.models.layers.patch_embed import IMAGENET_MEAN, IMAGENET_STD, normalise
from pipeline.models.layers.rois import align_rois
from pipeline.models.layers.seg_head import MultiScaleHead
from pipeline.models.ritm import HrnetOcr, MapsTransform
from schemas.clicks import Click
from schemas.errors import BadInputError, NotFoundError


class ImageEncoder(nn.Module):
    """F1: a backbone and the two convolutions that make keys and queries of its high features.

    Args:
        key_channels: C^k of the paper.
        high_channels: Of the features at 1/16.
        low_channels: Of the features at 1/4.
    """

    def __init__(self, key_channels: int, high_channels: int, low_channels: int) -> None:
        super().__init__()
        self.low_channels, self.key_channels = low_channels, key_channels
        self.to_key = nn.Conv2d(high_channels, key_channels, 3, padding=1)
        self.to_query = nn.Conv2d(high_channels, key_channels, 3, padding=1)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """RGB in [0, 1] -> low features at 1/4, high features at 1/16."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Low features, keys, queries."""
        low, high = self.features(images)
        return low, self.to_key(high), self.to_query(high)


class HrnetEncoder(ImageEncoder):
    """The first three stages of HRNet-18 or -18s."""

    def __init__(self, small: bool, width: int = 18, key_channels: int = 128) -> None:
        super().__init__(key_channels, 4 * width, width)
        self.backbone = HighResolutionNet(width, small, num_stages=3)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `ImageEncoder.features`."""
        maps = self.backbone(normalise(images))
        return maps[0], maps[2]


class MixEncoder(ImageEncoder):
    """The first three stages of a MiT."""

    def __init__(self, config: MixConfig, key_channels: int = 256) -> None:
        super().__init__(key_channels, config.widths[2], config.widths[0])
        self.backbone = MixTransformer(config, num_stages=3)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `ImageEncoder.features`."""
        low = self.backbone.first(normalise(images))
        return low, self.backbone.stage(2, self.backbone.stage(1, low))


class TimmEncoder(ImageEncoder):
    """Any timm backbone that gives a map at about 1/16; where it gives none at 1/4, two strided convolutions do.

    A backbone that takes images of one size only (Hiera) is given the whole image squeezed to it: regions are fractions
    of the image, so nothing else changes.

    Args:
        name: timm's name; weights are never fetched.
        key_channels: C^k.

    Raises:
        NotFoundError: timm knows no such backbone.
        BadInputError: It gives no map at 1/16.
    """

    def __init__(self, name: str, key_channels: int = 128) -> None:
        backbone, size = _timm_backbone(name)
        info: Any = backbone.feature_info
        reductions, channels = info.reduction(), info.channels()
        high = [index for index, reduction in enumerate(reductions) if 14 <= reduction <= 16]
        if not high:
            raise BadInputError(f"timm's {name} gives maps at 1/{reductions}, none at 1/16. Choose another backbone.")
        low = reductions.index(4) if 4 in reductions else None
        width = 32
        super().__init__(key_channels, channels[high[-1]], width if low is None else channels[low])
        self.backbone = backbone
        self.indices = (low, high[-1])
        self.size = size
        self.detail: nn.Module | None = None
        if low is None:
            self.detail = nn.Sequential(
                nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, 2, 1)
            )
        config = _pretrained_config(name)
        self.mean: Tensor
        self.std: Tensor
        for statistic in ("mean", "std"):
            values = getattr(config, statistic, None) or {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}[statistic]
            self.register_buffer(statistic, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `ImageEncoder.features`."""
        if self.size is not None:
            images = F.interpolate(images, size=self.size, mode="bilinear", align_corners=False, antialias=True)
        normed = (images - self.mean) / self.std
        maps = self.backbone(normed)
        low, high = self.indices
        return maps[low] if low is not None else self.detail(normed), maps[high]  # type: ignore[misc]


class MaskNetwork(Protocol):
    """F2 without the guidance codes: what the two kinds have in common."""

    code_channels: int
    code_stride: int
    feature_channels: int
    widths: tuple[int, ...]

    def __call__(
        self, crops: Tensor, code: Tensor, low: Tensor, key: Tensor, query: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor, list[Tensor]]:
        """Normalised crops (B, 3, h, w), guidance code and cut features -> mask logits and coarse logits (or None) at
        1/4, features at 1/4, the maps that the head reads."""


class HrnetMaskNetwork(HrnetOcr):
    """RITM's HRNet with both integrations after its third stage."""

    code_channels = STEM_CHANNELS
    code_stride = 2

    def __init__(self, small: bool, low_channels: int, width: int = 18, ocr_width: int | None = None) -> None:
        super().__init__(width, ocr_width or (48 if small else 64), small)
        self.feature_channels = width
        self.texture = TextureIntegration(low_channels, width)
        self.semantic = PublishedIntegration(4 * width)

    def forward(  # type: ignore[override]
        self, crops: Tensor, code: Tensor, low: Tensor, key: Tensor, query: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor, list[Tensor]]:
        """See `MaskNetwork`."""
        fine, middle, coarse = self.three_stages(crops, code)
        fine, coarse = self.texture(low, fine), self.semantic(key, query, coarse)
        maps = self.fourth_stage([fine, middle, coarse])
        mask, auxiliary = self.read_out(maps)
        return mask, auxiliary, maps[0], maps


class MixMaskNetwork(nn.Module):
    """SegFormer with the texture integration after its first and the semantic one after its third stage."""

    code_stride = 4

    def __init__(self, config: MixConfig, low_channels: int) -> None:
        super().__init__()
        self.code_channels = self.feature_channels = config.widths[0]
        self.widths: tuple[int, ...] = config.widths
        self.backbone = MixTransformer(config)
        self.texture = TextureIntegration(low_channels, config.widths[0])
        self.semantic = PublishedIntegration(config.widths[2])
        self.head = MultiScaleHead(config.widths, 256)

    def forward(
        self, crops: Tensor, code: Tensor, low: Tensor, key: Tensor, query: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor, list[Tensor]]:
        """See `MaskNetwork`."""
        fine = self.texture(low, self.backbone.first(crops, code))
        middle = self.backbone.stage(1, fine)
        coarse = self.semantic(key, query, self.backbone.stage(2, middle))
        maps = [fine, middle, coarse, self.backbone.stage(3, coarse)]
        return self.head(maps), None, fine, maps


class GuidanceCode(nn.Module):
    """Current and earlier clicks, each with the previous mask, through a Conv1S of their own, then fused.

    Args:
        channels: Of the code.
        stride: 2, or 4 for networks that begin at 1/4.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.current = MapsTransform()
        self.history = MapsTransform()
        self.fuse = nn.Conv2d(2 * STEM_CHANNELS, channels, 3, stride // 2, 1)

    def forward(self, points: Tensor, previous: Tensor) -> Tensor:
        """(B, N, 3) rows (y, x, sign), the current click last, and (B, 1, h, w) -> (B, C, h/stride, w/stride)."""
        size = (previous.shape[2], previous.shape[3])
        codes = [
            transform(torch.cat([click_disks(own, size).to(previous.dtype), previous], 1))
            for transform, own in ((self.current, points[:, -1:]), (self.history, points[:, :-1]))
        ]
        out: Tensor = self.fuse(torch.cat(codes, 1))
        return out


class Fdrn(InteractiveModel):
    """See the module.

    Args:
        f1: Image encoder.
        f2: Mask network.
        crop_side: Side of the crop given to F2: 288 (RITM's) or 256 (FocalClick's).
        has_refiner: FocalClick's second look at what the last click changed.
    """

    cut: ClassVar[Literal["image", "crop"]] = "image"
    encoder_state_prefixes: ClassVar[tuple[str, ...]] = ("f1.",)

    def __init__(self, f1: ImageEncoder, f2: MaskNetwork, crop_side: int, has_refiner: bool = False) -> None:
        super().__init__()
        self.input_size = (crop_side, crop_side)
        self.f1 = f1
        self.guidance = GuidanceCode(f2.code_channels, f2.code_stride)
        self.f2: nn.Module = f2  # type: ignore[assignment]
        self.widths = f2.widths
        self.refiner = FocusRefiner(f2.feature_channels) if has_refiner else None

    def encode(self, images: Tensor) -> Encoding:
        """F1: low (B, C, H/4, W/4), key and query (B, C^k, H/16, W/16). Both sides are multiples of 32."""
        low, key, query = self.f1(images)
        return Encoding({"low": low, "key": key, "query": query}, images)

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
            ValueError: There are no crops and the encoding no longer knows its image.
        """
        outputs = self.training_outputs(encoding, clicks, previous, crops, rois)
        logits = outputs.get("refined", outputs["mask"])
        return Prediction(logits, logits.new_ones(logits.shape[0], 1))

    def training_outputs(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """See `InteractiveModel.training_outputs`: "mask", "coarse" (HRNet); with the refiner also "refined", and
        "trimap", "focus" and "boxes": trimap logits, corrected logits and place of the focus."""
        size = (previous.shape[2], previous.shape[3])
        crops = crops if crops is not None else cut_image(encoding, rois, size)
        points = clicks_to_sequence(clicks, previous.device)
        mask, coarse, features, _ = self._predict(encoding, points, previous, crops, rois)
        outputs = {"mask": to_input_size(mask, size)}
        if coarse is not None:
            outputs["coarse"] = to_input_size(coarse, size)
        if self.refiner is not None:
            boxes = focus_boxes(previous, outputs["mask"].detach().sigmoid(), points)
            disks = click_disks(points, size).to(previous.dtype)
            refined, trimap, focus = self.refiner(normalise(crops), disks, outputs["mask"], features, boxes)
            outputs |= {"refined": refined, "trimap": trimap, "focus": focus, "boxes": boxes}
        return outputs

    def host_shape(self) -> HostShape:
        """See `InteractiveModel.host_shape`. Early: what F1 says at 1/4; final: F2's map at 1/16."""
        return HostShape(self.f1.low_channels, self.widths[2], num_heads_of(self.widths[2]), self.widths)

    def host_features(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> HostFeatures:
        """See `InteractiveModel.host_features`."""
        size = (previous.shape[2], previous.shape[3])
        crops = crops if crops is not None else cut_image(encoding, rois, size)
        points = clicks_to_sequence(clicks, previous.device)
        mask, _, _, maps = self._predict(encoding, points, previous, crops, rois)
        early = align_rois(encoding["low"].to(crops.dtype), rois, (size[0] // 4, size[1] // 4))
        return HostFeatures(early, maps[2], maps, to_input_size(mask, size))

    def adapter_parameter_names(self, kind: str) -> tuple[str, ...]:
        """See `InteractiveModel.adapter_parameter_names`; all after the cut. "head": what makes the mask of
        the last maps (the coarse mask, which only weighs OCR's regions, stays); "affine": norms; "full": everything."""
        names = [name for name, _ in self.named_parameters() if not name.startswith("f1.")]
        if kind == "affine":
            kinds = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
            norms = {name for name, own in self.named_modules() if isinstance(own, kinds)}
            return tuple(name for name in names if name.rpartition(".")[0] in norms)
        heads = ("f2.conv3x3_ocr.", "f2.ocr_distri_head.", "f2.cls_head.", "f2.head.", "refiner.")
        chosen = {"head": heads, "full": ("",)}.get(kind, ())
        return tuple(name for name in names if name.startswith(chosen)) or super().adapter_parameter_names(kind)

    def _predict(
        self, encoding: Encoding, points: Tensor, previous: Tensor, crops: Tensor, rois: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, list[Tensor]]:
        h, w = previous.shape[2:]
        low = align_rois(encoding["low"].to(crops.dtype), rois, (h // 4, w // 4))
        key, query = (align_rois(encoding[name].to(crops.dtype), rois, (h // 16, w // 16)) for name in ("key", "query"))
        code = self.guidance(points, previous.to(crops.dtype))
        out: tuple[Tensor, Tensor | None, Tensor, list[Tensor]] = self.f2(normalise(crops), code, low, key, query)
        return out


def cut_image(encoding: Encoding, rois: Tensor | None, size: tuple[int, int]) -> Tensor:
    """The crop from the image given to encode, for calls without crops.

    Raises:
        ValueError: The encoding was stored and holds no RGB.
    """
    if encoding.images is None:
        raise ValueError("A stored encoding holds no RGB: give the crops, too.")
    if rois is None:
        return F.interpolate(encoding.images, size=size, mode="bilinear", align_corners=False, antialias=True)
    return align_rois(encoding.images, rois, size)


def num_heads_of(dim: int) -> int:
    """Heads of an attention that is attached to features of so many channels: at most 8, dividing them."""
    return next(heads for heads in (8, 6, 5, 4, 3, 2, 1) if dim % heads == 0)


def _timm_backbone(name: str) -> tuple[nn.Module, tuple[int, int] | None]:
    """A backbone without weights, and the one image size that it takes (None: any)."""
    import timm  # here: it takes a second, and few models need it

    try:
        for options in ({"dynamic_img_size": True, "dynamic_img_pad": True}, {"dynamic_img_size": True}, {}):
            try:
                backbone: nn.Module = timm.create_model(name, pretrained=False, features_only=True, **options)
                break
            except TypeError:  # it has no such option
                continue
    except (RuntimeError, ValueError, AttributeError) as error:
        raise NotFoundError(f"timm makes no backbone {name!r} that gives feature maps: {error}.") from error
    try:
        with torch.no_grad():
            backbone.eval()(torch.zeros(1, 3, 96, 128))
    except (RuntimeError, AssertionError, ValueError):  # torch's and timm's ways to refuse a size
        size = _pretrained_config(name).input_size
        return backbone, (size[1], size[2])
    return backbone, None


def _pretrained_config(name: str) -> Any:
    """What timm knows of a backbone's published weights."""
    import timm

    return timm.get_pretrained_cfg(name)


def _hrnet(encoder_small: bool, mask_small: bool, side: int = 288, has_refiner: bool = False) -> Fdrn:
    f1 = HrnetEncoder(encoder_small)
    return Fdrn(f1, HrnetMaskNetwork(mask_small, f1.low_channels), side, has_refiner)


def _segformer(encoder: MixConfig, network: MixConfig) -> Fdrn:
    f1 = MixEncoder(encoder)
    return Fdrn(f1, MixMaskNetwork(network, f1.low_channels), 256, has_refiner=True)


@register_model("fdrn-h1-hrnet18")
def fdrn_h1_hrnet18() -> Fdrn:
    """HRNet-18s encodes, HRNet-18 refines."""
    return _hrnet(encoder_small=True, mask_small=False)


@register_model("fdrn-h2-hrnet18")
def fdrn_h2_hrnet18() -> Fdrn:
    """HRNet-18 encodes, HRNet-18 refines."""
    return _hrnet(encoder_small=False, mask_small=False)


@register_model("fdrn-h2-hrnet18s")
def fdrn_h2_hrnet18s() -> Fdrn:
    """HRNet-18 encodes, HRNet-18s refines."""
    return _hrnet(encoder_small=False, mask_small=True)


@register_model("fdrn-h2-hrnet18s-focal")
def fdrn_h2_hrnet18s_focal() -> Fdrn:
    """The same with FocalClick's crop and refiner."""
    return _hrnet(encoder_small=False, mask_small=True, side=256, has_refiner=True)


@register_model("fdrn-b0-segformerb0")
def fdrn_b0_segformerb0() -> Fdrn:
    """MiT-B0 encodes, SegFormer-B0 refines."""
    return _segformer(MIT_B0, MIT_B0)


@register_model("fdrn-b1-segformerb0")
def fdrn_b1_segformerb0() -> Fdrn:
    """MiT-B1 encodes, SegFormer-B0 refines."""
    return _segformer(MIT_B1, MIT_B0)


@register_model("fdrn-b0-segformerb3")
def fdrn_b0_segformerb3() -> Fdrn:
    """MiT-B0 encodes, SegFormer-B3 refines."""
    return _segformer(MIT_B0, MIT_B3)


@register_family("fdrn-timm:")
def fdrn_timm(encoder: str) -> Fdrn:
    """Any timm backbone encodes, HRNet-18s refines."""
    f1 = TimmEncoder(encoder)
    return Fdrn(f1, HrnetMaskNetwork(small=True, low_channels=f1.low_channels), 288)
