"""A small detail branch beside any model: ClickAdapter's idea in a size that a campaign can train.

Local features of the RGB crop by (deformable) convolutions, and a kernel for them from what the crop and the previous
mask look like as a whole; the kernel starts at zero, so an untrained branch leaves the model's output alone.
The published network is `pipeline.models.clickadapter`.

Source: Li et al., "ClickAdapter", TCSVT 2024, section III, much reduced.
"""

# B batch, C channels, h/w crop px

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.models._base import Encoding, InteractiveModel, ModelAround, Prediction
from pipeline.models.fdrn_published import cut_image
from pipeline.models.layers.coordinates import coordinate_features, to_input_size
from pipeline.models.layers.deformable_conv import DeformableConv
from pipeline.models.layers.patch_embed import normalise
from schemas.clicks import Click

_WIDTH = 24


class DetailBranch(nn.Module):
    """Crop, previous mask and clicks -> logits at 1/2."""

    def __init__(self, width: int = _WIDTH) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(6, width, 3, 2, 1), nn.GroupNorm(1, width), nn.GELU())
        self.detail = nn.Sequential(DeformableConv(width, width, 3), nn.GroupNorm(1, width), nn.GELU())
        self.fine = nn.Sequential(nn.Conv2d(2 * width, width, 3, 1, 1), nn.GroupNorm(1, width), nn.GELU())
        self.kernel = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        for parameter in self.kernel[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, crops: Tensor, coordinates: Tensor) -> Tensor:
        """(B, 3, h, w) normalised RGB and (B, 3, h, w) maps -> (B, 1, h/2, w/2)."""
        rough = self.stem(torch.cat([crops, coordinates], 1))
        features = self.fine(torch.cat([rough, self.detail(rough)], 1))
        kernel = self.kernel(torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1))
        return torch.einsum("bc,bchw->bhw", kernel, features)[:, None]


class DetailAdapted(ModelAround):
    """A model with a detail branch, which looks at crops, added to its logits (every candidate's alike).

    Args:
        base: Left as it is.
        branch: Trained or not.
    """

    def __init__(self, base: InteractiveModel, branch: DetailBranch) -> None:
        super().__init__(base)
        self.branch = branch

    def refine(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> Prediction:
        """See `InteractiveModel.refine`."""
        prediction = self.base.refine(encoding, clicks, previous, crops, rois)
        size = (previous.shape[2], previous.shape[3])
        seen = crops if crops is not None else cut_image(encoding, rois, size)
        added = to_input_size(self.branch(normalise(seen), coordinate_features(clicks, previous)), size)
        return Prediction(prediction.logits + added, prediction.scores, prediction.query_ids, prediction.is_ranked)
