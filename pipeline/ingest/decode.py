"""Image bytes to pixels: one decoder and one pixel space for the whole product.

Pixels are RGB after EXIF orientation; alpha is laid over white; 16-bit samples keep their high byte; colour profiles
are ignored. JPEG and PNG, recognised by content, whatever the name says. Knows nothing about models.
"""

import hashlib
import io
import logging
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from pipeline.storage.files import open_storage, read_bytes
from schemas.errors import BadImageError, CorruptDataError
from schemas.predictions import ImageRef

logger = logging.getLogger(__name__)

DECODER = f"pillow-{PIL.__version__.split('.')[0]}/rgb-white-v1"
"""Decoder and version, part of the key of stored embeddings."""
FORMATS = ("JPEG", "PNG")
MAX_PIXELS = 120_000_000
"""The default of `Settings.max_image_pixels`."""

Image.MAX_IMAGE_PIXELS = None  # the limit is checked here, against the header, before memory is taken

BROKEN = (OSError, SyntaxError, ValueError, KeyError, IndexError, EOFError, struct.error, zlib.error, OverflowError)
"""What Pillow raises on broken files."""
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class ImageInfo:
    """What an image file says of itself.

    Attributes:
        width: Pixels after EXIF orientation.
        height: Pixels after EXIF orientation.
        format: "JPEG" or "PNG".
        orientation: EXIF orientation, 1 to 8.
    """

    width: int
    height: int
    format: str
    orientation: int


def decode_image(
    data: bytes, max_pixels: int = MAX_PIXELS, *, at_least: int | None = None
) -> tuple[NDArray[np.uint8], ImageInfo]:
    """Decode an image.

    Args:
        data: The file's bytes.
        max_pixels: Larger images are refused by their header.
        at_least: Sides of so many pixels are enough: a large JPEG is then decoded at 1/2, 1/4 or 1/8 of its size, in a
            fraction of the time. None: the whole image.

    Returns:
        HWC uint8 RGB, C-contiguous, and what the file says of itself.

    Raises:
        BadImageError: Empty, neither JPEG nor PNG, over the limit, or broken or cut off.
    """
    image = _open(data, max_pixels)
    format = "PNG" if image.format == "PNG" else "JPEG"  # a JPEG of several pictures calls itself MPO
    try:
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        image.load()  # before EXIF is asked for: a PNG's may follow its pixels
        rgb = np.asarray(_to_rgb(image))
    except BROKEN as error:
        raise BadImageError(f"The {format} file is broken or cut off: {error}. Replace the file.") from error
    except MemoryError as error:
        raise BadImageError(f"No memory to decode {image.width}x{image.height} pixels.") from error
    orientation = _orientation(image)
    pixels = np.ascontiguousarray(_orient(rgb, orientation))
    return pixels, ImageInfo(pixels.shape[1], pixels.shape[0], format, orientation)


def read_image(ref: ImageRef, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image of the catalogue: HWC uint8 RGB of exactly the catalogue's size.

    Raises:
        BadImageError: The file is gone, or cannot be decoded.
        CorruptDataError: The file's bytes are not those that were ingested.
        OSError: The storage cannot be reached (worth a retry).
    """
    pixels, info = decode_image(read_image_bytes(ref), max_pixels)
    if (info.width, info.height) != (ref.width, ref.height):
        raise CorruptDataError(
            f"{ref.uri} decodes to {info.width}x{info.height}, the catalogue says {ref.width}x{ref.height} "
            "(width x height)."
        )
    return pixels


def read_image_bytes(ref: ImageRef) -> bytes:
    """The file of an image of the catalogue, checked against its sha256.

    Raises:
        BadImageError: The file is gone.
        CorruptDataError: Its bytes are not those that were ingested.
        OSError: The storage cannot be reached (worth a retry).
    """
    fs, path = open_storage(ref.uri)
    try:
        data = read_bytes(fs, path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise BadImageError(f"{ref.uri} is gone since it was ingested. Put it back, or ingest it again.") from error
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        raise CorruptDataError(f"{ref.uri} has changed since it was ingested. Restore it, or ingest it again.")
    return data


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header only."""
    if not data:
        raise BadImageError("The file is empty (0 bytes).")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.UnidentifiedImageError as error:
        raise BadImageError("Neither a JPEG nor a PNG file, or its header is broken.") from error
    except BROKEN as error:
        raise BadImageError(f"The header cannot be read: {error}.") from error
    width, height = image.size
    if width < 1 or height < 1:
        raise BadImageError(f"The header says {width}x{height} pixels.")
    if width * height > max_pixels:
        raise BadImageError(
            f"{width}x{height} pixels (by the header) are more than the limit of {max_pixels}. "
            "Raise CLICKLOOP_MAX_IMAGE_PIXELS if the image is meant to be that large."
        )
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none or it is broken."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception as error:  # a broken EXIF block must not cost the picture, and Pillow raises many kinds
        logger.warning("ignoring a broken EXIF block: %s", error)
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """To mode RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        samples = np.asarray(image).astype(np.int64)
        return Image.fromarray((samples.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _orient(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn and mirror HWC pixels upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
