"""FocalClick's refiner: look once more at the part of the mask that the last click changed.

Source: Chen et al., "FocalClick", CVPR 2022, section 3.2, as far as FDRN's starred variants need it. The focus is cut
from the crop, not from the photograph (a model sees crops only).
"""

# B batch, C channels, h/w crop px

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.layers.blocks import ConvNormAct
from pipeline.models.layers.rois import align_rois

_EXPANSION = 1.4
_MIN_SIDE = 32


class FocusRefiner(nn.Module):
    """Corrects the mask's logits in a focus region, where a trimap says that the edge is.

    Args:
        feature_channels: C, of the features at 1/4.
        width: Of the refiner.
    """

    def __init__(self, feature_channels: int, width: int = 32) -> None:
        super().__init__()
        self.image = nn.Sequential(ConvNormAct(6, width // 2), ConvNormAct(width // 2, width // 2))
        self.features = nn.Conv2d(feature_channels, width, 1)
        self.join = ConvNormAct(width // 2 + width, width, 1)
        self.to_trimap = nn.Conv2d(width, 1, 1)
        self.to_mask = nn.Conv2d(width, 1, 1)

    def forward(
        self, crops: Tensor, disks: Tensor, logits: Tensor, features: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Refine.

        Args:
            crops: (B, 3, h, w) normalised RGB.
            disks: (B, 2, h, w) click maps.
            logits: (B, 1, h, w) to be corrected.
            features: (B, C, h/4, w/4).
            boxes: (B, 4) focus regions (y0, x0, y1, x1) as fractions of the crop, see `focus_boxes`.

        Returns:
            Logits with the focus corrected, trimap logits and corrected logits of the focus, (B, 1, h, w) each.
        """
        size = (crops.shape[2], crops.shape[3])
        seen = align_rois(torch.cat([crops, disks, logits], 1), boxes, size)
        deep = self.features(align_rois(features, boxes, (size[0] // 4, size[1] // 4)))
        deep = F.interpolate(deep, size=size, mode="bilinear", align_corners=False)
        joined = self.join(torch.cat([self.image(seen), deep], 1))
        trimap, mask = self.to_trimap(joined), self.to_mask(joined)
        edge = trimap.sigmoid()
        corrected = edge * mask + (1 - edge) * seen[:, 5:6]
        return paste_boxes(logits, corrected, boxes), trimap, mask


def focus_boxes(before: Tensor, after: Tensor, points: Tensor) -> Tensor:
    """The part of a mask that the current click changed, enlarged.

    Args:
        before: (B, 1, h, w) probability.
        after: (B, 1, h, w) probability.
        points: (B, N, 3) rows (y, x, sign) in pixels, the current click last.

    Returns:
        (B, 4) (y0, x0, y1, x1) as fractions: 1.4 times the box of the connected change that the click lies in (of the
        largest one where it lies in none); the whole where nothing changed.
    """
    changed = ((before > 0.5) != (after > 0.5))[:, 0].cpu().numpy().astype(np.uint8)
    height, width = changed.shape[1:]
    boxes = []
    for own, (y, x, _) in zip(changed, points[:, -1].tolist(), strict=True):
        count, labels, stats, _ = cv2.connectedComponentsWithStats(own)
        if count == 1:
            boxes.append((0.0, 0.0, 1.0, 1.0))
            continue
        row, column = int(np.clip(y, 0, height - 1)), int(np.clip(x, 0, width - 1))
        label = int(labels[row, column]) or 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
        left, top, box_w, box_h = (float(value) for value in stats[label, :4])
        half_h, half_w = (max(_MIN_SIDE, _EXPANSION * side) / 2 for side in (box_h, box_w))
        centre_y, centre_x = top + box_h / 2, left + box_w / 2
        boxes.append(
            (
                max(0.0, centre_y - half_h) / height,
                max(0.0, centre_x - half_w) / width,
                min(float(height), centre_y + half_h) / height,
                min(float(width), centre_x + half_w) / width,
            )
        )
    return torch.tensor(boxes, device=before.device, dtype=before.dtype)


def paste_boxes(onto: Tensor, patches: Tensor, boxes: Tensor) -> Tensor:
    """Put patches back where they were cut.

    Args:
        onto: (B, C, h, w).
        patches: (B, C, h', w').
        boxes: (B, 4) (y0, x0, y1, x1) as fractions of `onto`.

    Returns:
        `onto` with each box replaced by its patch, resized bilinearly.
    """
    height, width = onto.shape[2:]
    y = (torch.arange(height, device=onto.device, dtype=onto.dtype) + 0.5) / height
    x = (torch.arange(width, device=onto.device, dtype=onto.dtype) + 0.5) / width
    y0, x0, y1, x1 = boxes[..., None].unbind(1)
    rows, columns = (y - y0) / (y1 - y0), (x - x0) / (x1 - x0)
    grid = torch.stack(
        [
            (2 * columns - 1)[:, None].expand(-1, height, -1),
            (2 * rows - 1)[:, :, None].expand(-1, -1, width),
        ],
        -1,
    )
    moved = F.grid_sample(patches, grid, padding_mode="border", align_corners=False)
    inside = ((rows >= 0) & (rows < 1))[:, None, :, None] & ((columns >= 0) & (columns < 1))[:, None, None]
    return torch.where(inside, moved, onto)
