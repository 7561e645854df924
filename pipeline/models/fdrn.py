"""FDRN-compact: encode the photograph once (F1), then refine the clicked region of interest per click (F2).

F1 sees no clicks and gives low features at 1/4 and high features at 1/16 of the encoded image; they may be stored. F2
sees the RGB crop, the current click apart from the earlier ones (each with the previous mask), the scale of the region
and the cached features under it. Widths are ours (3.4 M parameters, F2 below 2 GMAC at 256 x 256), small enough to
train from scratch; the two maps of likeness to the clicked places are ours, too (`layers.guidance`).

Source: Zeng et al., "Feature Decoupling-Recycling Network for Fast Interactive Segmentation", ACM MM 2023.
"""

# B images, R regions of interest (R = B in `refine`), N clicks, h/w crop px

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models._base import Encoding, InteractiveModel, Prediction
from pipeline.models._registry import register_model
from pipeline.models.layers.blocks import ConvNormAct, ResBlock
from pipeline.models.layers.guidance import click_disks, clicks_to_sequence, colour_likeness, geodesic_nearness
from pipeline.models.layers.integration import SemanticIntegration, TextureIntegration
from pipeline.models.layers.rois import align_rois
from schemas.clicks import Click
from schemas.requests import AdapterKind

LOW_CHANNELS = 32
HIGH_CHANNELS = 96
_DECODER = ("up8", "up8_refine", "up4", "up2_deep", "up2_skip", "up2", "to_logits", "to_score")
"""Parts of the refiner after its last block at 1/16."""
MASKS_FOR_FULL = 100
"""From so many masks on retraining makes "full": so many were better than "head" on two domains (docs/adapters.md)."""


