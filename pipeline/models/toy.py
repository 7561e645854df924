"""A toy model that needs no training: soft segmentation by colour and distance to the clicks. Under 1 kB of weights.

For quick tests of whatever surrounds a model (actors, gateway, flows): it is real in its parts - an image encoding that
can be stored, ROI-Align of it, RGB crop, previous mask, several candidates, gradients - and the robot user converges
with it on simple images. Not meant for work. Each pixel goes to the nearest click in (colour, context, place); with
positive clicks only, it is inside up to a fixed distance.
"""

# B batch, N clicks, C features, H/W encoded image px, h/w crop px

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate
from torchvision.ops import roi_align

from pipeline.models._base import Encoding, InteractiveModel, Prediction
from pipeline.models._registry import register_model
from schemas.clicks import Click

_STRIDE = 4
_OFFSETS = (0.0, -1.5, 1.5)
"""Added to the logits: the official output, a tighter and a looser candidate."""
_SCORES = (0.9, 0.7, 0.6)


@register_model("toy-color")
class ToyColor(InteractiveModel):
    """Colour-distance segmentation with ten weights, meaningful as they are."""

    cut: ClassVar[Literal["image", "crop"]] = "image"
    encoder_state_prefixes: ClassVar[tuple[str, ...]] = ()
    input_size = (128, 128)
    image_size = 256

    def __init__(self) -> None:
        super().__init__()
        self.colour = nn.Parameter(torch.tensor(8.0))
        self.context = nn.Parameter(torch.tensor(2.0))
        self.place = nn.Parameter(torch.tensor(5.0))
        self.reach = nn.Parameter(torch.tensor(2.0))
        self.head = nn.Conv2d(5, 1, 1)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([6.0, 0.5, 0.0, 0.0, 0.0]).view(1, 5, 1, 1))
            self.head.bias.zero_()  # type: ignore[union-attr]

    def encode(self, images: Tensor) -> Encoding:
        """Blurred opponent colours at 1/4: (B, 3, H/4, W/4)."""
        small = avg_pool2d(opponent_colours(images), _STRIDE)
        return Encoding({"context": avg_pool2d(small, 5, stride=1, padding=2, count_include_pad=False)})

    def refine(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> Prediction:
        """Predict three nested candidates; see `InteractiveModel.refine`.

        Without crops the colours come from the encoding.
        """
        batch, _, h, w = previous.shape
        context = self._align(encoding["context"].float(), rois, (h, w))
        colours = context if crops is None else opponent_colours(crops)
        features = torch.cat([self.colour * colours, self.context * context, self.place * self._places(batch, h, w)], 1)
        margins = torch.stack([self._margin(f, own) for f, own in zip(features, clicks, strict=True)])[:, None]
        memory = (2 * previous - 1) * (previous.amax((1, 2, 3), keepdim=True) > 0)
        logits: Tensor = self.head(torch.cat([margins, memory, colours], 1))
        offsets = torch.tensor(_OFFSETS, device=logits.device).view(1, -1, 1, 1)
        scores = torch.tensor(_SCORES, device=logits.device).expand(batch, -1)
        return Prediction(logits + offsets, scores, query_ids=(0, 1, 2))

    def adapter_parameter_names(self, kind: str) -> tuple[str, ...]:
        """See `InteractiveModel.adapter_parameter_names`: "head" is all weights, as the encoding has none."""
        if kind != "head":
            return super().adapter_parameter_names(kind)
        return tuple(name for name, _ in self.named_parameters())

    def _margin(self, features: Tensor, clicks: Sequence[Click]) -> Tensor:
        """(C, h, w) to (h, w): how much nearer the nearest positive click is than the nearest negative one."""
        _, h, w = features.shape
        nearest = {True: torch.full((h, w), 4.0, device=features.device), False: self.reach.expand(h, w)}
        for click in clicks:
            if 0 <= click.x < w and 0 <= click.y < h:
                at_click = features[:, int(click.y), int(click.x)].view(-1, 1, 1)
                distance = ((features - at_click).square().sum(0) + 1e-6).sqrt()
                nearest[click.is_positive] = torch.minimum(nearest[click.is_positive], distance)
        return nearest[False] - nearest[True]

    def _places(self, batch: int, h: int, w: int) -> Tensor:
        rows = torch.linspace(0, 1, h, device=self.place.device).view(1, 1, h, 1).expand(batch, 1, h, w)
        columns = torch.linspace(0, 1, w, device=self.place.device).view(1, 1, 1, w).expand(batch, 1, h, w)
        return torch.cat([rows, columns], 1)

    @staticmethod
    def _align(context: Tensor, rois: Tensor | None, size: tuple[int, int]) -> Tensor:
        """The ROI of the stored features at 1/4 of the crop size, then at the crop size."""
        batch, _, height, width = context.shape
        if rois is None:
            rois = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=context.device).expand(batch, 4)
        edges = rois.float() * torch.tensor([height, width, height, width], device=context.device)
        boxes = torch.cat([torch.arange(batch, device=context.device)[:, None], edges[:, [1, 0, 3, 2]]], 1)
        grid = (max(1, size[0] // _STRIDE), max(1, size[1] // _STRIDE))
        aligned: Tensor = roi_align(context, boxes, grid, sampling_ratio=2, aligned=True)
        return interpolate(aligned, size=size, mode="bilinear", align_corners=False)


def opponent_colours(images: Tensor) -> Tensor:
    """Lightness (halved), red-green and yellow-blue of RGB in [0, 1], (B, 3, H, W): a plain stand-in for Lab."""
    red, green, blue = images.unbind(1)
    return torch.stack([(red + green + blue) / 6, red - green, (red + green) / 2 - blue], 1)
