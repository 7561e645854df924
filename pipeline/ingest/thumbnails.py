"""Small pictures of images, as JPEG. Knows no masks."""

import io

from PIL import Image

from pipeline.ingest.decode import MAX_PIXELS, decode_image
from pipeline.masks.previews import preview_size
from schemas.predictions import Window

_QUALITY = 85


def thumbnail(data: bytes, longest: int, max_pixels: int = MAX_PIXELS, window: Window | None = None) -> bytes:
    """A JPEG of an image file (upright, RGB, see `decode_image`) whose longest side is at most `longest` pixels.

    Raises:
        BadImageError: The file is no image that we can read.
    """
    pixels, info = decode_image(data, max_pixels, at_least=longest, window=window)
    height, width = preview_size(info.height, info.width, longest)
    image = Image.fromarray(pixels)
    out = io.BytesIO()
    image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0).save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()
