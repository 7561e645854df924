"""ClickAdapter: a small trainable branch beside a frozen host that sharpens the host's mask.

A detail extractor on the RGB crop, features of the host, a token decoder whose token becomes a dynamic kernel. The
branch adds a logit map to the host's; with a kernel of zeros (as it starts) the host's output is unchanged, bit for
bit. No gradient reaches the host. The host decides the cut; the branch is computed per crop and never stored.

Source: Li et al., "ClickAdapter: Integrating Details into Interactive Segmentation Model with Adapter", TCSVT 2024. No
code is public; choices where the text is silent are in docs/models/clickadapter.md.
"""

# B batch, N clicks, C channels of the host, H/W crop px, h/w grid at 1/16

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models._base import Encoding, HostFeatures, InteractiveModel, Prediction
from pipeline.models._registry import create_model, register_family
from pipeline.models.layers.coordinates import to_input_size
from pipeline.models.layers.detail import Injector, SpatialPrior
from pipeline.models.layers.patch_embed import normalise
from pipeline.models.layers.two_way import CrossAttention, TwoWayLayer
from schemas.clicks import Click
from schemas.requests import AdapterKind

_SPATIAL = "adapter.spatial"
"""Name of the spatial prior in encodings of cut "crop"."""


class DenseEmbedding(nn.Module):
    """The previous mask at 1/16: four strided convolutions (section III-C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        widths = (1, 4, 16, 64)
        layers: list[nn.Module] = []
        for own, following in itertools.pairwise(widths):
            layers += [nn.Conv2d(own, following, 2, 2), nn.GroupNorm(1, following), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], dim, 2, 2))

    def forward(self, previous: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, C, H/16, W/16)."""
        out: Tensor = self.layers(previous)
        return out


