"""How a mask is written down: COCO run-length encoding and boxes. Knows nothing about arrays."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Rle(BaseModel):
    """COCO compressed run-length encoding, column-major.

    Attributes:
        size: (height, width) in pixels.
        counts: The compressed runs as ASCII, as pycocotools writes them.
    """

    model_config = ConfigDict(frozen=True)

    size: tuple[int, int]
    counts: str = Field(max_length=8_000_000)


class PackedMask(BaseModel):
    """A mask for the wire: the bits of its bounding box, zlib-compressed; everything outside is False.

    Attributes:
        size: (height, width) of the image in pixels.
        box: Bounding box (x0, y0, x1, y1), half-open, in pixels; (0, 0, 0, 0) when the mask is empty.
        rows: What the bits say of a pixel: "plain": inside; "xor": other than the pixel above (the row above the first
            is outside). A mask's rows are much alike, so the latter takes about half the bytes.
        bits: zlib of `numpy.packbits` over the box in row-major order (big-endian bits, one flat run without row
            padding), base64 in JSON.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    size: tuple[int, int]
    box: tuple[int, int, int, int]
    rows: Literal["plain", "xor"] = "plain"
    bits: bytes
