"""Cut regions of interest out of cached features. Knows fractions of the image, not its pixels."""

import torch
from torch import Tensor
from torchvision.ops import roi_align


def align_rois(features: Tensor, rois: Tensor | None, size: tuple[int, int]) -> Tensor:
    """ROI-Align, aligned, two samples per cell side.

    Args:
        features: (B, C, H, W).
        rois: (R, 4) (y0, x0, y1, x1) as fractions of the encoded image, R a multiple of B: region r is cut from image
            r // (R / B); None means the whole of each image.
        size: (h, w) of the result.

    Returns:
        (R, C, h, w).
    """
    num_images, _, height, width = features.shape
    if rois is None:
        rois = features.new_tensor([[0.0, 0.0, 1.0, 1.0]]).expand(num_images, 4)
    if rois.shape[0] % num_images:
        raise ValueError(f"{rois.shape[0]} regions cannot be shared out evenly over {num_images} images.")
    image = torch.arange(rois.shape[0], device=features.device) // (rois.shape[0] // num_images)
    y0, x0, y1, x1 = rois.to(features).unbind(1)
    boxes = torch.stack([image.to(features), x0 * width, y0 * height, x1 * width, y1 * height], 1)
    cut: Tensor = roi_align(features, boxes, size, spatial_scale=1.0, sampling_ratio=2, aligned=True)
    return cut.contiguous(memory_format=torch.channels_last)  # as the layers that read it
