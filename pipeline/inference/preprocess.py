"""From a decoded image to what a cut "image" model encodes. The one definition for serving, precompute and training."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.models._base import InteractiveModel

PREPROCESSING = "squeeze32-area-v1"
"""Name of this preprocessing, part of the key of stored embeddings; change it whenever the pixels change."""
_MULTIPLE = 32


def encoder_size(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    """Size at which an image is encoded: longest side = image_size, both sides rounded to multiples of 32.

    The image is squeezed to it, never padded, so fractions of the image are fractions of the encoded image.

    Args:
        size: (H, W) of the image in pixels.
        image_size: The model's `image_size` in pixels.

    Returns:
        (height, width), each a multiple of 32 and at least 32.
    """
    scale = image_size / max(size)
    height, width = (max(_MULTIPLE, round(side * scale / _MULTIPLE) * _MULTIPLE) for side in size)
    return height, width


def image_to_input(model: InteractiveModel, image: NDArray[np.uint8]) -> Tensor:
    """Make the input of `model.encode` from a whole image.

    Args:
        model: A model with cut "image".
        image: HWC uint8 RGB, in the catalogue's pixel space (EXIF orientation applied).

    Returns:
        (1, 3, H, W) float32 in [0, 1] on the CPU, H and W as `encoder_size` says; resized by area where it shrinks,
        bilinearly where it grows.

    Raises:
        ValueError: The model has cut "crop" (it never sees the whole image), or the image is not HWC uint8 RGB.
    """
    if model.cut != "image":
        raise ValueError(f"Model {model.model_id!r} has cut {model.cut!r}: it encodes ZoomIn crops, not whole images.")
    check_image(image)
    height, width = encoder_size((image.shape[0], image.shape[1]), model.image_size)
    shrinks = height * width < image.shape[0] * image.shape[1]
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return pixels_to_tensor(resized)


def pixels_to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """HWC uint8 to (1, 3, H, W) float32 in [0, 1]."""
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return torch.from_numpy(planes).float().div_(255.0)[None]


def check_image(image: NDArray[np.uint8]) -> None:
    """Refuse anything but a non-empty HWC uint8 RGB array.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(image, np.ndarray):
        raise ValueError(f"Image of type {type(image).__name__}: expected an array, HWC uint8 RGB (np.asarray).")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"Image of shape {image.shape} and type {image.dtype}: expected HWC uint8 RGB.")
