"""Masks for the wire: the bits of the bounding box, zlib-compressed. Bounded on the way in."""

import zlib

import numpy as np
from numpy.typing import NDArray

from pipeline.masks.boxes import mask_box_xyxy
from pipeline.masks.rle import check_size
from schemas.errors import BadInputError
from schemas.masks import PackedMask


def pack(mask: NDArray[np.bool_]) -> PackedMask:
    """Encode a bool (H, W) mask in a few kB and a tenth of a millisecond.

    Changes from row to row are zeros with lone bits between: zlib's run-length strategy takes a third less than its
    default one, in less time.
    """
    return pack_box(mask, mask_box_xyxy(mask))


def pack_box(mask: NDArray[np.bool_], box: tuple[int, int, int, int]) -> PackedMask:
    """The same for a mask whose bounding box (x0, y0, x1, y1) is known."""
    x0, y0, x1, y1 = box
    inside = mask[y0:y1, x0:x1]
    changes = inside.copy()
    changes[1:] ^= inside[:-1]
    deflater = zlib.compressobj(1, strategy=zlib.Z_RLE)
    bits = deflater.compress(np.packbits(changes).data) + deflater.flush()
    return PackedMask(size=mask.shape, box=box, rows="xor", bits=bits)


def unpack(packed: PackedMask) -> NDArray[np.bool_]:
    """Decode to a bool (H, W) mask.

    Raises:
        BadInputError: The box leaves the image, or the bits are corrupt or of another length than the box needs.
        TooLargeError: The size is over the limit.
    """
    height, width = check_size(packed.size)
    x0, y0, x1, y1 = packed.box
    if not (0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height):
        raise BadInputError(f"Box {packed.box} (x0, y0, x1, y1) leaves the mask of size {height}x{width}.")
    area = (y1 - y0) * (x1 - x0)
    expected = (area + 7) // 8
    bits = _inflate(packed.bits, expected)
    mask = np.zeros((height, width), np.bool_)
    if area:
        box = np.unpackbits(np.frombuffer(bits, np.uint8), count=area).reshape(y1 - y0, x1 - x0)
        mask[y0:y1, x0:x1] = (np.bitwise_xor.accumulate(box, 0) if packed.rows == "xor" else box).view(np.bool_)
    return mask


def _inflate(data: bytes, expected: int) -> bytes:
    """Decompress at most one byte more than expected, so that a small bomb can't take much memory."""
    inflater = zlib.decompressobj()
    try:
        bits = inflater.decompress(data, expected + 1)
    except zlib.error as error:
        raise BadInputError(f"The bits of a packed mask are not zlib data: {error}.") from error
    if len(bits) != expected or not inflater.eof:
        raise BadInputError(f"The bits of a packed mask do not hold the {expected} bytes that its box needs.")
    return bits
