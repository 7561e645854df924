"""What a browser is given of an image: always something that it shows, in the pixel space of the masks."""

import io
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import update

from pipeline.ingest.decode import decode_image
from pipeline.ingest.renditions import rendition
from schemas.predictions import ImageRef
from schemas.tables import Campaign
from tests.pipeline.ingest.pictures import encoded, scene
from tests.workers.api.gateway import CAMPAIGN, Gateway, code_of, gateway_in, put
from workers.api.routes import images


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_in(tmp_path_factory.mktemp("images"), images=1) as running:
        yield running


def cmyk() -> bytes:
    """A JPEG for printers."""
    buffer = io.BytesIO()
    Image.fromarray(scene(4)).convert("CMYK").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def lying(format: str) -> bytes:
    """A picture to be turned by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(scene(5), format, exif=exif.tobytes())


GREY = (scene(6)[:, :, 0].astype(np.uint16) << 4) + 100
"""12 bits."""


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("colour.tif", encoded(scene(1), "TIFF", compression="tiff_lzw")),
        ("grey16.tif", encoded(GREY, "TIFF")),
        ("float.tif", encoded(GREY.astype(np.float32) / 7e3, "TIFF")),
        ("grey16.png", encoded(GREY << 4)),
        ("picture.bmp", encoded(scene(2), "BMP")),
        ("cmyk.jpg", cmyk()),
        ("lying.png", lying("PNG")),
        ("lying.webp", lying("WEBP")),
        ("lying.tif", encoded(scene(7), "TIFF", tiffinfo={0x0112: 6})),
    ],
)
def test_what_browsers_cannot_show_is_rendered_in_place(
    gateway: Gateway, tmp_path: Path, name: str, data: bytes
) -> None:
    image_id = put(gateway, tmp_path, name, data)
    with gateway.http() as http:
        answer = http.get(f"/api/images/{image_id}/content")
        small = http.get(f"/api/images/{image_id}/thumbnail", params={"size": 64})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    shown, seen = np.asarray(Image.open(io.BytesIO(answer.content))), decode_image(data)[0]
    assert shown.shape == seen.shape
    assert np.abs(shown.astype(int) - seen).mean() < 2
    assert (small.status_code, max(Image.open(io.BytesIO(small.content)).size)) == (200, 64)


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.jpg", encoded(scene(8), "JPEG", progressive=True), "image/jpeg"),
        ("turned.jpg", lying("JPEG"), "image/jpeg"),
        ("grey.jpg", encoded(scene(8)[:, :, 0], "JPEG"), "image/jpeg"),
        ("a.png", encoded(scene(8)), "image/png"),
        ("a.webp", encoded(scene(8), "WEBP"), "image/webp"),
    ],
)
def test_what_browsers_show_is_the_file(gateway: Gateway, tmp_path: Path, name: str, data: bytes, kind: str) -> None:
    image_id = put(gateway, tmp_path, name, data)
    with gateway.http() as http:
        answer = http.get(f"/api/images/{image_id}/content")
    assert (answer.headers["content-type"], answer.content) == (kind, data)


def test_a_campaigns_window_is_what_the_browser_sees(tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=1) as gateway:
        with gateway.services.database.begin() as conn:
            conn.execute(update(Campaign).values(settings={"window": [0, 200]}))
        image_id = put(gateway, tmp_path, "grey.png", encoded(GREY))
        with gateway.http() as http:
            for what in ("content", "thumbnail"):
                shown = np.asarray(Image.open(io.BytesIO(http.get(f"/api/images/{image_id}/{what}").content)))
                expected = decode_image(encoded(GREY), window=(0, 200))[0]
                assert np.abs(shown.astype(int) - expected).mean() < 4
                assert np.abs(shown.astype(int) - decode_image(encoded(GREY))[0]).mean() > 40


def test_a_rendition_is_kept(gateway: Gateway, tmp_path: Path) -> None:
    image_id = put(gateway, tmp_path, "kept.tif", encoded(scene(9), "TIFF"))
    with gateway.http() as http:
        first = http.get(f"/api/images/{image_id}/content")
        (tmp_path / "kept.tif").unlink()
        again = http.get(f"/api/images/{image_id}/content")
        same = http.get(f"/api/images/{image_id}/content", headers={"If-None-Match": first.headers["etag"]})
    assert first.content == again.content
    assert same.status_code == 304


@pytest.mark.parametrize("what", ["content", "thumbnail"])
def test_a_file_that_has_changed_is_not_shown_under_the_old_masks(gateway: Gateway, tmp_path: Path, what: str) -> None:
    image_id = put(gateway, tmp_path, "changed.png", encoded(scene(10)))
    (tmp_path / "changed.png").write_bytes(encoded(scene(11)))
    with gateway.http() as http:
        answer = http.get(f"/api/images/{image_id}/{what}")
    assert answer.status_code == 404
    assert "has changed since it was ingested" in answer.json()["error"]["message"]


@pytest.mark.parametrize("what", ["content", "thumbnail"])
def test_a_source_that_does_not_answer_is_asked_again_later(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Not "gone", after which the page offers to skip the image."""

    def away(ref: ImageRef) -> bytes:
        raise ConnectionError("timed out")

    image_id = put(gateway, tmp_path, "away.png", encoded(scene(12)))
    monkeypatch.setattr(images, "read_image_bytes", away)
    with gateway.http() as http:
        answer = http.get(f"/api/images/{image_id}/{what}")
    assert (answer.status_code, code_of(answer)) == (503, "busy") and answer.headers["retry-after"]


