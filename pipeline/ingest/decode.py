"""Image bytes to pixels: one decoder and one pixel space for the whole product.

Pixels are RGB after EXIF orientation; alpha is laid over white; colour profiles are ignored. JPEG, PNG, WebP, TIFF and
BMP, recognised by content, whatever the name says. A file is one image: several pages or frames are refused.

Samples of more than 8 bits: colour keeps its high byte. Grey ones are linear within a window, from black to white. A
campaign may set it; else PNG keeps its high byte, too, and the window of a TIFF (integer or float), which has no such
scale, is the file's own: from its least to its greatest finite sample, the other way round where the file says that
white is zero. NaN is black.

Memory: Pillow's samples (4 bytes a pixel, or 1 for grey) and the RGB that is returned (3); the rest goes by bands.
Knows nothing about models.
"""

import hashlib
import io
import logging
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.storage.files import exists, is_local, open_storage, read_bytes
from schemas.errors import BadImageError, CorruptDataError
from schemas.predictions import ImageRef, Window

logger = logging.getLogger(__name__)

DECODER = f"pillow-{PIL.__version__.split('.')[0]}/rgb-white-v2"
"""Decoder and version, part of the key of stored embeddings: changes whenever a file's pixels would."""
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
MAX_PIXELS = 120_000_000
"""The default of `Settings.max_image_pixels`."""

Image.MAX_IMAGE_PIXELS = None  # the limit is checked here, against the header, before memory is taken

BROKEN = (
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    KeyError,
    IndexError,
    EOFError,
    struct.error,
    zlib.error,
    OverflowError,
)
"""What Pillow raises on broken files."""
_ORIENTATION_TAG = 0x0112
_BAND_PIXELS = 1 << 22
_WIDE_MODES = ("I", "F")
"""Pillow's modes, or their beginnings, of grey samples with more than 8 bits."""
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_SHORT = 3
"""The type that EXIF gives an orientation."""
_NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
"""Pillow's names of big-endian samples, and of the same in this machine's order."""


@dataclass(frozen=True)
class ImageInfo:
    """What an image file says of itself.

    Attributes:
        width: Pixels after EXIF orientation.
        height: Pixels after EXIF orientation.
        format: One of `FORMATS`.
        orientation: EXIF orientation, 1 to 8; 1 for a TIFF, which Pillow turns upright as it reads it.
    """

    width: int
    height: int
    format: str
    orientation: int


def decode_image(
    data: bytes,
    max_pixels: int = MAX_PIXELS,
    *,
    at_least: int | None = None,
    window: Window | None = None,
) -> tuple[NDArray[np.uint8], ImageInfo]:
    """Decode an image.

    Args:
        data: The file's bytes.
        max_pixels: Larger images are refused by their header.
        at_least: Sides of so many pixels are enough: a large JPEG is then decoded at 1/2, 1/4 or 1/8 of its size, in a
            fraction of the time. None: the whole image.
        window: Grey samples of more than 8 bits that become 0 and 255; None: as the module says.

    Returns:
        HWC uint8 RGB, C-contiguous, and what the file says of itself.

    Raises:
        BadImageError: Empty, of no format that is read, over the limit, of several pages, or broken or cut off.
    """
    image = _open(data, max_pixels)
    format = _format(image)
    if isinstance(image, TiffImageFile):
        image.tile = [part._replace(args=_unpacked_as(image, part)) for part in image.tile]
    try:
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        image.load()  # before EXIF is asked for: a PNG's may follow its pixels
        rgb = _rgb(image, window)
    except BROKEN as error:
        raise BadImageError(f"The {format} file is broken or cut off: {error}. Replace the file.") from error
    except MemoryError as error:
        raise BadImageError(f"No memory to decode {image.width}x{image.height} pixels.") from error
    orientation = _orientation(image)
    image.close()
    pixels = np.ascontiguousarray(_orient(rgb, orientation))
    return pixels, ImageInfo(pixels.shape[1], pixels.shape[0], format, orientation)


