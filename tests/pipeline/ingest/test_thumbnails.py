"""Small pictures of images."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.ingest.thumbnails import thumbnail
from schemas.errors import BadImageError


def _file(format: str, size: tuple[int, int] = (800, 600), **options: object) -> bytes:
    """A picture, red on the left and blue on the right."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2, 0] = pixels[:, size[0] // 2 :, 2] = 250
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, **options)  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_the_longest_side_is_bounded_and_the_picture_the_same(format: str) -> None:
    small = Image.open(io.BytesIO(thumbnail(_file(format), 200)))
    assert (small.format, small.size) == ("JPEG", (200, 150))
    left, right = np.asarray(small)[75, [20, 180]].astype(int)
    assert left[0] > 200 > 60 > left[2] and right[2] > 200 > 60 > right[0]


def test_it_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    small = Image.open(io.BytesIO(thumbnail(_file("JPEG", exif=exif), 200)))
    assert small.size == (150, 200)
    assert np.asarray(small)[20, 75][0] > 200


def test_small_images_do_not_grow() -> None:
    assert Image.open(io.BytesIO(thumbnail(_file("PNG", (40, 30)), 200))).size == (40, 30)


def test_a_broken_file_is_said_to_be_one() -> None:
    with pytest.raises(BadImageError):
        thumbnail(_file("PNG")[:500], 200)
