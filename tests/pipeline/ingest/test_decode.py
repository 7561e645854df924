"""Image bytes to pixels: hostile files, and one pixel space."""

import contextlib
import hashlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from pipeline.ingest.decode import decode_image, read_image, read_image_bytes
from schemas.errors import BadImageError, CorruptDataError
from schemas.predictions import ImageRef
from tests.peaks import at_most
from tests.pipeline.ingest.pictures import encoded, scene


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with_size(width: int, height: int) -> bytes:
    """A PNG whose header promises a size that its data does not hold."""

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"just some text, not an image", "Neither a JPEG nor a PNG"),
        (b"\x89PNG\r\n\x1a\n", "header|Neither"),
        (b"\xff\xd8\xff", "header|Neither"),
        (encoded(scene(0), "GIF"), "Neither"),
        (encoded(scene(0), "TIFF"), "Neither"),
        (encoded(scene(0), "BMP"), "Neither"),
        (encoded(scene(0), "PNG")[:200], "broken or cut off"),
        (encoded(scene(0), "JPEG")[:-200], "broken or cut off"),
        (encoded(scene(0), "JPEG")[:300], "header|broken or cut off|Neither"),
        (png_with_size(50_000, 50_000), "more than the limit"),
        (png_with_size(2**31 - 1, 1), "more than the limit"),
        (png_with_size(0, 7), "header|Neither"),
        (png_with_size(20, 20), "broken or cut off"),
    ],
)
def test_hostile_files_are_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=reason):
        decode_image(data)


@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.9])
def test_a_damaged_png_is_refused(part: float) -> None:
    data = bytearray(encoded(scene(0)))
    data[round(len(data) * part)] ^= 0xFF
    with pytest.raises(BadImageError):
        decode_image(bytes(data))


@given(st.binary(max_size=60), st.integers(0, 400), st.sampled_from(["PNG", "JPEG"]))
def test_any_damage_gives_pixels_or_a_named_error(noise: bytes, start: int, format: str) -> None:
    data = bytearray(encoded(scene(0), format))
    data[start : start + len(noise)] = noise
    try:
        pixels, info = decode_image(bytes(data), max_pixels=100_000)
    except BadImageError:
        return
    assert pixels.shape == (info.height, info.width, 3)


def packed_zeros(megabytes: int) -> bytes:
    """A thousandth of what it unpacks to."""
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(megabytes)), packer.flush()])


def bombs() -> dict[str, bytes]:
    """Small files that unpack to 300 MB, or say that they do."""
    whole, zeros = encoded(scene(0)), packed_zeros(300)
    header, rest = whole[:33], whole[33:]
    tiff = encoded(scene(0), "TIFF")
    webp = bytearray(encoded(scene(0), "WEBP"))
    webp[26:30] = b"\xff\x3f\xff\x3f"  # both sides of a lossy file
    return {
        "pixels": header + chunk(b"IDAT", zeros) + chunk(b"IEND", b""),
        "text": header + chunk(b"zTXt", b"a\0\0" + zeros) + rest,
        "late text": whole[:-12] + chunk(b"zTXt", b"a\0\0" + zeros) + whole[-12:],
        "international text": header + chunk(b"iTXt", b"a\0\1\0\0\0" + zeros) + rest,
        "profile": header + chunk(b"iCCP", b"a\0\0" + zeros) + rest,
        "length of a chunk": header + b"\x7f\xff\xff\xf0" + rest[4:],
        "second header": header + chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)) + rest,
        "sides in TIFF": tiff.replace(struct.pack("<H", 80), struct.pack("<H", 65_000)),
        "sides in WebP": bytes(webp),
    }


BOMBS = bombs()


@pytest.mark.parametrize("name", list(BOMBS))
def test_bombs_are_refused_or_harmless(name: str) -> None:
    assert len(BOMBS[name]) < 400_000
    with at_most(150), contextlib.suppress(BadImageError):
        pixels, _ = decode_image(BOMBS[name])
        assert pixels.shape == (60, 80, 3)


@settings(max_examples=200)
@given(data=st.data(), format=st.sampled_from(["PNG", "JPEG"]))
def test_flipped_bits_and_cuts_anywhere_give_pixels_or_a_named_error(data: st.DataObject, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = bytearray(encoded(scene(0), format, exif=exif.tobytes()))
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[at] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.none() | st.integers(0, len(whole)))
    try:
        pixels, info = decode_image(bytes(whole[:cut]), max_pixels=1_000_000)
    except BadImageError:
        return
    assert pixels.shape == (info.height, info.width, 3)


