"""Image bytes to pixels: hostile files, and one pixel space."""

import contextlib
import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pipeline.ingest import decode
from pipeline.ingest.decode import browser_type, decode_image, read_image, read_image_bytes
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


def pages(format: str) -> bytes:
    """A file of two pictures."""
    buffer = io.BytesIO()
    Image.fromarray(scene(0)).save(buffer, format, save_all=True, append_images=[Image.fromarray(scene(1))])
    return buffer.getvalue()


def tiff(
    order: str, samples: NDArray[Any], per_pixel: int = 1, *, is_deflated: bool = False, photometric: int = 1
) -> bytes:
    """A TIFF written by hand: "<" or ">" order, samples (height, width * per_pixel)."""
    body = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    body = zlib.compress(body) if is_deflated else body
    sort = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    facts = [
        (256, samples.shape[1] // per_pixel),
        (257, samples.shape[0]),
        (258, samples.dtype.itemsize * 8),
        (259, 8 if is_deflated else 1),
        (262, photometric),
        (273, 8),
        (277, per_pixel),
        (278, samples.shape[0]),
        (279, len(body)),
        (339, sort),
    ]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in facts)
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(body))
    return start + body + struct.pack(f"{order}H", len(facts)) + entries + bytes(4)


def empty_second_page() -> bytes:
    """A TIFF that names a second page, of which nothing is said."""
    one = tiff("<", np.zeros((4, 20), np.uint8))
    return one[:-4] + struct.pack("<I", len(one)) + bytes(6)


def five_channels() -> bytes:
    """A satellite's picture."""
    return tiff("<", np.zeros((4, 20), np.uint16), 5)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"just some text, not an image", "Neither a JPEG, PNG, WebP, TIFF nor BMP"),
        (b"\x89PNG\r\n\x1a\n", "header|Neither"),
        (b"\xff\xd8\xff", "header|Neither"),
        (encoded(scene(0), "GIF"), "Neither"),
        (encoded(scene(0), "PPM"), "Neither"),
        (b"II*\0", "TIFF file whose header is broken"),
        (encoded(scene(0), "TIFF")[:-200], "TIFF file is broken or cut off"),
        (encoded(scene(0), "TIFF", compression="tiff_lzw")[:-400], "TIFF file"),
        (encoded(scene(0), "BMP")[:-200], "BMP file is broken or cut off"),
        (encoded(scene(0), "WEBP")[:-200], "header|broken or cut off"),
        (pages("TIFF"), "several pages or frames"),
        (pages("WEBP"), "several pages or frames"),
        (pages("PNG"), "several pages or frames"),
        (empty_second_page(), "header cannot be read: Missing dimensions"),
        (five_channels(), "samples are of a kind that is not read"),
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


