"""A large image with a thousand objects: it loads, stays smooth and takes clicks."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.masks.digest import mask_digest
from pipeline.masks.rle import mask_to_rle
from schemas.predictions import ImageRef
from tests.browser.desk import Desk, desk_at
from tests.workers.api.gateway import Gateway, Work, gateway_in, put, register

pytestmark = pytest.mark.browser

WIDTH, HEIGHT = 4000, 3000
COUNT = 1000
_FRAMES = """async (move) => {
  const { view } = await import("./js/view.js");
  const frame = () => new Promise(requestAnimationFrame);
  view.fit();
  if (move === "pan close up") view.zoom(6);
  await frame();
  const spent = [];
  for (let i = 0; i < 40; i++) {
    if (move === "zoom") view.zoom(i < 20 ? 1.15 : 1 / 1.15);
    else view.pan(i % 20 < 10 ? 9 : -9, i % 2 ? 5 : -5);
    const from = performance.now();
    await frame();
    await frame();
    spent.push((performance.now() - from) / 2);
  }
  return 1000 / (spent.reduce((a, b) => a + b) / spent.length);
}"""


def fill_session(gateway: Gateway, annotator: str) -> str:
    """A session with a thousand accepted squares; its id."""
    with gateway.http(annotator) as http:
        work = Work(http)
        columns = 40
        batch: list[dict[str, Any]] = []
        for index in range(COUNT):
            x, y = (index % columns) * 98 + 20, (index // columns) * 118 + 20
            local = np.ones((80, 70), np.bool_)
            whole = np.zeros((HEIGHT, WIDTH), np.bool_)
            whole[y : y + 80, x : x + 70] = True
            instance = str(uuid4())
            runs = mask_to_rle(local).model_dump(mode="json")
            box = (x, y, x + 70, y + 80)
            none = mask_to_rle(~local).model_dump(mode="json")
            seq = work.seq + len(batch)
            batch += [
                work.event("open", instance, at=seq + 1),
                work.event(
                    "mask_edit", instance, at=seq + 2, tool="polygon", box=box, added=runs, erased=none, polygon=[]
                ),
                work.event("accept", instance, at=seq + 3, seq=seq + 2, mask_sha256=mask_digest(whole), category=1),
            ]
            if len(batch) >= 90:
                assert work.post(*batch, mask="none").status_code == 200
                batch = []
        if batch:
            assert work.post(*batch, mask="none").status_code == 200
        return work.session_id


@pytest.mark.slow
def test_a_thousand_objects_on_twelve_megapixels(browser: Any, tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=0) as gateway:
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
        path = tmp_path / "large.jpg"
        Image.fromarray(noise).resize((WIDTH, HEIGHT)).save(path)
        with gateway.services.database.begin() as conn:
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            register(conn, ImageRef(sha256=sha256, uri=str(path), width=WIDTH, height=HEIGHT))
        session = fill_session(gateway, "eve")
        with desk_at(browser, gateway) as desk:
            work_on(desk, session)


def work_on(desk: Desk, session: str) -> None:
    desk.open(session)
    desk.page.locator("#objects li").nth(COUNT - 1).wait_for()
    loaded = "async () => (await import('./js/desk.js')).desk.session.masks.size"
    desk.wait(lambda: desk.page.evaluate(loaded) == COUNT)
    rates = {move: desk.page.evaluate(_FRAMES, move) for move in ("pan", "zoom", "pan close up")}
    rounded = {move: round(rate, 1) for move, rate in rates.items()}
    print("frames/s of 12 MP with 1,000 objects:", rounded)  # noqa: T201
    assert all(rate > 0 for rate in rates.values())
    desk.page.keyboard.press("0")
    box = desk.page.locator("#canvas").bounding_box()
    scale = min(box["width"] / WIDTH, box["height"] / HEIGHT)
    left, top = (box["width"] - WIDTH * scale) / 2, (box["height"] - HEIGHT * scale) / 2
    desk.page.locator("#canvas").click(position={"x": left + 55 * scale, "y": top + 60 * scale})
    desk.page.locator("#note", has_text="This object is chosen").wait_for()
    desk.page.locator("#objects li").first.locator("[aria-pressed=true]").wait_for()
    desk.page.keyboard.press("Delete")
    desk.page.locator("#objects li").nth(COUNT - 2).wait_for()
    desk.page.locator("#objects-title", has_text=f"({COUNT - 1})").wait_for()
    desk.wait_saved()


@contextmanager
def showing(browser: Any, folder: Path, scene: NDArray[np.uint8], scale: float) -> Iterator[Desk]:
    """A desk with an image, shown smaller than the scale."""
    with gateway_in(folder, images=0) as gateway:
        encoded = io.BytesIO()
        Image.fromarray(scene).save(encoded, "PNG", compress_level=1)
        put(gateway, folder, "large.png", encoded.getvalue())
        with desk_at(browser, gateway) as desk:
            desk.page.goto(gateway.url)
            desk.identify()
            desk.page.locator("#campaigns").get_by_role("button", name="discs").click()
            desk.page.locator("#where", has_text=f"{scene.shape[1]}×{scene.shape[0]}").wait_for()
            shown = "async () => (await import('./js/view.js')).view.scale"
            desk.wait(lambda: desk.page.evaluate(shown) < scale)
            yield desk


def large_image(browser: Any, folder: Path) -> AbstractContextManager[Desk]:
    """A desk with 3200x2400 pixels and a rectangle in their middle."""
    scene = np.full((2400, 3200, 3), 30, np.uint8)
    scene[600:1800, 800:2400] = (240, 220, 40)
    return showing(browser, folder, scene, 0.3)


def test_outlines_of_masks_are_thin_close_up(browser: Any, tmp_path: Path) -> None:
    """They were as many pixels of the image at every zoom: opaque bands beside the edge that somebody wants to see."""
    with large_image(browser, tmp_path) as desk:
        box = desk.page.locator("#canvas").bounding_box()
        desk.page.locator("#canvas").click(position={"x": box["width"] / 2, "y": box["height"] / 2})
        desk.page.locator("#objects").get_by_text("1 click").wait_for()
        desk.wait_mask()
        opaque = """async () => {
          const { canvas, width, height } = (await import("./js/view.js")).view.active;
          const row = canvas.getContext("2d").getImageData(0, height >> 1, width >> 1, 1).data;
          const first = row.findIndex((value, index) => index % 4 === 3 && value > 0) >> 2;
          return row.slice(4 * first).findIndex((value, index) => index % 4 === 3 && value < 255) >> 2;
        }"""
        desk.wait(lambda: desk.page.evaluate(opaque) == 4)
        desk.page.evaluate("async () => (await import('./js/view.js')).view.zoom(20)")
        desk.wait(lambda: desk.page.evaluate(opaque) == 1)
        desk.page.keyboard.press("0")
        desk.wait(lambda: desk.page.evaluate(opaque) == 4)


def test_the_brush_is_taken_in_a_size_that_is_seen(browser: Any, tmp_path: Path) -> None:
    """Its 8 pixels are few on a large image, and more than the screen close up; one that was chosen stays."""
    with large_image(browser, tmp_path) as desk:
        on_screen = "async () => { const { view } = await import('./js/view.js'); return view.radius * view.scale; }"
        zoom = "async (factor) => (await import('./js/view.js')).view.zoom(factor)"
        desk.page.keyboard.press("b")
        assert desk.page.evaluate(on_screen) == pytest.approx(12)
        desk.page.keyboard.press("]")
        for key in ("b", "e"):
            desk.page.keyboard.press(key)
            assert desk.page.evaluate(on_screen) == pytest.approx(15)
        desk.page.keyboard.press("e")
        desk.page.evaluate(zoom, 100)
        desk.page.keyboard.press("b")
        assert desk.page.evaluate(on_screen) < 30


def test_masks_of_a_strip_can_be_seen_through(browser: Any, tmp_path: Path) -> None:
    strip = np.full((50, 20_000, 3), 30, np.uint8)
    strip[5:45, 9_000:11_000] = (240, 220, 40)
    with showing(browser, tmp_path, strip, 0.1) as desk:
        desk.wait_saved()
        desk.page.evaluate("async () => (await import('./js/view.js')).view.zoom(150)")  # about the middle
        box = desk.page.locator("#canvas").bounding_box()
        desk.page.locator("#canvas").click(position={"x": box["width"] / 2, "y": box["height"] / 2})
        desk.wait_mask()
        layer = """async () => {
          const { view } = await import("./js/view.js");
          const { canvas, width, height } = view.active;
          return canvas.getContext("2d").getImageData(width >> 1, height >> 1, 1, 1).data[3];
        }"""
        assert 0 < desk.page.evaluate(layer) < 255
