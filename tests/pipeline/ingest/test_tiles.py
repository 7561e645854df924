"""Large images in tiles."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.ingest.decode import decode_image
from pipeline.ingest.tiles import TILE_PX, Tiles, cut_tiles, level_size
from schemas.errors import BadImageError


def _file(format: str, size: tuple[int, int], **options: object) -> bytes:
    """A smooth picture that is alike in no two corners."""
    x, y = np.meshgrid(np.linspace(0, 250, size[0]), np.linspace(0, 250, size[1]))
    out = io.BytesIO()
    pixels = np.stack([x, y, 255 - x], -1).astype(np.uint8)
    Image.fromarray(pixels).save(out, format, **options)  # type: ignore[arg-type]
    return out.getvalue()


def _joined(tiles: Tiles, size: tuple[int, int]) -> np.ndarray:
    image = Image.new("RGB", size)
    for (column, row), data in tiles.items():
        image.paste(Image.open(io.BytesIO(data)), (column * TILE_PX, row * TILE_PX))
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("level", [0, 1, 3])
def test_they_are_the_image_at_each_level(format: str, level: int) -> None:
    data, size = _file(format, (2301, 1501)), (2301, 1501)
    tiles = cut_tiles(data, size, level)
    small = level_size(*size, level)
    assert max(column for column, _ in tiles) == (small[0] - 1) // TILE_PX
    expected = np.asarray(Image.fromarray(decode_image(data)[0]).resize(small, Image.Resampling.BOX)).astype(int)
    assert np.abs(_joined(tiles, small) - expected).max() < 8


@pytest.mark.parametrize("level", [0, 2])
def test_they_are_upright(level: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _file("JPEG", (1600, 1100), exif=exif)
    pixels = decode_image(data)[0]
    assert pixels.shape == (1600, 1100, 3)
    small = level_size(1100, 1600, level)
    expected = np.asarray(Image.fromarray(pixels).resize(small, Image.Resampling.BOX)).astype(int)
    assert np.abs(_joined(cut_tiles(data, (1100, 1600), level), small) - expected).max() < 8


def test_a_broken_file_is_refused() -> None:
    with pytest.raises(BadImageError):
        cut_tiles(_file("PNG", (300, 200))[:500], (300, 200), 0)
