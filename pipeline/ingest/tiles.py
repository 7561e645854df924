"""A large image in tiles, so that a browser fetches what it shows of it and no more.

Level 0 is the image itself, each further level half of the one before (rounded up), as in any image pyramid.
"""

import io
from collections.abc import Mapping
from typing import TypeAlias

from PIL import Image

from pipeline.ingest.decode import MAX_PIXELS, decode_image
from schemas.predictions import Window

TILE_PX = 1024
"""Side of a tile; those at the right and lower edge are smaller."""
MAX_LEVEL = 8
_QUALITY = 92

Tiles: TypeAlias = Mapping[tuple[int, int], bytes]
"""JPEG files by (column, row)."""


def level_size(width: int, height: int, level: int) -> tuple[int, int]:
    """(width, height) of an image at a level, in pixels."""
    return -(-width >> level), -(-height >> level)


def cut_tiles(
    data: bytes, size: tuple[int, int], level: int, max_pixels: int = MAX_PIXELS, window: Window | None = None
) -> Tiles:
    """All tiles of a level.

    Args:
        data: The image file.
        size: (width, height) of the image, upright.
        level: 0 to `MAX_LEVEL`.
        max_pixels: See `decode_image`.
        window: See `decode_image`.

    Returns:
        JPEGs (quality 92, colours not subsampled) of at most `TILE_PX` a side.

    Raises:
        BadImageError: The file is no image that is read.
    """
    wanted = level_size(*size, level)
    pixels, _ = decode_image(data, max_pixels, at_least=min(wanted) if level else None, window=window)
    image = Image.fromarray(pixels)
    if image.size != wanted:
        image = image.resize(wanted, Image.Resampling.BOX)
    return {
        (left // TILE_PX, top // TILE_PX): _jpeg(image, left, top)
        for top in range(0, image.height, TILE_PX)
        for left in range(0, image.width, TILE_PX)
    }


def _jpeg(image: Image.Image, left: int, top: int) -> bytes:
    right, bottom = min(left + TILE_PX, image.width), min(top + TILE_PX, image.height)
    out = io.BytesIO()
    image.crop((left, top, right, bottom)).save(out, "JPEG", quality=_QUALITY, subsampling=0)
    return out.getvalue()
