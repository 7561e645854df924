"""Images of formats that no browser shows, labeled in a real one."""

import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.storage.images import add_image
from pipeline.storage.masks import current_masks
from tests.browser.desk import BESIDE, CENTRE, INSIDE, SIZE, desk_at
from tests.workers.api.gateway import CAMPAIGN, gateway_in

pytestmark = pytest.mark.browser


def test_a_tiff_is_displayed_and_labeled(browser: Any, tmp_path: Path) -> None:
    """16-bit grey with 12 bits used: shown by the window of its samples, a bright disc on a dark ground."""
    samples = np.full((SIZE[1], SIZE[0]), 300, np.uint16)
    cv2.circle(samples, (80, 60), 30, 4000, -1)
    path = tmp_path / "slide.tif"
    Image.fromarray(samples).save(path, "TIFF", compression="tiff_lzw")
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    with gateway_in(tmp_path, images=0) as gateway:
        with gateway.services.database.begin() as conn:
            add_image(
                conn,
                CAMPAIGN,
                uri=str(path),
                file_name=path.name,
                uri_sha256=sha256,
                version="1",
                sha256=sha256,
                phash="0" * 16,
                group_key=sha256,
                width=SIZE[0],
                height=SIZE[1],
                format="TIFF",
                size_bytes=len(data),
            )
        with desk_at(browser, gateway) as desk:
            desk.begin()
            assert min(desk.pixel(INSIDE)[:3]) > 240 and max(desk.pixel(BESIDE)[:3]) < 15
            edge = [desk.pixel((x, 60.0))[0] > 128 for x in (47.5, 52.5, 107.5, 112.5)]
            assert edge == [False, True, True, False]  # the disc is where the samples have it
            bare = desk.pixel(INSIDE)
            desk.click(CENTRE)
            desk.wait(lambda: desk.pixel(INSIDE) != bare)
            desk.page.keyboard.press("Enter")
            desk.page.locator("#objects").get_by_text("accepted").wait_for()
            desk.page.keyboard.press("Control+Enter")
            desk.page.get_by_text("Nothing is left to label").wait_for()
        with gateway.services.database.connect() as conn:
            (mask,) = current_masks(conn, CAMPAIGN)
    assert (mask.width, mask.height) == SIZE
