"""The name of a mask's pixels: equal masks have equal digests on every machine. Knows nothing about encodings."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def mask_digest(mask: NDArray[np.bool_]) -> str:
    """sha256 (hex) of "{height}x{width}:" and the mask's bits.

    Args:
        mask: bool (H, W); the bits are `numpy.packbits` in row-major order, one flat run without row padding.
    """
    digest = hashlib.sha256(f"{mask.shape[0]}x{mask.shape[1]}:".encode())
    digest.update(np.packbits(mask).data)
    return digest.hexdigest()