def test_a_side_that_no_jpeg_has_is_rendered_as_png() -> None:
    wide: Any = np.zeros((1, 70_000, 3), np.uint8)
    data, kind = rendition(encoded(wide, "BMP"))
    assert kind == "image/png"
    assert Image.open(io.BytesIO(data)).size == (70_000, 1)


def test_tiles_are_the_image_in_parts(gateway: Gateway, tmp_path: Path) -> None:
    picture = np.asarray(Image.fromarray(scene(9)).resize((2100, 1300)))
    image_id = put(gateway, tmp_path, "large.png", encoded(picture))
    with gateway.http() as http:
        for level in (0, 1):
            width, height = -(-2100 >> level), -(-1300 >> level)
            shown = Image.new("RGB", (width, height))
            for column in range(-(-width // 1024)):
                for row in range(-(-height // 1024)):
                    part = http.get(f"/api/images/{image_id}/tiles/{level}/{column}/{row}")
                    assert (part.status_code, part.headers["content-type"]) == (200, "image/jpeg")
                    shown.paste(Image.open(io.BytesIO(part.content)), (column * 1024, row * 1024))
            expected = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))
            assert np.abs(np.asarray(shown).astype(int) - expected).mean() < 2
        again = http.get(f"/api/images/{image_id}/tiles/0/0/0", headers={"If-None-Match": part.headers["etag"]})
        assert again.status_code == 200, "another tile has another tag"
        etag = {"If-None-Match": again.headers["etag"]}
        assert http.get(f"/api/images/{image_id}/tiles/0/0/0", headers=etag).status_code == 304
        for place in ("0/3/0", "0/0/2", "1/2/0"):
            assert http.get(f"/api/images/{image_id}/tiles/{place}").status_code == 404
        for place in ("9/0/0", "-1/0/0", "0/-1/0", "0/x/0", "0/0/99999999999"):
            assert http.get(f"/api/images/{image_id}/tiles/{place}").status_code == 422


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux is asked")
def test_the_memory_of_large_images_is_given_back(gateway: Gateway, tmp_path: Path) -> None:
    """Each thread's heap kept what its image had taken, above the pictures that are kept."""
    for number in range(2):
        out = io.BytesIO()
        Image.new("RGB", (6000, 4000), (number, 90, 90)).save(out, "PNG", compress_level=1)
        put(gateway, tmp_path, f"large{number}.png", out.getvalue())
    with gateway.http() as http:
        listed = [image["id"] for image in http.get(f"/api/campaigns/{CAMPAIGN}/images").json()["results"][-2:]]
        paths = [
            f"/api/images/{image}/{what}"
            for image in listed
            for what in ("tiles/0/0/0", "tiles/1/0/0", "thumbnail?size=1600")
        ]
        before = resident_mb()
        with ThreadPoolExecutor(len(paths)) as pool:
            assert {answer.status_code for answer in pool.map(http.get, paths)} == {200}
    assert resident_mb() - before < 100


def test_large_images_are_decoded_one_at_a_time(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether for a thumbnail or for tiles: each takes about 8 bytes a pixel."""
    at_once: list[int] = []
    running: set[object] = set()

    def draw(*_args: Any) -> Any:
        one = object()
        running.add(one)
        at_once.append(len(running))
        time.sleep(0.1)
        running.remove(one)
        return b"jpeg"

    out = io.BytesIO()
    Image.new("RGB", (5000, 2500)).save(out, "PNG", compress_level=1)
    path = f"/api/images/{put(gateway, tmp_path, 'one-of-many.png', out.getvalue())}"
    monkeypatch.setattr(images, "thumbnail", draw)
    monkeypatch.setattr(images, "cut_tiles", lambda *args: {(0, 0): draw(args)})
    paths = [f"{path}/{what}" for what in ("thumbnail?size=1600", "thumbnail?size=320", "tiles/0/0/0", "tiles/1/0/0")]
    with gateway.http() as http, ThreadPoolExecutor(4) as pool:
        assert {answer.status_code for answer in pool.map(http.get, paths)} == {200}
    assert at_once == [1, 1, 1, 1]


def resident_mb() -> float:
    """Memory of this process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024
