"""Pictures for browsers of what they cannot show: TIFF, BMP, 16 bits, CMYK, and what they would not turn upright."""

import io

from PIL import Image

from pipeline.ingest.decode import MAX_PIXELS, decode_image
from schemas.predictions import Window

_QUALITY = 95
_MAX_JPEG_SIDE = 65_500


def rendition(data: bytes, max_pixels: int = MAX_PIXELS, window: Window | None = None) -> tuple[bytes, str]:
    """An image file as models see it, pixel for pixel in the same place: its bytes and their media type.

    A JPEG (quality 95, colours not subsampled), which takes a fraction of a PNG's time and bytes; a PNG where a side is
    longer than a JPEG's may be. Arguments as of `decode_image`.

    Raises:
        BadImageError: The file is no image that is read.
    """
    pixels, _ = decode_image(data, max_pixels, window=window)
    image, out = Image.fromarray(pixels), io.BytesIO()
    if max(image.size) > _MAX_JPEG_SIDE:
        image.save(out, "PNG", compress_level=1)
        return out.getvalue(), "image/png"
    image.save(out, "JPEG", quality=_QUALITY, subsampling=0)
    return out.getvalue(), "image/jpeg"
