"""Outlines, flags, categories, keys and what was accepted before: the page's tools in a real browser."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from pycocotools import mask as coco

from pipeline.masks.digest import mask_digest
from pipeline.masks.rle import rle_to_mask
from pipeline.storage.campaigns import add_categories, create_campaign, get_campaign
from pipeline.storage.images import add_image, images_of
from pipeline.storage.masks import count_proposals, current_masks
from tests.browser.desk import BESIDE, CENTRE, INSIDE, Desk, desk_at
from tests.pipeline.storage.catalogues import store_import
from tests.workers.api.gateway import CAMPAIGN, Gateway, Work

pytestmark = pytest.mark.browser

CORNERS = [(30.0, 20.0), (70.0, 20.0), (70.0, 50.0), (30.0, 50.0)]
PLACES = ((0, 0), (0, 4), (3, 0), (3, 4), (0, 2))
_OUTLINES = """async (masks) => {
  const { trace, simplify, fill, distanceTo } = await import("./js/contour.js");
  return masks.map(({ height, width, pixels, tolerance }) => {
    const rings = trace({ x: 3, y: 5, width, height, pixels: Uint8Array.from(pixels) });
    const fewer = rings.map((ring) => simplify(ring, tolerance));
    const away = Math.max(0, ...rings.flatMap((ring, at) => ring.map((point) =>
      Math.min(...fewer[at].map((a, i) => distanceTo(point, a, fewer[at][(i + 1) % fewer[at].length]))))));
    const { x, y, width: w, height: h, pixels: filled } = fill(rings, width + 9, height + 9);
    return { rings, away, sizes: [rings.flat().length, fewer.flat().length], x, y, w, h, filled: [...filled] };
  });
}"""


def set_corners(desk: Desk, corners: list[tuple[float, float]]) -> None:
    for corner in corners:
        desk.click(corner)


def stored(desk: Desk) -> np.ndarray:
    """The one mask of the campaign."""
    with desk.gateway.services.database.connect() as conn:
        (mask,) = current_masks(conn, CAMPAIGN)
    return rle_to_mask(mask.rle)


def test_outlines_give_their_mask_back_and_fewer_corners_stay_near(desk: Desk) -> None:
    desk.begin()
    rng = np.random.default_rng(1)
    shapes = [(1, 1), (1, 9), (7, 1), (3, 3), *((int(h), int(w)) for h, w in rng.integers(2, 30, (30, 2)))]
    masks = [rng.random(shape) < density for shape in shapes for density in (0.3, 0.7, 1.0)]
    given = [
        {"height": m.shape[0], "width": m.shape[1], "pixels": m.ravel().astype(int).tolist(), "tolerance": t}
        for m, t in zip(masks, rng.uniform(0, 3, len(masks)).tolist(), strict=True)
    ]
    for mask, one, found in zip(masks, given, desk.page.evaluate(_OUTLINES, given), strict=True):
        canvas = np.zeros((mask.shape[0] + 9, mask.shape[1] + 9), np.bool_)
        drawn = np.array(found["filled"], np.bool_).reshape(found["h"], found["w"])
        canvas[found["y"] : found["y"] + found["h"], found["x"] : found["x"] + found["w"]] = drawn
        assert np.array_equal(canvas[5 : 5 + mask.shape[0], 3 : 3 + mask.shape[1]], mask)
        assert canvas.sum() == mask.sum()
        assert found["away"] <= one["tolerance"] + 1e-9 and found["sizes"][1] <= found["sizes"][0]
        for ring in found["rings"]:  # corners only: every side turns
            sides = [(bx - ax, by - ay) for (ax, ay), (bx, by) in pairwise([*ring, ring[0]])]
            assert all((dx == 0) != (dy == 0) for dx, dy in sides)


def test_outline_of_corners_begins_an_object_and_is_stored(desk: Desk) -> None:
    desk.begin()
    desk.page.keyboard.press("p")
    set_corners(desk, [*CORNERS, (100.0, 100.0)])
    desk.page.keyboard.press("Control+z")  # the last corner only
    assert desk.page.locator("#corners").inner_text() == "4 corners"
    desk.click(CORNERS[0])  # closes it
    desk.page.locator("#objects").get_by_text("1 outline").wait_for()
    desk.wait_saved()
    assert desk.kinds() == ["open", "mask_edit"]
    payload = desk.events()[1].payload
    assert payload["tool"] == "polygon" and len(payload["polygon"]) == 4
    desk.accept()
    desk.page.locator("#objects").get_by_text("accepted").wait_for()
    desk.page.keyboard.press("Control+Enter")
    desk.wait_image(2)
    flat = [value for corner in payload["polygon"] for value in corner]
    truth = coco.decode(coco.merge(coco.frPyObjects([flat], 120, 160))).astype(bool)
    mask = stored(desk)
    assert abs(int(mask.sum()) - 40 * 30) < 80 and (mask & truth).sum() / (mask | truth).sum() > 0.95


def test_outline_of_a_mask_is_simplified_dragged_applied_and_undone(desk: Desk) -> None:
    desk.begin()
    desk.click(CENTRE)
    desk.page.locator("#latency", has_text="model").wait_for()
    before = desk.settled(BESIDE)
    desk.page.keyboard.press("p")
    corners = desk.page.locator("#corners")
    many = int(corners.inner_text().split()[0])
    desk.page.get_by_label("Simplify").fill("6")
    few = int(corners.inner_text().split()[0])
    assert 3 <= few < many
    desk.page.get_by_label("Simplify").fill("0")
    assert int(corners.inner_text().split()[0]) > many
    desk.page.get_by_label("Simplify").fill("6")
    nothing = desk.kinds()
    start = desk.page.evaluate(
        'async () => (await import("./js/view.js")).view.polygon.rings[0].reduce((a, b) => (b[0] < a[0] ? b : a))'
    )
    desk.page.locator("#canvas").focus()
    drag(desk, tuple(start), BESIDE)
    assert desk.kinds() == nothing
    desk.page.get_by_role("button", name="Apply outline").click()
    desk.wait(lambda: desk.settled((BESIDE[0] + 4, BESIDE[1] + 3)) != before)
    desk.wait_saved()
    assert desk.kinds() == ["open", "click", "mask_edit"] and desk.page.locator("#outline").is_hidden()
    payload = desk.events()[2].payload
    assert coco.area({**payload["added"], "counts": payload["added"]["counts"].encode()}) > 100
    desk.page.keyboard.press("Control+z")
    desk.wait(lambda: desk.kinds()[-1] == "undo")
    desk.wait_mask()
    desk.page.keyboard.press("p")
    desk.page.keyboard.press("Escape")
    assert desk.page.locator("#outline").is_hidden() and desk.page.locator("#objects li").count() == 1


def test_an_outline_goes_with_its_object_and_redo_takes_no_corner(desk: Desk) -> None:
    desk.begin()
    desk.click(CENTRE)
    desk.accept()
    desk.page.keyboard.press("p")
    set_corners(desk, [*CORNERS, CORNERS[0]])
    desk.page.locator("#objects").get_by_text("1 outline").wait_for()
    desk.accept()
    picks, outline = desk.page.locator("#objects .pick"), desk.page.locator("#outline")
    desk.page.locator("#objects li", has_text="accepted").nth(1).wait_for()
    picks.nth(0).click()
    desk.page.keyboard.press("p")
    outline.wait_for()
    picks.nth(1).click()
    outline.wait_for(state="hidden")
    desk.page.keyboard.press("p")
    outline.wait_for()
    desk.page.keyboard.press("Delete")
    outline.wait_for(state="hidden")
    desk.page.keyboard.press("Enter")
    desk.page.keyboard.press("p")
    set_corners(desk, CORNERS)
    desk.page.keyboard.press("Control+z")
    desk.page.keyboard.press("Control+y")
    assert desk.page.locator("#corners").inner_text() == "3 corners"
    desk.page.keyboard.press(".")  # a click of an object, at the last corner
    outline.wait_for(state="hidden")
    desk.page.locator("#objects").get_by_text("1 click").wait_for()
    desk.wait_saved()
    made = ["open", "click", "accept", "open", "mask_edit", "accept", "delete", "open", "click"]
    assert desk.kinds() == made


def drag(desk: Desk, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag with no key held."""
    box = desk.page.locator("#canvas").bounding_box()
    (x0, y0), (x1, y1) = ((x + box["x"], y + box["y"]) for x, y in (desk.at(start), desk.at(end)))
    desk.page.mouse.move(x0, y0)
    desk.page.mouse.down()
    desk.page.mouse.move(x1, y1, steps=3)
    desk.page.mouse.up()