@given(st.binary(max_size=60), st.integers(0, 400), st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP"]))
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
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
    upright = scene(1)
    stored = turned(upright, orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    data = encoded(stored, format, exif=exif.tobytes(), **options)
    pixels, info = decode_image(data)
    assert (info.height, info.width, info.orientation) == (*upright.shape[:2], orientation)
    assert np.abs(pixels.astype(int) - upright).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_is_upright(orientation: int, compression: str | None) -> None:
    data = encoded(turned(scene(1), orientation), "TIFF", tiffinfo={0x0112: orientation}, compression=compression)
    pixels, info = decode_image(data)
    assert np.array_equal(pixels, scene(1))
    assert (info.height, info.width) == (60, 80)


def turned(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """How a camera that held its sensor so stores a picture."""
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
    return np.ascontiguousarray(stored)


def exif(order: str, kind: int, orientation: int) -> bytes:
    """An EXIF block with an orientation as SHORT (3) or LONG (4)."""
    value = struct.pack(f"{order}HH", orientation, 0) if kind == 3 else struct.pack(f"{order}I", orientation)
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, 1)
    return b"Exif\0\0" + start + struct.pack(f"{order}HHI", 0x0112, kind, 1) + value + bytes(4)


TURNED_BY_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize(
    ("facts", "orientation", "kind"),
    [
        (dict[str, bytes](), 1, "image/jpeg"),
        ({"exif": exif("<", 3, 6)}, 6, "image/jpeg"),
        ({"exif": exif(">", 3, 8)}, 8, "image/jpeg"),
        ({"exif": exif("<", 3, 1), "xmp": TURNED_BY_XMP}, 1, "image/jpeg"),
        ({"exif": exif("<", 4, 6)}, 6, None),
        ({"exif": exif(">", 4, 6)}, 6, None),
        ({"xmp": TURNED_BY_XMP}, 6, None),
    ],
)
def test_browsers_get_a_jpeg_that_they_turn_as_we_do(facts: dict[str, Any], orientation: int, kind: Any) -> None:
    """As Chromium does: only by EXIF, and only by a SHORT."""
    data = encoded(scene(0), "JPEG", **facts)
    assert decode_image(data)[1].orientation == orientation
    assert browser_type(data) == kind


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


RAMP = np.arange(60 * 80).reshape(60, 80)


@pytest.mark.parametrize("is_deflated", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "samples",
    [
        (RAMP + 200).astype(np.uint16),
        (RAMP * 13).astype(np.uint16),
        (RAMP - 1000).astype(np.int16),
        (RAMP * 100_000).astype(np.int32),
        (RAMP / 7e6 - 2e-4).astype(np.float32),
    ],
)
def test_grey_tiff_is_windowed_by_its_own_least_and_greatest_sample(
    order: str, samples: NDArray[Any], is_deflated: bool
) -> None:
    pixels, info = decode_image(tiff(order, samples, is_deflated=is_deflated))
    low, high = float(samples.min()), float(samples.max())
    exact = (samples.astype(float) - low) / (high - low)
    assert info.format == "TIFF"
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert np.abs(pixels[..., 0] - exact * 255).max() <= 0.51


@pytest.mark.parametrize("write", [lambda samples: tiff("<", samples), encoded])
def test_a_campaigns_window_is_that_of_every_grey_image_of_more_than_8_bits(write: Callable[[Any], bytes]) -> None:
    samples = (RAMP * 13).astype(np.uint16)
    pixels, _ = decode_image(write(samples), window=(1000.0, 30_000.0))
    exact = ((samples.astype(float) - 1000) / 29_000).clip(0, 1)
    assert np.abs(pixels[..., 0] - exact * 255).max() <= 0.51
    for other in (encoded(scene(0)), encoded(scene(0)[:, :, 0])):
        assert np.array_equal(decode_image(other, window=(1000.0, 30_000.0))[0], decode_image(other)[0])


def test_what_is_no_number_does_not_spoil_the_window() -> None:
    samples = np.linspace(1, 2, 4800, dtype=np.float32).reshape(60, 80)
    samples[1, :4] = [np.nan, np.inf, -np.inf, 1.5]
    pixels, _ = decode_image(tiff("<", samples))
    assert pixels[1, :4, 0].tolist() == [0, 255, 0, 128]
    assert (pixels[0, 0, 0], pixels[-1, -1, 0]) == (0, 255)
    for same in (np.full((60, 80), 7, np.float32), np.full((60, 80), np.nan, np.float32)):
        assert not decode_image(tiff("<", same))[0].any()


def test_a_picture_of_several_bands_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = (RAMP * 3).astype(np.uint16)
    files = [tiff("<", samples), encoded(np.dstack([scene(0), scene(1)[:, :, 0]])), encoded(samples)]
    whole = [decode_image(data)[0] for data in files]
    monkeypatch.setattr(decode, "_BAND_PIXELS", 7 * 80)
    for data, pixels in zip(files, whole, strict=True):
        assert np.array_equal(decode_image(data)[0], pixels)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_tiff_modes(mode: str) -> None:
    image = Image.fromarray(scene(0)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    assert np.array_equal(decode_image(buffer.getvalue())[0], np.asarray(image.convert("RGB")))


def test_16_bit_colour_keeps_its_high_byte() -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (6, 8 * 3)).astype(np.uint16)
    pixels, _ = decode_image(tiff("<", samples, 3, photometric=2))
    assert np.array_equal(pixels, (samples >> 8).astype(np.uint8).reshape(6, 8, 3))


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_colour_in_planes_is_as_in_one_plane(order: str) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (3, 6, 8)).astype(np.uint16)
    body = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    after = 8 + len(body)  # three numbers each: bits, where planes begin, their lengths
    lists = struct.pack(f"{order}9I", 16, 16, 16, 8, 8 + 96, 8 + 192, 96, 96, 96)
    facts = [(256, 1, 8), (257, 1, 6), (258, 3, after), (259, 1, 1), (262, 1, 2), (273, 3, after + 12), (277, 1, 3)]
    facts += [(278, 1, 6), (279, 3, after + 24), (284, 1, 2)]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, count, value) for tag, count, value in facts)
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", after + len(lists))
    pixels, _ = decode_image(start + body + lists + struct.pack(f"{order}H", len(facts)) + entries + bytes(4))
    assert np.array_equal(pixels, (samples >> 8).astype(np.uint8).transpose(1, 2, 0))


@pytest.mark.parametrize("samples", [RAMP.astype(np.uint8), RAMP.astype(np.uint16), RAMP.astype(np.float32)])
def test_white_is_zero_whatever_the_samples_are(samples: NDArray[Any]) -> None:
    pixels, _ = decode_image(tiff("<", samples, photometric=0))
    exact = 255 * (1 - samples.astype(float) / samples.max())
    assert np.abs(pixels[..., 0] - exact).max() <= 0.51


def test_webp_and_bmp() -> None:
    pixels, info = decode_image(encoded(scene(0), "WEBP", lossless=True))
    assert np.array_equal(pixels, scene(0)) and info.format == "WEBP"
    assert np.abs(decode_image(encoded(scene(0), "WEBP", quality=90))[0].astype(int) - scene(0)).mean() < 6
    alpha = np.dstack([scene(0), np.full((60, 80), 0, np.uint8)])
    assert (decode_image(encoded(alpha, "WEBP", lossless=True, exact=True))[0] == 255).all()
    pixels, info = decode_image(encoded(scene(0), "BMP"))
    assert np.array_equal(pixels, scene(0)) and info.format == "BMP"


def test_progressive_jpeg() -> None:
    plain, progressive = (encoded(scene(0), "JPEG", quality=90, progressive=way) for way in (False, True))
    assert plain != progressive
    assert np.array_equal(decode_image(plain)[0], decode_image(progressive)[0])


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


@pytest.mark.s3
def test_an_image_is_not_to_blame_for_its_bucket(s3_bucket: str) -> None:
    name, s3 = s3_bucket.removeprefix("s3://"), boto3.client("s3")
    ref = ImageRef(sha256="0" * 64, uri=f"{s3_bucket}/a/b.png", width=80, height=60)
    with pytest.raises(BadImageError, match="gone since"):
        read_image_bytes(ref)
    s3.delete_bucket(Bucket=name)
    with pytest.raises(FileNotFoundError):
        read_image_bytes(ref)
    s3.create_bucket(Bucket=name)