class ScaleFusion(nn.Module):
    """Pyramid maps to C/4 channels at 1/4 by 2x2 deconvolutions, concatenated, to C/8 (section III-C).

    The last deconvolution of a scale and its part of the final layer are linear with nothing between them: they are
    applied as one, so that no map of C/4 channels at 1/4 is ever made.

    Args:
        in_channels: Of each map, finest first; map i is at 1/4 of the crop divided by 2^i.
        dim: C.
    """

    def __init__(self, in_channels: Sequence[int], dim: int) -> None:
        super().__init__()
        self.width = dim // 4
        self.before = nn.ModuleList()
        self.last = nn.ModuleList()
        for index, own in enumerate(in_channels):
            inner = [own] + [self.width] * index
            self.before.append(nn.Sequential(*(nn.ConvTranspose2d(c, self.width, 2, 2) for c in inner[: index - 1])))
            self.last.append(
                nn.ConvTranspose2d(inner[index - 1], self.width, 2, 2) if index else nn.Conv2d(own, self.width, 1)
            )
        self.merge = nn.Linear(self.width * len(in_channels), dim // 8)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """List of (B, C_i, h_i, w_i) -> (B, C/8, *size)."""
        fused = self.merge.bias[:, None, None]
        for index, (before, last, own) in enumerate(zip(self.before, self.last, maps, strict=True)):
            part = self.merge.weight[:, index * self.width : (index + 1) * self.width]
            x, weight, bias = before(own), last.get_parameter("weight"), part @ last.get_parameter("bias")
            if isinstance(last, nn.Conv2d):
                x = F.conv2d(x, torch.einsum("pw,wiyx->piyx", part, weight), bias)
            else:
                x = F.conv_transpose2d(x, torch.einsum("pw,iwyx->ipyx", part, weight), bias, stride=2)
            fused = fused + _at(x, size)
        return fused


class ClickAdapter(InteractiveModel):
    """See the module.

    Args:
        host: What is adapted; frozen here.
        train_host_head: Whether the host's own head learns, too (the paper's parameter counts include it).
    """

    default_adapter: ClassVar[AdapterKind] = "full"

    def __init__(self, host: InteractiveModel, train_host_head: bool = False) -> None:
        super().__init__()
        shape = host.host_shape()
        dim, heads = shape.dim, shape.num_heads
        self.cut = host.cut  # type: ignore[misc]  # the host's, not the class's
        self.encoder_state_prefixes = tuple(f"host.{own}" for own in host.encoder_state_prefixes)  # type: ignore[misc]
        self.input_size, self.image_size = host.input_size, host.image_size
        self.host = host.requires_grad_(False)
        self.to_early = nn.Conv2d(shape.early_dim, dim, 1) if shape.early_dim != dim else nn.Identity()
        self.spatial = SpatialPrior(dim, dim)
        self.injector = Injector(dim, heads, dim // 8)
        self.dense = DenseEmbedding(dim)
        self.join = nn.Conv2d(2 * dim, dim, 1)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.normal_(self.token, std=0.02)
        self.layers = nn.ModuleList(TwoWayLayer(dim, heads, dim) for _ in range(2))
        self.to_map = CrossAttention(dim, heads, downsample=2)
        self.norm = nn.LayerNorm(dim)
        self.kernel = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim // 8)
        )
        for parameter in self.kernel[-1].parameters():
            nn.init.zeros_(parameter)
        self.fusion = ScaleFusion(shape.pyramid_dims, dim)
        self.train_host_head = train_host_head
        if train_host_head:
            for name in host.adapter_parameter_names("output"):
                host.get_parameter(name).requires_grad_(True)

    def train(self, mode: bool = True) -> "ClickAdapter":
        """Training mode for the branch alone: the host's dropout and batch norms stay as in use."""
        super().train(mode)
        self.host.eval()
        return self

    def encode(self, images: Tensor) -> Encoding:
        """The host's encoding; for cut "crop" also the spatial prior, which clicks cannot change either."""
        with torch.no_grad():
            encoding = self.host.encode(images)
        if self.cut == "image":
            return encoding
        return Encoding({**encoding.tensors, _SPATIAL: self.spatial(normalise(images))}, images)

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
            ValueError: The host has cut "image" and there are no crops.
        """
        with torch.set_grad_enabled(self.train_host_head and torch.is_grad_enabled()):
            host = self.host.host_features(encoding, clicks, previous, crops, rois)
        if self.cut == "crop":
            spatial = encoding[_SPATIAL]
        elif crops is not None:
            spatial = self.spatial(normalise(crops))
        else:
            raise ValueError(f"{self.model_id} needs crops: its own branch looks at RGB.")
        size = (previous.shape[2], previous.shape[3])
        added = to_input_size(self.branch(host, spatial, previous), size)
        return Prediction(host.logits + added, host.logits.new_ones(previous.shape[0], 1))

    def branch(self, host: HostFeatures, spatial: Tensor, previous: Tensor) -> Tensor:
        """The adapter's own logits at 1/4.

        Args:
            host: Features of the frozen host.
            spatial: (B, C, h, w).
            previous: (B, 1, H, W).
        """
        early, final, maps = host.early.detach(), host.final.detach(), [own.detach() for own in host.pyramid]
        grid = (final.shape[2], final.shape[3])
        early = self.to_early(F.adaptive_avg_pool2d(early, grid) if early.shape[2:] != grid else early)
        fine = self.injector(early, _at(spatial, grid))
        cells = self.join(torch.cat([final, _at(self.dense(previous), grid)], 1)).flatten(2).transpose(1, 2)
        first = self.token.expand(previous.shape[0], -1, -1)
        tokens = first
        for layer in self.layers:
            tokens, cells = layer(tokens, cells, first)
        tokens = self.norm(tokens + self.to_map(tokens + first, cells, cells))
        kernel = self.kernel(tokens[:, 0])
        features = fine + self.fusion(maps, (fine.shape[2], fine.shape[3]))
        return torch.einsum("bc,bchw->bhw", kernel, features)[:, None]

    def adapter_parameter_names(self, kind: str) -> tuple[str, ...]:
        """See `InteractiveModel.adapter_parameter_names`. "full": all that learns, the host's frozen part never."""
        if kind != "full":
            return super().adapter_parameter_names(kind)
        return tuple(name for name, parameter in self.named_parameters() if parameter.requires_grad)


def _at(x: Tensor, size: tuple[int, int]) -> Tensor:
    """At a grid; unchanged where it has that grid (patch sizes other than 16 give others)."""
    if (x.shape[2], x.shape[3]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


@register_family("clickadapter-")
def clickadapter(host_id: str, train_host_head: bool = False) -> ClickAdapter:
    """On any model that can host it, by that model's id."""
    return ClickAdapter(create_model(host_id), train_host_head)