def test_click_on_a_mask_chooses_it_and_further_clicks_correct_it(desk: Desk) -> None:
    desk.begin()
    desk.click(CENTRE)
    desk.page.locator("#latency", has_text="model").wait_for()
    desk.accept()
    desk.page.locator("#objects").get_by_text("accepted").wait_for()
    desk.wait_saved()
    bare = desk.settled(INSIDE)
    desk.page.reload()  # what was accepted comes from the stored masks
    desk.wait_image(1)
    desk.wait(lambda: desk.settled(INSIDE) == bare)
    desk.click(INSIDE)
    desk.page.locator("#note", has_text="This object is chosen").wait_for()
    assert desk.kinds() == ["open", "click", "accept"]
    desk.click((100.0, 60.0), button="right")
    desk.page.locator("#objects").get_by_text("changed").wait_for()
    desk.wait_saved()
    assert desk.kinds() == ["open", "click", "accept", "click"]
    assert len({event.instance_id for event in desk.events()}) == 1


def test_masks_of_an_earlier_session_are_corrected_left_or_deleted(desk: Desk) -> None:
    with desk.gateway.http("ann") as http:
        work = Work(http)
        for x in (80, 70):
            instance = work.opened()
            shown = work.click(instance, x=x)["mask"]
            work.do("accept", instance, seq=work.seq, mask_sha256=shown["mask_sha256"], category=2)
        work.do("submit")
        image = work.claim["image"]["id"]
    with desk.gateway.http("eve") as http:
        correction = Work(http, image)
    desk.open(correction.session_id)
    desk.wait_image(1)
    before = desk.page.locator("#objects li", has_text="from before")
    before.nth(1).wait_for()
    assert desk.page.locator("#objects li", has_text="blob").count() == 2
    before.first.get_by_role("button").first.click()
    desk.page.keyboard.press("Escape")
    assert desk.events() == []  # choosing and leaving changes nothing
    before.first.get_by_role("button").first.click()
    desk.click((100.0, 60.0), button="right")
    desk.page.locator("#objects").get_by_text("1 click").wait_for()
    desk.wait_mask()
    desk.page.keyboard.press("Escape")  # takes it back
    desk.wait(lambda: before.count() == 2)
    desk.wait_saved()
    assert desk.kinds() == ["open", "category", "click", "undo"]
    before.first.get_by_role("button").first.click()
    desk.click(CENTRE)
    desk.click((100.0, 60.0), button="right")
    desk.accept()
    desk.page.locator("#objects").get_by_text("accepted").wait_for()
    before.first.get_by_role("button", name="Delete").click()
    desk.page.locator("#objects li").nth(1).wait_for(state="detached")
    desk.page.keyboard.press("Control+z")
    before.first.wait_for()
    desk.page.keyboard.press("Control+Enter")
    desk.wait_image(2)
    with desk.gateway.services.database.connect() as conn:
        masks = current_masks(conn, CAMPAIGN)
    assert sorted(rle_to_mask(mask.rle)[60, 100] for mask in masks) == [False, True]
    assert [mask.category_number for mask in masks] == [2, 2]


