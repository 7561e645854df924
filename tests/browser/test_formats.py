"""Images of formats that no browser shows, labeled in a real one."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.storage.masks import current_masks
from pipeline.storage.sessions import list_sessions, session_events
from tests.browser.desk import BESIDE, CENTRE, INSIDE, SIZE, desk_at
from tests.workers.api.gateway import CAMPAIGN, Gateway, gateway_in, put

pytestmark = pytest.mark.browser


def test_a_tiff_is_displayed_and_labeled(browser: Any, tmp_path: Path) -> None:
    """16-bit grey with 12 bits used: shown by the window of its samples, a bright disc on a dark ground."""
    samples = np.full((SIZE[1], SIZE[0]), 300, np.uint16)
    cv2.circle(samples, (80, 60), 30, 4000, -1)
    path = tmp_path / "slide.tif"
    Image.fromarray(samples).save(path, "TIFF", compression="tiff_lzw")
    with gateway_in(tmp_path, images=0) as gateway:
        put(gateway, tmp_path, path.name, path.read_bytes())
        with desk_at(browser, gateway) as desk:
            desk.begin()
            assert min(desk.pixel(INSIDE)[:3]) > 240 and max(desk.pixel(BESIDE)[:3]) < 15
            edge = [desk.pixel((x, 60.0))[0] > 128 for x in (47.5, 52.5, 107.5, 112.5)]
            assert edge == [False, True, True, False]  # the disc is where the samples have it
            bare = desk.pixel(INSIDE)
            desk.click(CENTRE)
            desk.wait(lambda: desk.pixel(INSIDE) != bare)
            desk.accept()
            desk.page.locator("#objects").get_by_text("accepted").wait_for()
            desk.page.keyboard.press("Control+Enter")
            desk.page.get_by_text("Nothing is left to label").wait_for()
        with gateway.services.database.connect() as conn:
            (mask,) = current_masks(conn, CAMPAIGN)
    assert (mask.width, mask.height) == SIZE


@pytest.mark.parametrize("format_", ["PNG", "WEBP"])
def test_what_is_transparent_is_white_as_it_is_to_the_model(browser: Any, tmp_path: Path, format_: str) -> None:
    pixels = np.zeros((SIZE[1], SIZE[0], 4), np.uint8)
    cv2.circle(pixels, (80, 60), 30, (10, 10, 10, 255), -1)
    path = tmp_path / f"cut-out.{format_.lower()}"
    Image.fromarray(pixels).save(path, format_, lossless=True)
    with gateway_in(tmp_path, images=0) as gateway:
        put(gateway, tmp_path, path.name, path.read_bytes())
        with desk_at(browser, gateway) as desk:
            desk.begin()
            desk.wait(lambda: max(desk.pixel(INSIDE)[:3]) < 30)
            assert desk.pixel(BESIDE) == (255, 255, 255, 255)


def test_a_large_image_is_fetched_in_tiles_where_it_is_looked_at(browser: Any, tmp_path: Path) -> None:
    """14.5 million pixels, whose stripes in the middle are too fine for the small picture."""
    width, height = 4400, 3300
    pixels = np.full((height, width, 3), 90, np.uint8)
    pixels[1600:1700, 2150:2250] = np.where((np.arange(100) // 4 % 2)[None, :, None], 255, 0)
    path = tmp_path / "large.jpg"
    Image.fromarray(pixels).save(path, quality=95)
    with gateway_in(tmp_path, images=0) as gateway:
        put(gateway, tmp_path, path.name, path.read_bytes())
        with desk_at(browser, gateway) as desk:
            asked: list[str] = []
            desk.page.on("request", lambda request: asked.append(request.url.partition("/api/")[2]))
            desk.begin()
            box = desk.page.locator("#canvas").bounding_box()
            middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            desk.page.mouse.click(*middle)
            desk.wait(lambda: events_of(gateway))
            desk.page.get_by_role("button", name="Hide masks").click()  # the click's mask would tint the stripes
            desk.page.mouse.move(*middle)
            desk.page.mouse.wheel(0, -1200)
            row = "canvas => [...canvas.getContext('2d').getImageData(0, canvas.height >> 1, canvas.width, 1).data]"
            desk.wait(lambda: spread(desk.page.locator("#canvas").evaluate(row)) > 200)
        [click] = events_of(gateway)
    assert not any(url.endswith("content") for url in asked)
    levels = {url.split("/tiles/")[1][0] for url in asked if "/tiles/" in url}
    assert "0" in levels
    assert abs(click["x"] - width / 2) < 5 and abs(click["y"] - height / 2) < 5


def events_of(gateway: Gateway) -> list[dict[str, Any]]:
    """The clicks in the log."""
    with gateway.services.database.connect() as conn:
        sessions = list_sessions(conn, CAMPAIGN)
        events = [event for session in sessions for event in session_events(conn, session.id)]
    return [event.payload for event in events if event.kind == "click"]


def spread(row: list[int]) -> int:
    """The second darkest against the second brightest red near the middle of a row of RGBA pixels."""
    red = row[0::4]
    near = sorted(red[len(red) // 2 + 20 : len(red) // 2 + 120])
    return near[-2] - near[1]
