"""The name of a mask's pixels: equal masks have equal digests on every machine. Knows nothing about encodings."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipeline.masks.boxes import mask_box_xyxy


def mask_digest(mask: NDArray[np.bool_]) -> str:
    """sha256 (hex) of "{height}x{width}:{x0},{y0},{x1},{y1}:" and the bits of that bounding box.

    Only the box is read: what lies outside is False by definition, and most masks are a small part of their image.

    Args:
        mask: bool (H, W); the box is half-open, zeros for an empty mask; the bits are `numpy.packbits` of the box in
            row-major order, one flat run without row padding.
    """
    box = mask_box_xyxy(mask)
    return box_digest(mask, box)


def box_digest(mask: NDArray[np.bool_], box: tuple[int, int, int, int]) -> str:
    """The same for a mask whose bounding box (x0, y0, x1, y1) is known."""
    x0, y0, x1, y1 = box
    return inside_digest(mask[y0:y1, x0:x1], box, mask.shape)


def inside_digest(inside: NDArray[np.bool_], box: tuple[int, int, int, int], size: tuple[int, ...]) -> str:
    """The same for a mask of which only the pixels inside its box are there, and its (height, width)."""
    x0, y0, x1, y1 = box
    digest = hashlib.sha256(f"{size[0]}x{size[1]}:{x0},{y0},{x1},{y1}:".encode())
    digest.update(np.packbits(inside).data)
    return digest.hexdigest()