def _upsample_to(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class ImageEncoder(nn.Module):
    """F1: (B, 3, H, W) normalised RGB -> low (B, 32, H/4, W/4) and high (B, 96, H/16, W/16) features."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNormAct(3, width, 3, 2), ConvNormAct(width, width, 3, 2))
        self.stage4 = nn.Sequential(ResBlock(width, width), ResBlock(width, width))
        self.stage8 = nn.Sequential(ResBlock(width, 2 * width, 2), ResBlock(2 * width, 2 * width))
        self.stage16 = nn.Sequential(
            ResBlock(2 * width, 4 * width, 2), ResBlock(4 * width, 4 * width), ResBlock(4 * width, 4 * width)
        )
        self.context = nn.Sequential(nn.Linear(4 * width, width), nn.ReLU(inplace=True), nn.Linear(width, 4 * width))
        self.to_high = nn.Conv2d(4 * width, HIGH_CHANNELS, 1)
        self.from_8 = nn.Conv2d(2 * width, width, 1)
        self.from_16 = nn.Conv2d(4 * width, width, 1)
        self.to_low = nn.Sequential(ConvNormAct(width, width), nn.Conv2d(width, LOW_CHANNELS, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Low and high features."""
        x4 = self.stage4(self.stem(images))
        x8 = self.stage8(x4)
        x16 = self.stage16(x8)
        x16 = x16 + self.context(x16.mean((2, 3)))[:, :, None, None]
        deep = self.from_8(x8) + _upsample_to(self.from_16(x16), x8)
        low = self.to_low(x4 + _upsample_to(deep, x4))
        return low, self.to_high(x16)


class GuidanceCode(nn.Module):
    """One kind of clicks (current or earlier) with the previous mask -> code at 1/2 (RITM's maps transform)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.transform = nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(8, channels, 3, 2, 1)
        )

    def forward(self, disks: Tensor, previous: Tensor) -> Tensor:
        """(R, 2, h, w) and (R, 1, h, w) -> (R, C, h/2, w/2)."""
        mix, act, shrink = self.transform
        assert isinstance(mix, nn.Conv2d) and mix.bias is not None
        maps = torch.cat([disks, previous], 1)
        weight = mix.weight.flatten(1).expand(maps.shape[0], -1, -1)
        # a 1x1 convolution of three channels, as a product: a tenth of its time on one thread
        mixed = torch.baddbmm(mix.bias[None, :, None], weight, maps.flatten(2))
        out: Tensor = shrink(act(mixed.view(*mixed.shape[:2], *maps.shape[2:])))
        return out


class Refiner(nn.Module):
    """F2: crop, guidance and cached features of a region -> logits at 1/2 of the crop and a quality score."""

    def __init__(self, printed_form: bool = False) -> None:
        super().__init__()
        w2, w4, w8, w16 = 24, 48, 64, 128
        self.rgb_stem = nn.Conv2d(4, w2, 3, 2, 1)
        self.current_code = GuidanceCode(12)
        self.history_code = GuidanceCode(12)
        self.fuse = nn.Conv2d(12 + 12 + 4, w2, 3, 1, 1)
        self.stem_norm = nn.Sequential(nn.BatchNorm2d(w2), nn.ReLU(inplace=True))
        self.down4 = ConvNormAct(w2, w4, 3, 2)
        self.texture = TextureIntegration(LOW_CHANNELS, w4)
        self.down8 = nn.Sequential(ResBlock(w4, w8, 2), ResBlock(w8, w8))
        self.down16 = nn.Sequential(ResBlock(w8, w16, 2))
        self.semantic = SemanticIntegration(HIGH_CHANNELS, 64, w16)
        self.semantic.printed_form = printed_form
        self.deep = nn.Sequential(ResBlock(w16, w16), ResBlock(w16, w16))
        self.up8 = ConvNormAct(w16 + w8, w8)
        self.up8_refine = ResBlock(w8, w8)
        self.up4 = ConvNormAct(w8 + w4, w4)
        self.up2_deep = nn.Conv2d(w4, 16, 1)
        self.up2_skip = nn.Conv2d(w2 + 4, 16, 1)
        self.up2 = nn.Sequential(ConvNormAct(32, 24), ConvNormAct(24, 16))
        self.to_logits = nn.Conv2d(16, 1, 1)
        self.to_coarse = nn.Conv2d(w16, 1, 1)
        self.to_score = nn.Sequential(nn.Linear(w16 + w8 + 1, 128), nn.ReLU(inplace=True), nn.Linear(128, 1))

    def forward(
        self, crops: Tensor, points: Tensor, previous: Tensor, log_scale: Tensor, f_low: Tensor, f_high: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Refine R regions.

        Args:
            crops: (R, 3, h, w) RGB in [0, 1].
            points: (R, N, 3) rows (y, x, sign) in crop pixels, the current click last.
            previous: (R, 1, h, w) probability.
            log_scale: (R,) natural log of the region's side over the image's.
            f_low: (R, 32, h/4, w/4).
            f_high: (R, 96, h/16, w/16).

        Returns:
            Logits (R, 1, h/2, w/2), coarse logits (R, 1, h/16, w/16), score logits (R, 1).
        """
        return self.network(crops, *self.guidance(crops, points), previous, log_scale, f_low, f_high)

    @staticmethod
    def guidance(crops: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the clicks say: hints (R, 4, h/2, w/2), disks (R, 2, h, w) of the current click and of the earlier ones.

        In float32 whatever the network runs in: squared distances of colours cancel in bfloat16.
        """
        size = (crops.shape[2], crops.shape[3])
        with torch.no_grad(), torch.autocast(crops.device.type, enabled=False):
            crops = crops.contiguous()  # pooled twice, which takes twice as long with the channels last
            likeness = colour_likeness(crops, points)
            nearness = _upsample_to(geodesic_nearness(crops, points), likeness)
            hints = torch.cat([likeness, nearness], 1).contiguous(memory_format=torch.channels_last)  # as the codes are
            return hints, click_disks(points[:, -1:], size), click_disks(points[:, :-1], size)

    def network(
        self,
        crops: Tensor,
        hints: Tensor,
        current: Tensor,
        history: Tensor,
        previous: Tensor,
        log_scale: Tensor,
        f_low: Tensor,
        f_high: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All that has weights: shapes depend on the crop's size, not on the number of clicks.

        Args and returns are those of `forward` and `guidance`.
        """
        size = (crops.shape[2], crops.shape[3])
        scale = log_scale[:, None, None, None].expand(-1, 1, *size)
        x2 = self.rgb_stem(torch.cat([(crops - 0.45) / 0.225, scale], 1))
        codes = [self.current_code(current, previous), self.history_code(history, previous), hints]
        x2 = self.stem_norm(x2 + self.fuse(torch.cat(codes, 1)))
        x4 = self.texture(f_low, self.down4(x2))
        x8 = self.down8(x4)
        x16 = self.deep(self.semantic(f_high, self.down16(x8)))
        y8 = self.up8_refine(self.up8(torch.cat([_upsample_to(x16, x8), x8], 1)))
        y4 = self.up4(torch.cat([_upsample_to(y8, x4), x4], 1))
        y2 = torch.cat([_upsample_to(self.up2_deep(y4), x2), self.up2_skip(torch.cat([x2, hints], 1))], 1)
        logits = self.to_logits(self.up2(y2))
        area = torch.sigmoid(logits.detach()).mean((2, 3))
        score = self.to_score(torch.cat([x16.mean((2, 3)).detach(), y8.mean((2, 3)).detach(), area], 1))
        return logits, self.to_coarse(x16), score


@register_model("fdrn-compact")
class FdrnCompact(InteractiveModel):
    """The shipped model.

    Args:
        image_size: Longest side in pixels given to F1.
        input_size: (h, w) of the crop given to F2, multiples of 16.
        printed_form: The semantic attention as the paper prints it (see `SemanticIntegration`).
    """

    cut: ClassVar[Literal["image", "crop"]] = "image"
    encoder_state_prefixes: ClassVar[tuple[str, ...]] = ("f1.",)

    def __init__(
        self, image_size: int = 512, input_size: tuple[int, int] = (256, 256), printed_form: bool = False
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.input_size = input_size
        self.f1 = ImageEncoder()
        self.f2 = Refiner(printed_form)

    def encode(self, images: Tensor) -> Encoding:
        """F1; see `InteractiveModel.encode`. Both sides must be multiples of 32.

        The tensors are low (B, 32, H/4, W/4) and high (B, 96, H/16, W/16); float16 is enough to store them.
        """
        low, high = self.f1((images - 0.45) / 0.225)
        # as ROI-Align reads them, so that no click has to turn them
        return Encoding({"low": low.contiguous(), "high": high.contiguous()}, images)

    def refine_points(
        self, encoding: Encoding, points: Tensor, previous: Tensor, crops: Tensor, rois: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """F2 on tensors, for training and serving alike; several regions per image are allowed.

        Args:
            encoding: Of B images.
            points: (R, N, 3), see `Refiner`.
            previous: (R, 1, h, w).
            crops: (R, 3, h, w).
            rois: (R, 4) fractions, or None with R = B; region r belongs to image r // (R / B).

        Returns:
            Logits (R, 1, h, w) at crop size, coarse logits (R, 1, h/16, w/16), score logits (R, 1).
        """
        h, w = crops.shape[2:]
        dtype = crops.dtype
        f_low = align_rois(encoding["low"].to(dtype), rois, (h // 4, w // 4))
        f_high = align_rois(encoding["high"].to(dtype), rois, (h // 16, w // 16))
        if rois is None:
            log_scale = crops.new_zeros(crops.shape[0])
        else:
            sides = (rois[:, 2:] - rois[:, :2]).to(dtype).clamp_min(1e-3)
            log_scale = 0.5 * sides.log().sum(1)
        logits, coarse, score = self.f2(crops, points, previous, log_scale, f_low, f_high)
        return F.interpolate(logits, size=(h, w), mode="bilinear", align_corners=False), coarse, score

    def refine(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> Prediction:
        """See `InteractiveModel.refine`. One candidate.

        F2 sees RGB and a stored encoding holds none: serving passes `crops`, cut from the photograph. Without them the
        crop is cut from the image given to encode, as long as the encoding keeps it.

        Raises:
            ValueError: There are no crops and the encoding no longer knows its image.
        """
        if crops is None:
            if encoding.images is None:
                raise ValueError(f"{self.model_id} needs crops with a stored encoding, which holds no RGB.")
            crops = _cut_image(encoding.images, rois, (previous.shape[2], previous.shape[3]))
        points = clicks_to_sequence(clicks, crops.device)
        logits, _, score = self.refine_points(encoding, points, previous.to(crops.dtype), crops, rois)
        return Prediction(logits, torch.sigmoid(score))

    def default_adapter(self, masks: int) -> AdapterKind:
        """See `InteractiveModel.default_adapter`. Of few masks "full" may do harm (docs/adapters.md)."""
        return "full" if masks >= MASKS_FOR_FULL else "head"

    def adapter_parameter_names(self, kind: str) -> tuple[str, ...]:
        """See `InteractiveModel.adapter_parameter_names`. "head": the last block at 1/16, the decoder, both outputs;
        "affine": all norms of F2; "full": F2; "lora": weights from the semantic integration on."""
        names = [name for name, _ in self.named_parameters() if name.startswith("f2.")]
        if kind == "affine":
            norms = {name for name, own in self.named_modules() if isinstance(own, nn.BatchNorm2d)}
            return tuple(name for name in names if name.rpartition(".")[0] in norms)
        parts = {
            "head": ("deep.1", *_DECODER), "full": ("",), "lora": ("texture", "semantic", "deep", *_DECODER)
        }.get(kind, ())  # fmt: skip
        prefixes = tuple(f"f2.{part}." if part else "f2." for part in parts)
        chosen = tuple(name for name in names if name.startswith(prefixes))
        return chosen or super().adapter_parameter_names(kind)


def _cut_image(images: Tensor, rois: Tensor | None, size: tuple[int, int]) -> Tensor:
    if rois is None:
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
    return align_rois(images, rois, size)
