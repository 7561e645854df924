"""The labeling page in a real browser against a real gateway: what a person does, and what is stored then."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from scipy.ndimage import binary_fill_holes, label

from pipeline.masks.rle import rle_to_mask
from pipeline.storage.campaigns import add_categories
from pipeline.storage.masks import current_masks
from pipeline.storage.sessions import session_events
from tests.browser.desk import BESIDE, CENTRE, INSIDE, SIZE, Desk, desk_at
from tests.workers.api.gateway import ADMIN_TOKEN, CAMPAIGN, Work, gateway_in, put

pytestmark = pytest.mark.browser


def test_click_undo_redo_accept_and_submit_store_the_mask(desk: Desk) -> None:
    desk.begin()
    desk.page.locator("#progress", has_text="0 of ").wait_for()
    bare = desk.pixel(INSIDE)
    desk.click(CENTRE)
    desk.wait(lambda: desk.pixel(INSIDE) != bare)
    masked = desk.settled(INSIDE)  # after the flash of what has changed
    outside = desk.pixel(BESIDE)
    desk.page.keyboard.press("Control+z")
    desk.wait(lambda: desk.pixel(INSIDE) == bare)
    assert desk.pixel(BESIDE) == outside
    desk.page.keyboard.press("Control+Shift+z")
    desk.wait(lambda: desk.pixel(INSIDE) == masked)
    desk.page.keyboard.press("2")
    desk.wait(lambda: desk.pixel(INSIDE) not in (bare, masked))  # another category, another colour
    desk.accept()
    desk.page.locator("#objects", has_text="1 blob").get_by_text("accepted").wait_for()
    desk.wait_saved()
    assert desk.kinds() == ["open", "click", "undo", "redo", "category", "accept"]
    click = desk.events()[1].payload
    assert click["is_positive"] and (click["x"], click["y"]) == pytest.approx(CENTRE, abs=0.5)

    desk.page.keyboard.press("Control+Enter")
    desk.wait_image(2)
    desk.page.locator("#progress", has_text="1 of ").wait_for()
    with desk.gateway.services.database.connect() as conn:
        (mask,) = current_masks(conn, CAMPAIGN)
    assert mask.category_number == 2 and mask.num_clicks == 1 and 1500 < mask.area < 5000
    assert desk.page.locator("#objects li").count() == 0


def test_right_click_and_alt_click_are_negative(desk: Desk) -> None:
    desk.begin()
    desk.click(CENTRE)
    desk.click(BESIDE, button="right")
    desk.click((140.0, 100.0), modifiers=["Alt"])
    desk.wait(lambda: len(desk.events()) == 4)
    assert [event.payload["is_positive"] for event in desk.events()[1:]] == [True, False, False]
    assert [event.seq for event in desk.events()] == [1, 2, 3, 4]


def test_dragged_box_begins_an_object_and_outlives_a_reload(desk: Desk) -> None:
    desk.begin()
    bare = desk.pixel(INSIDE)
    desk.drag((124, 100), (36, 16))  # from the lower right to the upper left
    desk.wait(lambda: desk.pixel(INSIDE) != bare)
    desk.page.locator("#objects").get_by_text("1 box").wait_for()
    desk.click(CENTRE)
    desk.page.locator("#objects").get_by_text("1 box, 1 click").wait_for()
    desk.drag((40, 20), (200, 123))  # ends beside the image: it is cut to it
    desk.wait_saved()
    assert desk.kinds() == ["open", "box", "click", "box"]
    whole, cut = (desk.events()[index].payload for index in (1, 3))
    assert [whole[side] for side in ("x0", "y0", "x1", "y1")] == pytest.approx([36, 16, 124, 100], abs=0.5)
    assert (cut["x1"], cut["y1"]) == SIZE
    desk.page.reload()
    desk.page.locator("#objects").get_by_text("2 boxes, 1 click").wait_for()
    desk.wait_image(1)
    desk.wait(lambda: desk.pixel(INSIDE) != bare)
    desk.accept()
    desk.page.locator("#objects").get_by_text("accepted").wait_for()


def test_box_of_no_size_is_a_click_and_escape_drops_a_box_that_is_being_drawn(desk: Desk) -> None:
    desk.begin()
    desk.click(CENTRE, modifiers=["Shift"])
    desk.drag((130, 20), (150, 40), escape=True)
    desk.drag((20, -3), (60, -1))  # nothing of it lies on the image
    desk.page.locator("#objects").get_by_text("1 click").wait_for()
    desk.wait_saved()
    assert desk.kinds() == ["open", "click"]


def test_tab_cycles_the_candidates_and_the_chosen_one_is_stored(desk: Desk) -> None:
    desk.begin()
    desk.click(CENTRE)
    candidates = desk.page.get_by_role("list", name="Other masks").get_by_role("button")
    candidates.nth(2).wait_for()
    assert candidates.all_inner_texts() == ["1 · 90 %", "2 · 70 %", "3 · 60 %"]
    chosen = desk.page.locator("#candidates button[aria-pressed=true]")
    for number in (2, 3, 1):
        desk.page.keyboard.press("Tab")
        chosen.get_by_text(f"{number} ·").wait_for()
        desk.wait_saved()
    desk.page.keyboard.press("Shift+Tab")
    chosen.get_by_text("3 ·").wait_for()
    desk.page.keyboard.press("Control+z")
    chosen.get_by_text("1 ·").wait_for()
    candidates.nth(1).click()
    chosen.get_by_text("2 ·").wait_for()
    desk.wait_saved()
    assert [event.payload["index"] for event in desk.events() if event.kind == "candidate"] == [1, 2, 0, 2, 1]
    desk.accept()
    desk.page.locator("#objects").get_by_text("accepted").wait_for()
    assert candidates.count() == 0
    desk.page.keyboard.press("Tab")  # without candidates it leaves the image
    assert desk.page.evaluate("document.activeElement.id") != "canvas"
    desk.click(CENTRE, modifiers=["Control"])  # the same object again, as the model would have it
    candidates.nth(2).wait_for()
    desk.accept()
    desk.page.locator("#objects li", has_text="accepted").nth(1).wait_for()
    desk.page.keyboard.press("Control+Enter")
    desk.wait_image(2)
    with desk.gateway.services.database.connect() as conn:
        tighter, official = sorted(mask.area for mask in current_masks(conn, CAMPAIGN))
    assert 0 < tighter < official


def decoded(part: dict[str, Any]) -> np.ndarray:
    """A mask as pycocotools reads it."""
    return np.asarray(coco.decode({"size": part["size"], "counts": part["counts"].encode()}), np.bool_)


def test_tools_of_the_page_agree_with_scipy_and_pycocotools(desk: Desk) -> None:
    desk.begin()
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (1, 9), (7, 1), (3, 3), (200, 300), *((int(h), int(w)) for h, w in rng.integers(2, 40, (40, 2)))]
    masks = [rng.random(shape) < density for shape in shapes for density in (0.3, 0.6, 0.97, 1.0)]
    changes = desk.page.evaluate(
        """async (masks) => {
          const { fillHoles, keepLargest } = await import("./js/tools.js");
          return masks.map(({ height, width, pixels }) => {
            const mask = { x: 3, y: 5, width, height, pixels: Uint8Array.from(pixels) };
            return [fillHoles(mask), keepLargest(mask)];
          });
        }""",
        [{"height": m.shape[0], "width": m.shape[1], "pixels": m.ravel().astype(int).tolist()} for m in masks],
    )
    for mask, (filled, kept) in zip(masks, changes, strict=True):
        height, width = mask.shape
        for change in filter(None, (filled, kept)):
            assert change["box"] == [3, 5, 3 + width, 5 + height] and change["added"]["size"] == [height, width]
        holes = binary_fill_holes(mask) & ~mask
        assert np.array_equal(holes, decoded(filled["added"]) if filled else np.zeros_like(mask))
        labels, count = label(mask, np.ones((3, 3)))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        assert (kept is None) == (count < 2)
        if kept:
            rest = mask & ~decoded(kept["erased"])
            assert label(rest, np.ones((3, 3)))[1] == 1 and rest.sum() == sizes.max()
            assert not decoded(kept["added"]).any()


def test_holes_are_filled_and_the_largest_part_kept_and_both_can_be_undone(desk: Desk) -> None:
    desk.begin()
    for dx, dy in ((-20, 0), (20, 0), (0, -20), (0, 20)):
        desk.click((CENTRE[0] + dx, CENTRE[1] + dy))
    desk.wait_saved()
    beside_the_click = (CENTRE[0] + 4, CENTRE[1])
    whole = desk.settled(beside_the_click)
    desk.click(CENTRE, button="right")
    desk.wait(lambda: desk.pixel(beside_the_click) != whole)
    desk.page.keyboard.press("f")
    desk.wait(lambda: desk.pixel(beside_the_click) == whole)
    desk.page.keyboard.press("Control+z")
    desk.wait(lambda: desk.pixel(beside_the_click) != whole)
    desk.page.get_by_role("button", name="Fill holes").click()
    desk.wait(lambda: desk.pixel(beside_the_click) == whole)
    desk.page.keyboard.press("l")
    desk.page.locator("#note", has_text="in one piece").wait_for()
    bare, part = desk.pixel((20, 20)), (20.0, 20.0)
    desk.page.keyboard.press("b")
    desk.drag(part, (22, 20))
    desk.wait(lambda: desk.pixel((16, 18)) != bare)
    desk.wait_saved()
    desk.page.keyboard.press("Escape")
    apart = desk.settled(part)
    desk.page.keyboard.press("l")
    desk.wait(lambda: desk.pixel(part) == bare)
    desk.page.keyboard.press("Control+z")
    desk.wait(lambda: desk.pixel(part) == apart)
    desk.wait_saved()
    kinds = [event.payload.get("tool", event.kind) for event in desk.events()]
    assert kinds == ["open", *["click"] * 5, "fill_holes", "undo", "fill_holes", "brush", "keep_largest", "undo"]


def test_brush_begins_an_object_erases_and_stores_what_was_painted(desk: Desk) -> None:
    desk.begin()
    bare, cut = desk.pixel((20, 20)), (40.0, 20.0)
    desk.page.keyboard.press("b")
    desk.drag((20, 20), (60, 20), button="right")
    desk.page.locator("#note", has_text="with the left button").wait_for()
    desk.drag((20, 20), (60, 20))
    desk.wait(lambda: desk.pixel((20, 20)) != bare)
    masked = desk.settled(cut)
    desk.page.keyboard.press("[")
    desk.drag((40, 4), (40, 40), button="right")
    desk.wait(lambda: desk.pixel(cut) != masked)
    desk.click((100, 100))  # one dot
    desk.drag((150, 110), (170, 130), escape=True)
    desk.page.locator("#objects").get_by_text("3 strokes").wait_for()
    desk.wait_saved()
    first, eraser, dot = (event.payload for event in desk.events()[1:])
    assert (first["radius"], eraser["radius"], dot["is_positive"]) == (8, pytest.approx(6.4), True)
    assert [len(first["polyline"]) > 2, len(dot["polyline"])] == [True, 1]
    painted = decoded(first["rle"])
    y, x = np.mgrid[0 : painted.shape[0], 0 : painted.shape[1]] + 0.5
    x, y = x + first["box"][0], y + first["box"][1]
    away = np.hypot(x - np.clip(x, 20, 60), y - 20)
    assert painted[away < 7].all() and not painted[away > 9].any()
    assert decoded(dot["rle"]).sum() == pytest.approx(np.pi * 6.4**2, rel=0.1)
    desk.page.keyboard.press("Escape")  # the brush first, the object would be next
    assert desk.page.locator("#brush").get_attribute("aria-pressed") == "false"
    desk.accept()
    desk.page.locator("#objects").get_by_text("accepted").wait_for()
    desk.page.keyboard.press("Control+Enter")
    desk.wait_image(2)
    with desk.gateway.services.database.connect() as conn:
        (mask,) = current_masks(conn, CAMPAIGN)
    stored = rle_to_mask(mask.rle)
    assert stored[24, 20] and stored[100, 100] and not stored[20, 40]
    assert mask.num_clicks == 0


def test_reload_in_mid_instance_goes_on_where_it_stopped(desk: Desk) -> None:
    desk.begin()
    bare = desk.pixel(INSIDE)
    desk.click(CENTRE)
    desk.click(BESIDE, button="right")
    desk.wait(lambda: desk.pixel(INSIDE) != bare)
    desk.wait_saved()
    before = desk.session_id
    desk.page.reload()
    desk.wait_image(1)
    desk.wait(lambda: desk.pixel(INSIDE) != bare)
    assert desk.session_id == before
    desk.page.get_by_text("2 clicks").wait_for()
    desk.page.keyboard.press("Control+z")  # an event of the life before
    desk.page.get_by_text("1 click").wait_for()
    desk.wait(lambda: desk.kinds() == ["open", "click", "click", "undo"])
    desk.wait(lambda: desk.page.locator("#latency").inner_text() != "")
    desk.wait_mask()
    desk.page.keyboard.press("n")
    desk.page.get_by_text("accepted").wait_for()
    desk.wait(lambda: desk.kinds()[-1] == "accept")


def test_events_made_offline_wait_and_are_sent_once(desk: Desk) -> None:
    blocked: list[bool] = []

    def route(socket: Any) -> None:
        """Let the first connection die with the first click on it."""
        server = socket.connect_to_server()

        def pass_on(message: str) -> None:
            server.send(message)
            if not blocked and '"kind":"click"' in message:
                blocked.append(True)
                server.close()
                socket.close()

        socket.on_message(pass_on)

    desk.page.route_web_socket("**/ws", route)
    desk.begin()
    bare = desk.pixel(INSIDE)
    desk.click(CENTRE)
    desk.click(BESIDE, button="right")
    desk.wait(lambda: desk.pixel(INSIDE) != bare)
    desk.wait_saved()
    assert blocked and desk.kinds() == ["open", "click", "click"]


def test_a_network_that_goes_away_is_said_at_once(desk: Desk) -> None:
    desk.begin()
    desk.click(CENTRE)
    desk.wait_saved()
    desk.page.context.set_offline(True)
    desk.page.locator("#badge", has_text="Offline").wait_for(timeout=5000)
    desk.click(BESIDE, button="right")
    desk.page.get_by_text("Offline, 1 waiting").wait_for()
    desk.page.context.set_offline(False)
    desk.wait_saved()
    assert desk.kinds() == ["open", "click", "click"]
    assert all("ERR_INTERNET_DISCONNECTED" in error for error in desk.errors)  # the browser's own line
    desk.errors.clear()


def test_undoing_a_category_brings_back_the_one_before(desk: Desk) -> None:
    chosen = desk.page.locator("#categories button[aria-pressed=true]")
    desk.begin()
    desk.click(CENTRE)
    before = chosen.inner_text()
    for key, is_before in (("2", False), ("Control+z", True), ("Control+y", False)):
        desk.page.keyboard.press(key)
        desk.wait(lambda wanted=is_before: (chosen.inner_text() == before) is wanted)


def test_second_window_takes_over_and_the_first_can_take_it_back(desk: Desk) -> None:
    desk.begin()
    desk.click(CENTRE)
    desk.wait_saved()
    other = desk.page.context.new_page()
    other.goto(desk.page.url)
    other.get_by_text("1 click").wait_for()
    desk.page.get_by_text("opened in another window").wait_for()
    assert desk.page.locator("#badge").inner_text() == ""  # it is not offline
    desk.click(BESIDE, force=True)
    desk.page.get_by_role("button", name="Go on here").click()
    desk.page.get_by_text("opened in another window").wait_for(state="hidden")
    desk.wait_image(1)
    desk.click(BESIDE, button="right")
    desk.page.get_by_text("2 clicks").wait_for()
    desk.wait_saved()
    assert desk.kinds() == ["open", "click", "click"]


def test_it_is_said_why_there_is_no_image(browser: Any, tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=0) as gateway, desk_at(browser, gateway) as desk:
        desk.page.goto(gateway.url)
        desk.identify()
        campaign = desk.page.locator("#campaigns").get_by_role("button", name="discs")
        campaign.click()
        desk.page.get_by_text("no image in this campaign yet").wait_for()
        encoded = io.BytesIO()
        Image.new("RGB", SIZE).save(encoded, "PNG")
        put(gateway, tmp_path, "black.png", encoded.getvalue())
        with gateway.http("somebody") as http:
            Work(http)
            campaign.click()
            desk.page.get_by_text("being labeled now: 1.").wait_for()


def test_what_was_begun_is_offered_in_another_browser(desk: Desk, browser: Any) -> None:
    """With two images open, first the one worked on last."""
    desk.begin()
    desk.click(CENTRE)
    desk.wait_saved()
    first = desk.session_id
    desk.page.goto("about:blank")
    desk.page.goto(desk.gateway.url)
    desk.page.locator("#campaigns").get_by_role("button", name="discs").click()
    desk.wait_image(2)
    second = desk.session_id
    with desk_at(browser, desk.gateway) as other:
        other.page.goto(desk.gateway.url)
        other.identify()
        offers = other.page.get_by_role("list", name="Go on where you stopped").get_by_role("button")
        offers.nth(1).wait_for()
        assert [text.split(" ·")[0] for text in offers.all_inner_texts()] == [
            "Go on with image 2",
            "Go on with image 1",
        ]
        offers.nth(1).click()
        other.wait_image(1)
        other.page.locator("#objects").get_by_text("1 click").wait_for()
        assert other.session_id == first != second
        other.accept()
        other.page.locator("#objects").get_by_text("accepted").wait_for()
        other.page.keyboard.press("Control+Enter")
        other.wait_image(3)
        other.page.get_by_role("button", name="Leave").click()
        offers.nth(0).wait_for()
        assert [text.split(" ·")[0] for text in offers.all_inner_texts()] == ["Go on with image 2"]


def test_objects_can_be_deleted_and_an_image_skipped(desk: Desk) -> None:
    desk.begin()
    desk.click(CENTRE)
    desk.page.locator("#latency", has_text="ms").wait_for()
    desk.page.get_by_role("button", name="Accept object").click()
    desk.page.get_by_text("accepted").wait_for()
    desk.page.get_by_role("button", name="Delete 1 disc").click()
    desk.page.get_by_text("Click on an object to begin.").wait_for()
    desk.page.keyboard.press("Control+z")
    desk.page.get_by_text("accepted").wait_for()
    desk.page.get_by_role("button", name="Delete 1 disc").click()
    desk.wait_saved()
    desk.page.keyboard.press("Control+Space")
    desk.page.get_by_role("button", name="Keep it").click()
    desk.page.keyboard.press("Control+Space")
    desk.page.get_by_label("The image is bad").check()
    desk.page.get_by_label("In your words").fill("too dark <b>")
    first = desk.session_id
    desk.page.keyboard.press("Enter")
    desk.wait_image(2)
    with desk.gateway.services.database.connect() as conn:
        assert session_events(conn, first)[-1].payload["reason"] == "bad image: too dark <b>"
    with desk.gateway.services.database.connect() as conn:
        assert current_masks(conn, CAMPAIGN) == []


def test_the_question_why_an_image_is_skipped_goes_with_its_image(desk: Desk) -> None:
    desk.begin()
    with desk.gateway.http("eve") as http:
        other = Work(http)
        desk.page.keyboard.press("Control+Space")
        desk.page.locator("#skipping").wait_for()
        desk.page.evaluate("(id) => { location.hash = `session=${id}`; }", other.session_id)
        desk.wait_image(2)
        assert not desk.page.locator("#skipping").is_visible()
        assert other.state()["last_seq"] == 0


def test_zoom_keeps_the_point_under_the_pointer_and_clicks_stay_in_image_pixels(desk: Desk) -> None:
    desk.begin()
    x, y = desk.at(CENTRE)
    box = desk.page.locator("#canvas").bounding_box()
    desk.page.mouse.move(box["x"] + x, box["y"] + y)
    desk.page.mouse.wheel(0, -400)
    desk.wait(lambda: desk.pixel((80.0, 15.0))[0] > 200)  # the disc is now larger than that
    desk.click(CENTRE)
    desk.click(INSIDE)
    desk.page.keyboard.press("0")
    desk.click(INSIDE)
    desk.wait(lambda: len(desk.events()) == 4)
    fixed, nearer, fitted = (event.payload for event in desk.events()[1:])
    assert (fixed["x"], fixed["y"]) == pytest.approx(CENTRE, abs=0.5)
    assert nearer["y"] == pytest.approx(60 - 15 / math.exp(400 / 500), abs=0.5)
    assert (fitted["x"], fitted["y"]) == pytest.approx(INSIDE, abs=0.5)


@pytest.mark.parametrize("how", ["wheel", "window"])
def test_a_box_keeps_its_first_corner_while_the_image_is_shown_in_another_size(desk: Desk, how: str) -> None:
    desk.begin()
    box = desk.page.locator("#canvas").bounding_box()
    (x0, y0), (x1, y1) = ((x + box["x"], y + box["y"]) for x, y in (desk.at((60, 40)), desk.at((100, 80))))
    desk.page.keyboard.down("Shift")
    desk.page.mouse.move(x0, y0)
    desk.page.mouse.down()
    desk.page.mouse.move(x1, y1, steps=3)
    if how == "wheel":
        desk.page.mouse.wheel(0, -200)
        desk.wait(lambda: desk.pixel((80.0, 22.0))[0] > 200)  # the disc is now larger than that
    else:
        desk.page.set_viewport_size({"width": 800, "height": 500})
        desk.wait(lambda: desk.page.locator("#canvas").bounding_box() != box)
        x1, y1 = desk.at((100, 80))
        desk.page.mouse.move(x1, y1 + box["y"])
    desk.page.mouse.up()
    desk.page.keyboard.up("Shift")
    desk.wait_saved()
    drawn = desk.events()[1].payload
    assert [drawn[side] for side in ("x0", "y0", "x1", "y1")] == pytest.approx([60, 40, 100, 80], abs=1)


def test_a_double_click_does_not_answer_the_question_before_an_image_is_left(desk: Desk) -> None:
    desk.begin()
    for button in ("Submit image", "Leave"):
        if button == "Leave":
            desk.click(CENTRE)
            desk.wait_mask()
        desk.page.get_by_role("button", name=button).dblclick()
        desk.page.locator("#note", has_text="again if that is right").wait_for()
        desk.page.wait_for_timeout(300)
        assert not {"submit", "release"} & set(desk.kinds())
    desk.page.get_by_role("button", name="Leave").click()
    desk.page.locator("#unfinished, #campaigns").get_by_role("button", name="discs").wait_for()


def test_a_pinch_on_a_trackpad_zooms_as_far_as_the_fingers(desk: Desk) -> None:
    """Browsers tell it as small turns of the wheel with Ctrl: 100 times the logarithm of the zoom."""
    desk.begin()
    scale = "async () => (await import('./js/view.js')).view.scale"
    before = desk.page.evaluate(scale)
    turn = """deltaY => document.querySelector("#canvas").dispatchEvent(
      new WheelEvent("wheel", { deltaY, ctrlKey: true, cancelable: true }))"""
    for _ in range(10):
        desk.page.evaluate(turn, -10 * math.log(2))
    assert desk.page.evaluate(scale) == pytest.approx(2 * before)


def test_zooming_into_an_image_of_few_pixels_does_not_shrink_it(browser: Any, tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=0) as gateway:
        path = tmp_path / "eight.png"
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(path)
        put(gateway, tmp_path, path.name, path.read_bytes())
        with desk_at(browser, gateway) as desk:
            desk.page.goto(gateway.url)
            desk.identify()
            desk.page.locator("#campaigns").get_by_role("button", name="discs").click()
            scale = "async () => (await import('./js/view.js')).view.scale"
            desk.wait(lambda: desk.page.evaluate(scale) != 1)
            whole = desk.page.evaluate(scale)
            assert whole > 64
            desk.page.locator("#canvas").hover()
            desk.page.keyboard.press("+")
            assert desk.page.evaluate(scale) >= whole
            desk.page.keyboard.press("-")
            assert 0.7 * whole < desk.page.evaluate(scale) < whole


def test_an_address_that_is_changed_by_hand_is_followed(desk: Desk) -> None:
    with desk.gateway.http("eve") as http:
        one, other = Work(http), Work(http)
    desk.open(one.session_id)
    desk.wait_image(1)
    desk.page.evaluate("id => { location.hash = `#session=${id}`; }", other.session_id)
    desk.wait_image(2)
    desk.page.evaluate("location.hash = ''")
    desk.page.locator("#campaigns").get_by_role("button", name="discs").wait_for()


def test_clicks_stay_where_the_image_is_drawn_on_a_screen_with_other_pixels(desk: Desk) -> None:
    desk.begin()
    inside = desk.pixel(INSIDE)
    finer = {"width": 1000, "height": 640, "deviceScaleFactor": 2, "mobile": False}
    desk.page.context.new_cdp_session(desk.page).send("Emulation.setDeviceMetricsOverride", finer)
    desk.wait(lambda: desk.page.evaluate("devicePixelRatio === 2"))
    desk.page.keyboard.press("h")
    desk.wait(lambda: desk.page.evaluate("canvas.width === 2 * canvas.clientWidth"))
    desk.wait(lambda: desk.pixel(INSIDE) == inside and desk.pixel(BESIDE)[0] < 100 < inside[0])
    desk.click(CENTRE)
    desk.wait(lambda: desk.kinds() == ["open", "click"])
    click = desk.events()[1].payload
    assert (click["x"], click["y"]) == pytest.approx(CENTRE, abs=0.5)


def test_each_button_that_goes_up_ends_what_it_began(desk: Desk) -> None:
    desk.begin()
    mouse = desk.page.mouse
    box = desk.page.locator("#canvas").bounding_box()

    def move(point: tuple[float, float]) -> None:
        x, y = desk.at(point)
        mouse.move(box["x"] + x, box["y"] + y, steps=4)

    def press_both() -> None:
        mouse.down(button="left")
        mouse.down(button="right")
        mouse.up(button="left")
        mouse.up(button="right")

    move(CENTRE)
    press_both()
    desk.page.locator("#objects").get_by_text("1 click").wait_for()
    desk.click(INSIDE)
    desk.page.locator("#objects").get_by_text("2 clicks").wait_for()
    desk.page.keyboard.press("b")
    move((40.0, 100.0))
    press_both()
    move((20.0, 20.0))  # with no button down
    desk.click((140.0, 100.0))
    desk.page.locator("#objects").get_by_text("2 clicks, 2 strokes").wait_for()
    desk.wait_saved()
    assert [event.payload["is_positive"] for event in desk.events()[1:]] == [True] * 4
    assert [len(event.payload["polyline"]) for event in desk.events()[3:]] == [1, 1]


def test_unacknowledged_events_outlive_a_reload(desk: Desk) -> None:
    offline = [True]

    def route(socket: Any) -> None:
        if not offline:
            socket.connect_to_server()

    desk.page.on("dialog", lambda dialog: dialog.accept())  # "leave although something is not saved?"
    desk.page.route_web_socket("**/ws", route)
    desk.begin()
    desk.click(CENTRE)
    desk.page.get_by_text("Offline, 2 waiting").wait_for()
    assert desk.events() == []
    offline.clear()
    desk.page.reload()
    desk.wait_image(1)
    desk.wait_saved()
    desk.page.get_by_text("1 click").wait_for()
    assert desk.kinds() == ["open", "click"]


def test_mask_that_is_not_the_shown_one_is_shown_before_it_can_be_accepted(desk: Desk) -> None:
    forged = desk.forge_first_accept()
    desk.begin()
    bare = desk.pixel(INSIDE)
    desk.click(CENTRE)
    desk.wait(lambda: desk.pixel(INSIDE) != bare)
    desk.accept()
    desk.page.get_by_text("The mask has changed since it was shown.").wait_for()
    desk.page.get_by_text("1 click").wait_for()
    assert forged and desk.kinds() == ["open", "click"]
    desk.wait(lambda: desk.pixel(INSIDE) != bare)
    desk.accept()
    desk.page.get_by_text("accepted").wait_for()
    desk.wait_saved()
    assert desk.kinds() == ["open", "click", "accept"]


def test_a_long_category_is_cut_off_and_not_the_panel(browser: Any, tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=1) as gateway:
        with gateway.services.database.begin() as conn:
            add_categories(conn, CAMPAIGN, ["m" * 150])
        with desk_at(browser, gateway) as desk:
            desk.begin()
            desk.page.locator("#categories button", has_text="mmm").wait_for()
            widths = "(list) => [...list.children].every((row) => row.offsetWidth <= list.clientWidth)"
            assert desk.page.locator("#categories").evaluate(widths)


def test_lost_lease_is_said_and_the_next_image_offered(browser: Any, tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=2, lease_s=0.5) as gateway, desk_at(browser, gateway) as desk:
        desk.begin()
        desk.page.wait_for_timeout(800)
        with gateway.http("somebody") as http:
            while Work(http).claim["image"]["number"] != 1:
                pass
        desk.click(CENTRE)
        desk.page.get_by_text("Somebody else has this image now").wait_for()
        desk.page.wait_for_timeout(800)
        desk.page.get_by_role("button", name="Next image").click()
        desk.wait_image(1)
        assert desk.events() == []


def test_wrong_token_is_asked_for_again_and_the_right_one_labels(desk: Desk) -> None:
    desk.page.goto(desk.gateway.url)
    desk.identify("wrong")
    desk.page.locator("#identity-note", has_text="token").wait_for()
    desk.identify(ADMIN_TOKEN)
    desk.page.locator("#campaigns").get_by_role("button", name="discs").click()
    desk.wait_image(1)
    desk.click(CENTRE)
    desk.wait_saved()
    assert desk.kinds() == ["open", "click"]
    assert all("401" in error for error in desk.errors)  # the browser's own line
    desk.errors.clear()


def test_leaving_the_question_who_works_changes_nothing(desk: Desk) -> None:
    desk.page.goto(desk.gateway.url)
    dialog = desk.page.locator("#identity")
    dialog.wait_for()
    desk.page.keyboard.press("Escape")
    desk.wait(lambda: desk.page.evaluate("document.activeElement.id") == "name")  # somebody has to be named
    desk.identify()
    desk.page.locator("#campaigns").get_by_role("button", name="discs").click()
    desk.wait_image(1)
    address = desk.page.url
    desk.page.locator("#who").click()
    desk.page.get_by_role("textbox", name="Your name").fill("日本")
    desk.page.get_by_role("button", name="Go on", exact=True).click()
    assert desk.page.locator("#name").evaluate("(field) => field.validity.patternMismatch") and dialog.is_visible()
    desk.page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert desk.page.url == address and desk.page.locator("#canvas").is_visible()
    assert desk.page.evaluate("localStorage['clickloop.name']") == "eve"
    desk.click(CENTRE)
    desk.wait(lambda: desk.kinds() == ["open", "click"])


def test_a_token_that_cannot_be_sent_is_said_to_be_one(desk: Desk) -> None:
    desk.page.goto(desk.gateway.url)
    desk.identify(f"{ADMIN_TOKEN}\u200b")
    assert desk.page.locator("#token").evaluate("(field) => field.validity.patternMismatch")
    desk.identify(f" {ADMIN_TOKEN} ")
    desk.page.locator("#campaigns").get_by_role("button", name="discs").wait_for()
    desk.page.evaluate("localStorage['clickloop.token'] += '\u200b'")
    desk.page.reload()
    desk.page.locator("#identity-note", has_text="cannot be sent").wait_for()
    desk.identify(ADMIN_TOKEN)
    desk.page.locator("#campaigns").get_by_role("button", name="discs").wait_for()


def test_links_and_summaries_keep_their_keys(desk: Desk) -> None:
    desk.begin()
    desk.click(CENTRE)
    desk.wait_mask()
    is_open = "document.querySelector('details').open"
    for key in ("Enter", "Space"):
        before = desk.page.evaluate(is_open)
        desk.page.locator("summary").press(key)
        desk.wait(lambda before=before: desk.page.evaluate(is_open) != before)
    desk.wait_saved()
    assert desk.kinds() == ["open", "click"]
    desk.page.get_by_role("link", name="Campaigns").press("Enter")
    desk.page.wait_for_url("**/campaigns")