def read_image(ref: ImageRef, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image of the catalogue: HWC uint8 RGB of exactly the catalogue's size.

    Raises:
        BadImageError: The file is gone, or cannot be decoded.
        CorruptDataError: The file's bytes are not those that were ingested.
        OSError: The storage cannot be reached (worth a retry).
    """
    pixels, info = decode_image(read_image_bytes(ref), max_pixels, window=ref.window)
    if (info.width, info.height) != (ref.width, ref.height):
        raise CorruptDataError(
            f"{ref.uri} decodes to {info.width}x{info.height}, the catalogue says {ref.width}x{ref.height} "
            "(width x height)."
        )
    return pixels


def read_image_bytes(ref: ImageRef) -> bytes:
    """The file of an image of the catalogue, checked against its sha256.

    Raises:
        BadImageError: The file is gone, or (on a disk) may not be read.
        CorruptDataError: Its bytes are not those that were ingested.
        OSError: The storage cannot be reached (worth a retry).
        FileNotFoundError: The bucket is gone.
        PermissionError: An object store refuses the credentials.
    """
    fs, path = open_storage(ref.uri)
    try:
        data = read_bytes(fs, path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        if not is_local(fs) and not exists(fs, path.partition("/")[0]):
            raise  # all images of its bucket are gone, for no fault of this one
        raise BadImageError(f"{ref.uri} is gone since it was ingested. Put it back, or ingest it again.") from error
    except PermissionError as error:
        if not is_local(fs):
            raise
        raise BadImageError(f"{ref.uri} may not be read any more. Check its permissions.") from error
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        raise CorruptDataError(f"{ref.uri} has changed since it was ingested. Restore it, or ingest it again.")
    return data


def browser_type(data: bytes) -> str | None:
    """The media type under which browsers show a file's bytes in our pixel space; None: they do not, or not surely.

    Raises:
        BadImageError: The header cannot be read.
    """
    image = _open(data, sys.maxsize)  # nothing is decoded here
    format = _format(image)
    if format == "JPEG" and image.mode in {"L", "RGB"} and _is_turned_by_browsers(image):
        return "image/jpeg"
    has_few_bits = format == "PNG" and data[24] <= 8  # IHDR's depth
    if has_few_bits and not any(mark in data for mark in (b"eXIf", b"Raw profile type", b"tiff:Orientation")):
        return "image/png"
    if format == "WEBP" and _orientation(image) == 1:
        return "image/webp"
    return None


def _format(image: Image.Image) -> str:
    """One of `FORMATS`: a JPEG of several pictures calls itself MPO."""
    return image.format if image.format in FORMATS else "JPEG"


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header only."""
    if not data:
        raise BadImageError("The file is empty (0 bytes).")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.UnidentifiedImageError as error:
        if data.startswith(_TIFF_STARTS):
            raise BadImageError(
                "A TIFF file whose header is broken, or whose samples are of a kind that is not read. "
                "Convert it to grey of 8 or 16 bits or float, or to colour of 8 or 16 bits."
            ) from error
        raise BadImageError("Neither a JPEG, PNG, WebP, TIFF nor BMP file, or its header is broken.") from error
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
    if _has_more(image):
        raise BadImageError(f"The {image.format} file holds several pages or frames. Split it, one image a file.")
    return image


def _has_more(image: Image.Image) -> bool:
    """Whether a TIFF has a second page, or a WebP or PNG a second frame; the first is what is open afterwards."""
    if image.format in ("WEBP", "PNG"):
        return getattr(image, "n_frames", 1) > 1
    if image.format != "TIFF":
        return False
    try:
        image.seek(1)  # counting all of them would read every page's header
    except EOFError:
        return False
    except BROKEN as error:
        raise BadImageError(f"The header cannot be read: {error}.") from error
    return True


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none or it is broken."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception as error:  # a broken EXIF block must not cost the picture, and Pillow raises many kinds
        logger.warning("ignoring a broken EXIF block: %s", error)
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _is_turned_by_browsers(image: Image.Image) -> bool:
    """Whether browsers turn a JPEG upright as we do: by its EXIF block alone, and only if its entry is as EXIF wants
    it; Pillow also goes by XMP and by entries of other types."""
    orientation, exif = _orientation(image), image.info.get("exif", b"")
    entry = (_ORIENTATION_TAG, _SHORT, 1, orientation)
    return orientation == 1 or any(struct.pack(f"{order}HHIH", *entry) in exif for order in "<>")


def _unpacked_as(image: TiffImageFile, part: Any) -> tuple[Any, ...]:
    """The arguments with which a part of a TIFF is to be unpacked, where Pillow gives others, and noise comes of it.

    What libtiff unpacks it has put into this machine's order. Samples of 16 bits in planes have two bytes each.
    """
    name, *others = part.args
    if part.codec_name == "libtiff":
        name = _NATIVE.get(name, name)
    elif len(name) == 1 and image.mode in {"RGB", "RGBA", "CMYK"} and 16 in image.tag_v2[_TIFF_BITS]:
        name += ";16B" if image.tag_v2.prefix == b"MM" else ";16L"
    return name, *others


def _rgb(image: Image.Image, window: Window | None) -> NDArray[np.uint8]:
    """HWC RGB of a loaded image, band by band."""
    is_wide = image.mode.startswith(_WIDE_MODES)
    sign = 1.0
    if is_wide and window is None and isinstance(image, TiffImageFile):
        window = low, high = _window(image)
        if image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0:  # white is zero
            window, sign = (-high, -low), -1.0
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, band in _bands(image):
        rows = pixels[top : top + band.height]
        if not is_wide:
            rows[:] = np.asarray(_to_rgb(band))
        elif window is None:
            rows[:] = (np.asarray(band).astype(np.int64).clip(0, 65535) >> 8)[:, :, None]
        else:
            rows[:] = _windowed(np.asarray(band) * sign, *window)[:, :, None]
    return pixels


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, part) of an image from top to bottom, each with so many pixels that memory stays small."""
    rows = max(1, _BAND_PIXELS // image.width)
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _window(image: Image.Image) -> Window:
    """The least and the greatest finite sample; (0, 0) where there is none."""
    low, high = np.inf, -np.inf
    for _, band in _bands(image):
        samples = np.asarray(band)
        samples = samples[np.isfinite(samples)]
        if samples.size:
            low, high = min(low, float(samples.min())), max(high, float(samples.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _windowed(samples: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Samples onto 0 to 255; all the same: black."""
    if high <= low:
        return np.zeros(samples.shape, np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        parts = (samples.astype(np.float64) - low) / (high - low)
    return np.asarray(np.nan_to_num(parts, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) * 255).round().astype(np.uint8)


def _to_rgb(image: Image.Image) -> Image.Image:
    """To mode RGB, from samples of 8 bits."""
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _orient(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn and mirror HWC pixels upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