def test_the_pixel_limit_is_the_callers() -> None:
    data = encoded(scene(0))
    assert decode_image(data, max_pixels=60 * 80)[1].width == 80
    with pytest.raises(BadImageError, match="CLICKLOOP_MAX_IMAGE_PIXELS"):
        decode_image(data, max_pixels=60 * 80 - 1)


def test_png_pixels_are_exact_and_contiguous() -> None:
    pixels, info = decode_image(encoded(scene(3)))
    assert np.array_equal(pixels, scene(3))
    assert pixels.flags.c_contiguous and pixels.dtype == np.uint8
    assert (info.width, info.height, info.format) == (80, 60, "PNG")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
    upright = scene(1)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    data = encoded(np.ascontiguousarray(stored), format, exif=exif.tobytes(), **options)
    pixels, info = decode_image(data)
    assert (info.height, info.width, info.orientation) == (*upright.shape[:2], orientation)
    assert np.abs(pixels.astype(int) - upright).mean() < 2


def test_broken_exif_does_not_cost_the_picture() -> None:
    data = encoded(scene(0), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert decode_image(data)[1].orientation == 1


def test_grey_palette_and_alpha_become_rgb_over_white() -> None:
    grey = scene(0)[:, :, 0]
    assert np.array_equal(decode_image(encoded(grey))[0], np.repeat(grey[:, :, None], 3, 2))
    palette = io.BytesIO()
    Image.fromarray(scene(0)).quantize(16).save(palette, "PNG")
    assert np.abs(decode_image(palette.getvalue())[0].astype(int) - scene(0)).mean() < 30
    alpha = np.dstack([scene(0), np.zeros((60, 80), np.uint8)])
    alpha[:, 40:, 3] = 255
    pixels, _ = decode_image(encoded(alpha))
    assert (pixels[:, :40] == 255).all()
    assert np.array_equal(pixels[:, 40:], scene(0)[:, 40:])
    half = np.dstack([grey, np.full_like(grey, 128)])
    assert np.abs(decode_image(encoded(half))[0][:, :, 0].astype(int) - (grey * (128 / 255) + 127)).max() <= 1


def test_a_transparent_palette_colour_becomes_white() -> None:
    image = Image.new("P", (4, 2))
    image.putpalette([0, 0, 0, 200, 10, 10] + [0] * 762)
    image.putdata([0, 1, 1, 0, 0, 1, 1, 0])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    pixels, _ = decode_image(buffer.getvalue())
    assert pixels[0].tolist() == [[255] * 3, [200, 10, 10], [200, 10, 10], [255] * 3]


def test_16_bit_samples_keep_their_high_byte() -> None:
    samples = np.arange(60 * 80, dtype=np.uint16).reshape(60, 80) * 13
    pixels, _ = decode_image(encoded(samples))
    assert np.array_equal(pixels, np.repeat((samples >> 8).astype(np.uint8)[:, :, None], 3, 2))


def test_one_bit_pictures() -> None:
    bits = scene(0)[:, :, 0] > 127
    assert np.array_equal(decode_image(encoded(bits))[0][:, :, 0] == 255, bits)


def test_cmyk_jpeg_becomes_rgb() -> None:
    buffer = io.BytesIO()
    Image.fromarray(scene(0)).convert("CMYK").save(buffer, "JPEG", quality=100)
    pixels, info = decode_image(buffer.getvalue())
    assert info.format == "JPEG"
    assert np.abs(pixels.astype(int) - scene(0)).mean() < 6


def test_colour_profiles_are_ignored() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert np.array_equal(decode_image(encoded(scene(0), icc_profile=profile))[0], scene(0))


def reference(path: Path, **changes: Any) -> ImageRef:
    """The catalogue's reference of a file with an 80x60 image."""
    facts = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "uri": str(path), "width": 80, "height": 60}
    return ImageRef(**{**facts, **changes})


def test_reading_checks_the_bytes_and_the_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(scene(0)))
    ref = reference(path)
    assert np.array_equal(read_image(ref), scene(0))
    with pytest.raises(CorruptDataError, match="80x60"):
        read_image(reference(path, width=60, height=80))
    path.write_bytes(encoded(scene(1)))
    with pytest.raises(CorruptDataError, match="changed since"):
        read_image_bytes(ref)
    path.unlink()
    with pytest.raises(BadImageError, match="gone"):
        read_image(ref)