def square(row: int, column: int) -> np.ndarray:
    """A square of 30 pixels, by its place in the grid of them."""
    rows, columns = np.mgrid[:120, :160]
    return (rows // 30 == row) & (columns // 30 == column)


def propose(desk: Desk, *masks: np.ndarray) -> None:
    """Store masks of the first image as proposals, of the two categories in turn."""
    with desk.gateway.services.database.begin() as conn:
        (first, *_) = images_of(conn, CAMPAIGN)
        for index, mask in enumerate(masks):
            store_import(conn, first.id, mask, category_number=1 + index % 2, is_trusted=False)


def test_proposals_are_accepted_one_by_one_corrected_deleted_or_all_at_once(desk: Desk) -> None:
    boxes = [square(row, column) for row, column in ((0, 0), (0, 4), (3, 0), (3, 4), (0, 2))]
    propose(desk, *boxes)
    desk.begin()
    proposals = desk.page.locator("#objects li", has_text="proposal")
    proposals.nth(4).wait_for()
    desk.click((45.0 - 30, 15.0))
    desk.page.keyboard.press("Enter")  # as it is
    proposals.nth(4).wait_for(state="detached")
    desk.click((135.0, 15.0))
    desk.page.keyboard.press("b")
    desk.drag((110, 15), (112, 15))  # with a little more
    desk.page.keyboard.press("Escape")
    desk.accept()
    desk.click((15.0, 105.0))
    desk.page.keyboard.press("Delete")
    desk.wait(lambda: proposals.count() == 2)
    desk.page.keyboard.press("Control+Enter")
    desk.page.locator("#note", has_text="2 proposals are not accepted").wait_for()
    desk.page.get_by_role("button", name="Accept 2 proposals").click()
    desk.wait(lambda: desk.page.locator("#objects li", has_text="accepted").count() == 4)
    desk.wait_saved()
    desk.page.keyboard.press("Control+Enter")
    desk.wait_image(2)
    with desk.gateway.services.database.connect() as conn:
        masks = current_masks(conn, CAMPAIGN)
        assert count_proposals(conn, CAMPAIGN) == 0
    stored = {mask.mask_sha256: mask.category_number for mask in masks}
    assert [stored.get(mask_digest(boxes[index])) for index in range(5)] == [1, None, None, 2, 1]
    (grown,) = [rle_to_mask(m.rle) for m in masks if m.mask_sha256 not in {mask_digest(box) for box in boxes}]
    assert grown[boxes[1]].all() and grown[15, 108] and grown.sum() > boxes[1].sum()


def test_proposals_that_were_taken_back_are_still_to_be_decided_on(desk: Desk) -> None:
    propose(desk, square(0, 0), square(3, 4))
    desk.begin()
    proposals = desk.page.locator("#objects li", has_text="proposal")
    proposals.nth(1).wait_for()
    desk.click((15.0, 15.0))
    desk.click((20.0, 20.0))
    desk.page.locator("#objects").get_by_text("1 click").wait_for()
    desk.wait_mask()
    desk.page.keyboard.press("Escape")
    proposals.nth(1).wait_for()
    desk.page.keyboard.press("Control+Enter")
    desk.page.locator("#note", has_text="2 proposals are not accepted").wait_for()
    desk.page.get_by_role("button", name="Accept 2 proposals").click()
    desk.page.locator("#objects li", has_text="accepted").nth(1).wait_for()
    desk.wait_saved()
    desk.page.keyboard.press("Control+Enter")
    desk.wait_image(2)
    with desk.gateway.services.database.connect() as conn:
        masks = current_masks(conn, CAMPAIGN)
    wanted = {(mask_digest(square(0, 0)), 1), (mask_digest(square(3, 4)), 2)}
    assert {(mask.mask_sha256, mask.category_number) for mask in masks} == wanted


def test_undo_goes_back_over_objects_and_redo_forward(desk: Desk) -> None:
    """What was done last is undone first, whichever object it was done to: two deleted ones come back."""
    propose(desk, square(0, 0), square(3, 4))
    desk.begin()
    objects, states, page = desk.page.locator("#objects li"), desk.page.locator("#objects small"), desk.page
    objects.nth(1).wait_for()
    for _ in range(2):
        objects.first.get_by_role("button", name="Delete").click()
    page.keyboard.press("b")
    desk.drag((80, 60), (90, 60))
    desk.accept()
    desk.wait(lambda: states.all_inner_texts() == ["accepted"])
    page.keyboard.press("Control+z")
    desk.wait(lambda: states.all_inner_texts() == ["1 stroke"])
    page.keyboard.press("Control+z")
    objects.first.wait_for(state="detached")
    for count in (1, 2):
        page.keyboard.press("Control+z")
        desk.wait(lambda count=count: objects.count() == count)
    assert page.locator("#objects li", has_text="proposal").count() == 2
    assert page.get_by_role("button", name="Undo").is_disabled()
    desk.wait_saved()
    page.reload()  # the order outlives it
    objects.nth(1).wait_for()
    page.locator("#canvas").focus()
    for _ in range(4):
        page.keyboard.press("Control+y")
    desk.wait(lambda: states.all_inner_texts() == ["accepted"])
    desk.drag((20, 20), (30, 20))
    desk.wait_saved()
    assert page.get_by_role("button", name="Redo").is_disabled()


def test_keys_of_another_script_are_those_of_their_place(desk: Desk) -> None:
    desk.begin()
    press = """([key, code, ctrlKey]) => document.querySelector("#canvas").dispatchEvent(
      new KeyboardEvent("keydown", { key, code, ctrlKey, bubbles: true, cancelable: true }))"""
    desk.page.evaluate(press, ["и", "KeyB", False])  # B on a Cyrillic keyboard
    assert desk.page.locator("#brush").get_attribute("aria-pressed") == "true"
    desk.drag((80, 60), (90, 60))
    desk.page.locator("#objects").get_by_text("1 stroke").wait_for()
    desk.page.evaluate(press, ["я", "KeyZ", True])
    desk.page.locator("#objects li").wait_for(state="detached")
    desk.page.evaluate(press, ["ü", "BracketLeft", False])  # no sign of ours on a German one
    radius = "async () => (await import('./js/desk.js')).desk.radius"
    assert desk.page.evaluate(radius) == 8
    desk.page.evaluate(press, ["х", "BracketLeft", False])
    assert desk.page.evaluate(radius) < 8


def test_unsure_is_flagged_and_taken_back(desk: Desk) -> None:
    desk.begin()
    desk.click(CENTRE)
    desk.page.keyboard.press("u")
    desk.page.locator("#objects").get_by_text("unsure").wait_for()
    desk.page.get_by_role("button", name="Unsure", exact=True).click()
    desk.page.locator("#objects").get_by_text("unsure").wait_for(state="hidden")
    desk.page.keyboard.press("Control+z")
    desk.page.locator("#objects").get_by_text("unsure").wait_for()
    desk.wait_saved()
    assert [e.payload.get("unsure", e.kind) for e in desk.events()] == ["open", "click", True, False, "undo"]


def test_accepting_what_is_accepted_already_adds_nothing(desk: Desk) -> None:
    desk.begin()
    desk.click(CENTRE)
    desk.accept()
    desk.click(CENTRE)
    desk.page.locator("#objects [aria-pressed=true]").wait_for()
    desk.page.keyboard.press("Enter")
    desk.wait(lambda: desk.page.locator("#objects [aria-pressed=true]").count() == 0)
    desk.click(CENTRE)
    desk.page.keyboard.press("2")
    desk.page.keyboard.press("Enter")
    desk.wait_saved()
    assert desk.kinds() == ["open", "click", "accept", "category", "accept"]


def test_box_tool_and_negative_button_need_no_other_hand(desk: Desk) -> None:
    desk.begin()
    desk.page.keyboard.press("r")
    drag(desk, (36, 16), (124, 100))
    desk.page.locator("#objects").get_by_text("1 box").wait_for()
    desk.page.get_by_role("button", name="Negative").click()
    desk.click(BESIDE)
    desk.page.keyboard.press("x")
    desk.click(CENTRE)
    desk.wait_saved()
    assert [event.payload.get("is_positive") for event in desk.events()[2:]] == [False, True]


def test_keys_of_other_tools(desk: Desk) -> None:
    desk.begin()
    desk.page.keyboard.press("?")
    desk.page.get_by_label("Keys as in").select_option("labelme")
    desk.page.get_by_text("Shift+click", exact=True).wait_for()
    desk.page.get_by_role("button", name="Close").click()
    desk.click(CENTRE)
    desk.click(BESIDE, modifiers=["Shift"])
    desk.wait_saved()
    assert [event.payload.get("is_positive") for event in desk.events()] == [None, True, False]
    desk.page.reload()  # the choice stays
    desk.wait_image(1)
    desk.page.locator("#objects").get_by_text("2 clicks").wait_for()
    desk.page.keyboard.press("?")
    desk.page.get_by_label("Keys as in").select_option("cvat")
    titles = {
        name: desk.page.locator(f"#{name}").get_attribute("title") for name in ("fill", "submit", "brush", "help")
    }
    assert titles == {
        "fill": "Shift+F",  # F submits here
        "submit": "F or Ctrl+Enter",
        "brush": "B; [ and ] change its size",
        "help": "Keys and mouse (?)",
    }
    desk.page.get_by_role("button", name="Close").click()
    desk.page.keyboard.press("Control+2")
    desk.page.locator("#objects", has_text="1 blob").wait_for()
    desk.wait(lambda: desk.page.locator("#accept").is_enabled() and desk.pixel(INSIDE) is not None)
    desk.wait_mask()
    desk.page.keyboard.press("n")
    desk.page.locator("#objects").get_by_text("accepted").wait_for()
    desk.page.keyboard.press("f")
    desk.wait_image(2)


def test_one_image_is_labelled_by_keys_alone(desk: Desk) -> None:
    desk.page.goto(desk.gateway.url)
    desk.page.get_by_role("textbox", name="Your name").wait_for()
    desk.page.keyboard.type("eve")
    desk.page.keyboard.press("Enter")
    desk.page.locator("#campaigns").get_by_role("button", name="discs").wait_for()
    for _ in range(8):
        if desk.page.evaluate("document.activeElement.closest('button')?.textContent.includes('discs')"):
            break
        desk.page.keyboard.press("Tab")
    desk.page.keyboard.press("Enter")
    desk.wait_image(1)
    assert desk.page.evaluate("document.activeElement.id") == "canvas"
    desk.page.keyboard.press("ArrowLeft")  # the crosshair appears in the middle
    desk.page.keyboard.press(".")
    desk.page.locator("#latency", has_text="model").wait_for()
    for _ in range(20):
        desk.page.keyboard.press("ArrowLeft")
    desk.page.keyboard.press("Shift+ArrowUp")
    desk.page.keyboard.press(",")
    desk.page.locator("#objects").get_by_text("2 clicks").wait_for()
    desk.page.keyboard.press("2")
    desk.accept()
    desk.page.locator("#objects").get_by_text("accepted").wait_for()
    desk.wait_saved()
    inside, outside = (event.payload for event in desk.events() if event.kind == "click")
    assert (inside["x"], inside["y"]) == pytest.approx(CENTRE, abs=0.5)
    assert inside["x"] - outside["x"] > 40 and 0 < inside["y"] - outside["y"] < 0.5 and not outside["is_positive"]
    desk.page.keyboard.press("Control+Enter")
    desk.wait_image(2)
    assert stored(desk)[60, 80]


def with_categories(browser: Any, gateway: Gateway, names: list[str], run: Any) -> None:
    """The page as it is with other categories."""
    categories = [{"number": number, "name": name} for number, name in enumerate(names, 1)]

    def answer(route: Any) -> None:
        reply = route.fetch()
        body = reply.json()
        route.fulfill(response=reply, json={**body, "categories": categories} if "categories" in body else body)

    with desk_at(browser, gateway) as desk:
        desk.page.route("**/api/sessions/*", answer)
        desk.page.route("**/api/sessions/*/open", answer)
        run(desk)


def test_categories_are_found_among_hundreds_and_their_markup_is_text(browser: Any, gateway: Gateway) -> None:
    names = [f"class {number}" for number in range(1, 301)]
    names[41] = "<img src=x onerror=\"document.title='run'\">&amp;"

    def run(desk: Desk) -> None:
        desk.begin()
        desk.click(CENTRE)
        desk.page.keyboard.press("/")
        desk.page.keyboard.type("ONERROR")
        buttons = desk.page.locator("#categories button")
        desk.wait(lambda: buttons.count() == 1)
        assert names[41] in buttons.inner_text()
        desk.page.keyboard.press("Escape")
        desk.wait(lambda: buttons.count() == 300)
        desk.page.keyboard.press("/")
        desk.page.keyboard.type("class 2")
        desk.page.keyboard.press("Enter")
        assert desk.page.evaluate("document.activeElement.id") == "canvas"
        desk.page.locator("#objects", has_text="1 class 2").wait_for()
        assert desk.page.title() == "Clickloop"
        panel = desk.page.locator("aside").bounding_box()
        assert panel["height"] <= 640 and desk.page.locator("#submit").is_visible()

    with_categories(browser, gateway, names, run)


@pytest.mark.parametrize(("width", "height"), [(1024, 600), (683, 400), (390, 844)])
def test_the_image_can_be_finished_without_scrolling_on_small_screens(
    browser: Any, gateway: Gateway, width: int, height: int
) -> None:
    """A small laptop, a browser zoomed in, a phone: with many categories and all that the panel may hold."""
    with gateway.services.database.begin() as conn:
        add_categories(conn, CAMPAIGN, [f"category {number}" for number in range(30)])
    screen = {"viewport": {"width": width, "height": height}, "forced_colors": "active"}
    with desk_at(browser, gateway, **screen) as desk:
        desk.begin()
        desk.click(CENTRE)
        desk.page.locator("#candidates button").nth(1).wait_for()
        for name in ("Accept object", "Submit image"):
            box = desk.page.get_by_role("button", name=name).bounding_box()
            assert box["y"] > 0 and box["y"] + box["height"] <= height
        assert desk.page.evaluate("document.documentElement.scrollWidth") == width
        assert desk.page.locator("#where").bounding_box()["width"] > 100
        colours = "one => [getComputedStyle(one).backgroundColor, getComputedStyle(one).borderColor]"
        chosen, other = (desk.page.locator("#categories button").nth(place).evaluate(colours) for place in (0, 1))
        assert chosen != other  # in the system's own colours, too
        swatches = desk.page.locator("#categories .swatch")
        assert swatches.nth(0).evaluate(colours)[0] != swatches.nth(1).evaluate(colours)[0]


@pytest.mark.parametrize("width", [320, 375, 414])
def test_the_image_stays_where_it_is_under_a_finger(browser: Any, gateway: Gateway, width: int) -> None:
    with desk_at(browser, gateway, viewport={"width": width, "height": 720}) as desk:
        desk.begin()
        desk.page.locator("#progress", has_text="labeled").wait_for()
        place = desk.page.locator("#canvas").bounding_box()
        desk.click(CENTRE)
        desk.wait_saved()
        desk.wait(lambda: desk.page.locator("#latency").text_content())
        assert desk.page.locator("#canvas").bounding_box() == place
        desk.page.context.set_offline(True)
        desk.click(BESIDE, button="right")
        desk.page.locator("#badge", has_text="Offline, 1 waiting").wait_for()
        assert desk.page.locator("#canvas").bounding_box() == place
        desk.errors.clear()  # the browser's own lines
        desk.page.context.set_offline(False)
        desk.wait_saved()


def test_looks_open_in_view_on_a_small_screen(browser: Any, gateway: Gateway) -> None:
    with desk_at(browser, gateway, viewport={"width": 800, "height": 600}) as desk:
        desk.begin()
        desk.page.get_by_text("Looks").click()
        bottom = "(id) => document.querySelector(id).getBoundingClientRect().bottom"
        finish = desk.page.locator(".finish").bounding_box()["y"]
        desk.wait(lambda: desk.page.evaluate(bottom, "#crosshair") <= finish)


def test_the_image_takes_keys_from_screen_readers_and_says_which(desk: Desk) -> None:
    desk.begin()
    image = desk.page.get_by_role("application", name="Image ")
    assert image.count() == 1
    tree = desk.page.context.new_cdp_session(desk.page).send("Accessibility.getFullAXTree")["nodes"]
    [node] = [node for node in tree if node.get("role", {}).get("value") == "application"]
    assert node["description"]["value"].startswith("Arrows move the crosshair")


def test_what_is_said_later_has_its_place_before(desk: Desk) -> None:
    desk.begin()
    desk.page.locator("#note:empty").wait_for(state="attached")
    assert [place.get_attribute("id") for place in desk.page.get_by_role("status").all()] == ["badge", "note"]
    desk.page.goto(f"{desk.gateway.url}/campaigns")
    desk.page.get_by_role("link", name="discs").wait_for()
    assert desk.page.locator("#problem").and_(desk.page.get_by_role("alert")).count() == 1
    assert desk.page.locator("#said").and_(desk.page.get_by_role("status")).count() == 1


def test_text_grows_with_the_size_that_the_reader_wants(desk: Desk) -> None:
    desk.begin()
    size = "() => parseFloat(getComputedStyle(document.querySelector('#submit')).fontSize)"
    before = desk.page.evaluate(size)
    desk.page.evaluate("document.documentElement.style.fontSize = '200%'")
    assert desk.page.evaluate(size) == 2 * before


def test_a_category_is_chosen_for_one_campaign(desk: Desk) -> None:
    desk.begin()
    desk.page.keyboard.press("2")
    desk.page.keyboard.press("Control+Enter")
    desk.page.keyboard.press("Control+Enter")
    desk.wait_image(2)
    chosen = desk.page.locator("#categories [aria-pressed=true] .name")
    assert chosen.inner_text() == "blob"
    with desk.gateway.services.database.begin() as conn:
        pets = str(uuid4())
        mine = get_campaign(conn, CAMPAIGN)
        model: dict[str, Any] = {
            "model_id": mine.model_id,
            "model_digest": mine.model_digest,
            "model_key": mine.model_key,
        }
        create_campaign(conn, campaign_id=pets, name="pets", source_url="x", labels=["cat", "dog"], **model)
        image: dict[str, Any] = images_of(conn, CAMPAIGN)[0].model_dump(
            include={"uri", "file_name", "sha256", "width", "height"}
        )
        facts: dict[str, Any] = {"version": "1", "phash": "0" * 16, "group_key": "x", "format": "PNG", "size_bytes": 1}
        add_image(conn, pets, uri_sha256="0" * 64, **image, **facts)
    desk.page.get_by_role("button", name="Leave").click()
    desk.page.get_by_role("button", name="pets").click()
    desk.wait_image(1)
    assert chosen.inner_text() == "cat"


def test_looks_are_kept(desk: Desk) -> None:
    desk.begin()
    desk.click(CENTRE)
    before = desk.settled(INSIDE)
    desk.page.get_by_text("Looks").click()
    desk.page.get_by_label("Opacity of masks").fill("1")
    desk.page.get_by_label("Opacity of masks").dispatch_event("change")
    opaque = desk.settled(INSIDE)
    assert opaque != before
    desk.page.get_by_label("Colour by").select_option("object")
    desk.page.get_by_label("Crosshair").check()
    desk.page.mouse.move(300, 300)
    desk.page.keyboard.down("h")
    desk.page.wait_for_timeout(500)
    hidden = desk.pixel(INSIDE)
    desk.page.keyboard.up("h")
    assert hidden != opaque
    desk.wait(lambda: desk.pixel(INSIDE) != hidden)
    desk.page.keyboard.press("h")
    assert desk.page.locator("#hide").get_attribute("aria-pressed") == "true"
    desk.page.reload()
    desk.page.get_by_text("Looks").click()
    assert desk.page.get_by_label("Crosshair").is_checked()
    assert desk.page.get_by_label("Colour by").input_value() == "object"


def fingers(desk: Desk) -> Callable[..., None]:
    """Sends a touch event of a kind, with the points of the canvas that fingers are on."""
    client = desk.page.context.new_cdp_session(desk.page)
    box = desk.page.locator("#canvas").bounding_box()

    def touch(kind: str, *points: tuple[float, float]) -> None:
        placed = [{"x": box["x"] + x, "y": box["y"] + y, "id": n} for n, (x, y) in enumerate(points)]
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": placed})

    return touch


def test_fingers_click_and_pinch(browser: Any, gateway: Gateway) -> None:
    with desk_at(browser, gateway, has_touch=True, viewport={"width": 820, "height": 1180}) as desk:
        desk.begin()
        box, touch = desk.page.locator("#canvas").bounding_box(), fingers(desk)
        scale = "async () => (await import('./js/view.js')).view.scale"
        before = desk.page.evaluate(scale)
        x, y = desk.at(CENTRE)
        touch("touchStart", (x - 40, y), (x + 40, y))
        for apart in (60, 80):
            touch("touchMove", (x - apart, y), (x + apart, y))
        touch("touchEnd")
        desk.wait(lambda: desk.page.evaluate(scale) > 1.5 * before)
        assert desk.kinds() == []
        desk.page.get_by_role("button", name="Fit").click()
        desk.page.touchscreen.tap(box["x"] + x, box["y"] + y)
        desk.page.locator("#objects").get_by_text("1 click").wait_for()
        desk.page.get_by_role("button", name="Negative").click()
        x, y = desk.at(BESIDE)
        desk.page.touchscreen.tap(box["x"] + x, box["y"] + y)
        desk.wait_saved()
        desk.wait(lambda: len(desk.events()) == 3)
        assert [event.payload["is_positive"] for event in desk.events()[1:]] == [True, False]
        first = desk.events()[1].payload
        assert (first["x"], first["y"]) == pytest.approx(CENTRE, abs=0.7)


def test_two_fingers_set_no_corner_of_an_outline(browser: Any, gateway: Gateway) -> None:
    """The first one did, as it comes down before the second."""
    with desk_at(browser, gateway, has_touch=True) as desk:
        desk.begin()
        desk.page.keyboard.press("p")
        box, touch = desk.page.locator("#canvas").bounding_box(), fingers(desk)
        corners = "async () => (await import('./js/view.js')).view.polygon.size"
        x, y = desk.at(CENTRE)
        for count, beside in ((0, 0), (1, 90)):
            touch("touchStart", (x - 40, y + beside))
            touch("touchStart", (x - 40, y + beside), (x + 40, y + beside))
            touch("touchMove", (x - 41, y + beside), (x + 41, y + beside))
            touch("touchEnd")
            assert desk.page.evaluate(corners) == count
            desk.page.touchscreen.tap(box["x"] + x, box["y"] + y)
            desk.wait(lambda wanted=count + 1: desk.page.evaluate(corners) == wanted)


def test_keys_go_on_after_a_slider_was_moved(desk: Desk) -> None:
    """Enter did not apply the outline that the slider had just simplified."""
    desk.begin()
    desk.click(CENTRE)
    desk.wait_mask()
    desk.page.keyboard.press("p")
    slider = desk.page.get_by_label("Simplify")
    slider.click(position={"x": 60, "y": 5})
    chosen = float(slider.input_value())
    slider.press("ArrowRight")
    assert float(slider.input_value()) == chosen + 0.5
    desk.page.keyboard.press("Enter")
    desk.page.locator("#outline").wait_for(state="hidden")
    desk.wait_saved()
    assert desk.kinds() == ["open", "click", "mask_edit"]


def test_a_hand_beside_the_pen_paints_nothing(browser: Any, gateway: Gateway) -> None:
    with desk_at(browser, gateway, has_touch=True) as desk:
        desk.begin()
        desk.page.keyboard.press("b")
        client = desk.page.context.new_cdp_session(desk.page)
        box = desk.page.locator("#canvas").bounding_box()

        def place(point: tuple[float, float]) -> dict[str, float]:
            x, y = desk.at(point)
            return {"x": box["x"] + x, "y": box["y"] + y}

        def pen(kind: str, point: tuple[float, float]) -> None:
            held = {"button": "left", "buttons": 1, "pointerType": "pen", "clickCount": 1}
            client.send("Input.dispatchMouseEvent", {"type": kind, **place(point), **held})

        pen("mousePressed", (60, 40))
        pen("mouseMoved", (64, 40))
        for x in (130, 140):
            kind = "touchStart" if x == 130 else "touchMove"
            client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{**place((x, 100)), "id": 1}]})
        pen("mouseMoved", (70, 40))
        client.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        pen("mouseReleased", (70, 40))
        desk.wait(lambda: len(desk.events()) == 2)
        assert all(y == pytest.approx(40, abs=1) for _, y in desk.events()[1].payload["polyline"])
