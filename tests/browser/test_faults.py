"""The page while things break: a killed gateway, broken frames, busy answers, images that do not come, lost leases."""

import re
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.storage.sessions import session_events
from schemas.errors import BusyError
from schemas.events import MAX_BRUSH_BYTES
from schemas.settings import Settings
from tests.browser import gateway_process
from tests.browser.desk import BESIDE, CENTRE, INSIDE, Desk, desk_at
from tests.workers.api.gateway import CAMPAIGN, Gateway, Work, gateway_in, put

pytestmark = pytest.mark.browser


def test_killed_gateway_costs_no_event(browser: Any, tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=2) as set_up:  # a second gateway on the same database
        port = gateway_process.free_port()
        process = gateway_process.start(tmp_path, port)
        try:
            with desk_at(browser, Gateway(f"http://127.0.0.1:{port}", set_up.services, set_up.server)) as desk:
                desk.begin()
                bare = desk.pixel(INSIDE)
                desk.click(CENTRE)
                desk.wait_saved()
                process.kill()
                process.wait()
                desk.page.get_by_text("Offline").wait_for()
                desk.click(BESIDE, button="right")
                desk.click((40.0, 60.0), button="right")
                desk.page.get_by_text("Offline, 2 waiting").wait_for()
                assert desk.kinds() == ["open", "click"]
                process = gateway_process.start(tmp_path, port)
                desk.wait_saved()
                desk.wait(lambda: desk.pixel(INSIDE) != bare)
                assert desk.kinds() == ["open", "click", "click", "click"]
                desk.accept()
                desk.page.locator("#objects").get_by_text("accepted").wait_for()
                desk.page.keyboard.press("Control+Enter")
                desk.wait_image(2)
                desk.errors[:] = [error for error in desk.errors if "ERR_CONNECTION" not in error]
        finally:
            process.kill()
            process.wait()


def test_broken_frames_and_busy_answers_are_survived(desk: Desk) -> None:
    broken: list[str] = []

    def break_one(socket: Any) -> None:
        server = socket.connect_to_server()

        def pass_on(message: str) -> None:
            if '"type":"mask"' in message.replace(" ", "") and len(broken) < 2:
                broken.append(message)
                socket.send(message[: len(message) // 2] if len(broken) == 1 else "17")
            else:
                socket.send(message)

        server.on_message(pass_on)

    refused: list[str] = []

    def busy(route: Any) -> None:
        if len(refused) < 2:
            refused.append(route.request.url)
            error = {"code": "busy", "message": "All refiners are busy."}
            route.fulfill(status=503, json={"error": error})
        else:
            route.continue_()

    desk.page.route_web_socket("**/ws", break_one)
    desk.page.route("**/api/images/*/content", busy)
    desk.begin()
    assert len(refused) == 2
    bare = desk.pixel(INSIDE)
    desk.click(CENTRE)
    desk.wait(lambda: desk.pixel(INSIDE) != bare)
    desk.click(BESIDE, button="right")
    desk.wait(lambda: len(broken) == 2)  # an event is saved before its mask is there
    desk.wait_mask()
    desk.wait_saved()
    assert desk.kinds() == ["open", "click", "click"]
    assert all("503" in error for error in desk.errors)  # the browser's own lines
    desk.errors.clear()


def test_proxy_without_a_server_is_waited_out(desk: Desk) -> None:
    gone, torn = (502, "<html>Bad Gateway</html>"), (200, '{"results": [')
    waiting = {
        "content": [gone],
        "sessions": [torn, (504, "")],
        "claim": [(503, '{"error": "down"}')],
        "campaigns": [torn],
    }

    def away(route: Any) -> None:
        left = waiting[next(path for path in waiting if f"/{path}" in route.request.url)]
        if left:
            status, body = left.pop()
            route.fulfill(status=status, body=body)
        else:
            route.continue_()

    desk.page.route(re.compile(r"/api/(campaigns$|campaigns/.*/claim|sessions/[^/]*$|images/.*/content)"), away)
    desk.begin()
    assert not any(waiting.values())
    assert all("50" in error for error in desk.errors)  # the browser's own lines
    desk.errors.clear()


def test_refusal_after_a_claim_leads_back_to_the_start(desk: Desk) -> None:
    desk.begin()
    error = {"code": "not_found", "message": "No session like that."}
    desk.page.route("**/api/sessions/*", lambda route: route.fulfill(status=404, json={"error": error}))
    desk.page.keyboard.press("Control+Enter")
    desk.page.keyboard.press("Control+Enter")
    desk.page.locator("#start-note", has_text="No session like that.").wait_for()
    desk.page.unroute("**/api/sessions/*")
    desk.page.locator("#campaigns").get_by_role("button", name="discs").click()
    desk.wait_image(3)
    desk.page.route(
        "**/claim",
        lambda route: route.fulfill(status=409, json={"error": {"code": "paused", "message": "It is paused."}}),
    )
    desk.page.keyboard.press("Control+Enter")
    desk.page.keyboard.press("Control+Enter")
    desk.page.locator("#start-note", has_text="It is paused.").wait_for()
    assert desk.page.locator("#desk").is_hidden()
    desk.errors[:] = [line for line in desk.errors if "404" not in line and "409" not in line]


def test_image_that_cannot_be_shown_can_be_skipped(desk: Desk) -> None:
    asked: list[str] = []

    def spoil(route: Any) -> None:
        asked.append(route.request.url)
        if len(asked) == 1:
            route.fulfill(body=b"no image", content_type="image/png")
        elif len(asked) == 2 or route.request.url == asked[1]:
            error = {"code": "corrupt_data", "message": "The file has changed."}
            route.fulfill(status=409, json={"error": error})
        else:
            route.continue_()

    desk.page.route("**/api/images/*/content", spoil)
    desk.page.goto(desk.gateway.url)
    desk.identify()
    desk.page.locator("#campaigns").get_by_role("button", name="discs").click()
    desk.page.get_by_text("This browser cannot show this image.").wait_for()
    first = desk.session_id
    desk.page.get_by_role("button", name="Skip it").click()
    desk.page.locator("#gate", has_text="The file has changed.").wait_for()
    assert desk.session_id != first
    desk.page.locator("#gate").get_by_role("button", name="Skip it").click()
    desk.wait_image(3)
    with desk.gateway.services.database.connect() as conn:
        assert session_events(conn, first)[-1].payload["reason"] == "not displayable"
    desk.errors[:] = [error for error in desk.errors if "409" not in error]


def test_work_on_a_lost_image_can_be_put_back(browser: Any, tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=1, lease_s=0.5) as gateway, desk_at(browser, gateway) as desk:
        desk.begin()
        desk.page.keyboard.press("2")
        desk.click(CENTRE)
        desk.page.locator("#latency", has_text="model").wait_for()
        desk.accept()
        desk.page.locator("#objects").get_by_text("accepted").wait_for()
        desk.wait_saved()
        desk.page.wait_for_timeout(800)
        with gateway.http("somebody") as http:
            work = Work(http)
            desk.click(BESIDE, modifiers=["Control"])
            desk.page.get_by_text("Somebody else has this image now").wait_for()
            work.do("release")
        lost = desk.session_id
        desk.page.get_by_role("button", name="Next image").click()
        desk.page.get_by_text("2 objects are kept").wait_for()
        desk.page.get_by_role("button", name="Put it back").click()
        desk.page.locator("#objects li").nth(1).wait_for()
        desk.wait_saved()
        assert desk.session_id != lost
        assert desk.kinds() == ["open", "click", "category", "open", "click"]
        assert desk.events()[2].payload["category"] == 2
        desk.page.reload()
        desk.wait_image(1)
        desk.page.locator("#objects li").nth(1).wait_for()
        assert desk.page.locator("#draft").is_hidden()


def test_work_on_an_image_that_was_lost_while_the_page_was_closed_can_be_put_back(browser: Any, tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=1, lease_s=0.5) as gateway, desk_at(browser, gateway) as desk:
        desk.begin()
        desk.click(CENTRE)
        desk.wait_mask()
        desk.wait_saved()
        address = desk.page.url
        desk.page.goto("about:blank")
        desk.page.wait_for_timeout(800)
        with gateway.http("somebody") as http:
            Work(http).do("release")
        desk.page.goto(address)
        desk.page.locator("#start-note", has_text="kept as a draft").wait_for()
        desk.page.locator("#campaigns").get_by_role("button", name="discs").click()
        desk.page.get_by_text("1 object is kept").wait_for()
        desk.page.get_by_role("button", name="Put it back").click()
        desk.page.locator("#objects").get_by_text("1 click").wait_for()
        desk.wait_saved()
        assert desk.page.url != address and desk.kinds() == ["open", "click"]


def test_leaving_an_image_with_objects_is_asked_twice_and_they_can_be_put_back(desk: Desk) -> None:
    desk.begin()
    desk.click(CENTRE)
    desk.accept()
    leave = desk.page.get_by_role("button", name="Leave")
    leave.click()
    desk.page.locator("#note", has_text="Your object is not submitted").wait_for()
    desk.wait_saved()
    assert "release" not in desk.kinds()
    left = desk.session_id
    leave.click()
    desk.page.locator("#campaigns").get_by_role("button", name="discs").click()
    desk.page.get_by_text("1 object is kept").wait_for()
    desk.page.get_by_role("button", name="Put it back").click()
    desk.page.locator("#objects li").wait_for()
    desk.wait_saved()
    assert desk.session_id != left and desk.kinds() == ["open", "click", "category"]


def test_a_draft_is_kept_while_the_server_is_busy(desk: Desk) -> None:
    """It was forgotten for good when its events could not be read at once."""
    asked: list[str] = []

    def busy_at_first(route: Any) -> None:
        asked.append(route.request.url)
        if len(asked) > 1:
            route.continue_()
        else:
            route.fulfill(status=503, json={"error": {"code": "busy", "message": "Too many reads are waiting."}})

    desk.begin()
    desk.click(CENTRE)
    desk.accept()
    desk.click(CENTRE)
    desk.page.keyboard.press("u")
    desk.wait_saved()
    for _ in range(2):
        desk.page.get_by_role("button", name="Leave").click()
    desk.page.locator("#campaigns").get_by_role("button", name="discs").wait_for()
    left = desk.page.evaluate("Object.values(JSON.parse(localStorage['clickloop.drafts']))[0]")
    desk.page.route(f"**/api/sessions/{left}/events", busy_at_first)
    desk.page.locator("#campaigns").get_by_role("button", name="discs").click()
    desk.page.get_by_role("button", name="Put it back").click()
    desk.page.locator("#objects").get_by_text("unsure").wait_for()
    assert len(asked) == 2 and all("503" in error for error in desk.errors)  # the browser's own lines
    desk.errors.clear()


def test_a_mask_that_is_waited_for_is_forgotten_with_its_image(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next image was told that it has to wait, and the time that it took."""

    async def busy(_request: object) -> None:
        raise BusyError("No refiner answers in time.")

    desk.begin()
    with monkeypatch.context() as down:
        down.setattr(desk.gateway.services.refining._service, "refine", busy)
        desk.click(CENTRE)
        desk.page.locator("#note", has_text="The mask has to wait").wait_for()
        desk.wait_saved()
        asked: list[str] = []
        desk.page.on("request", lambda request: asked.append(request.url) if "/mask?" in request.url else None)
        desk.page.evaluate("location.hash = ''")
        desk.page.locator("#campaigns").get_by_role("button", name="discs").wait_for()
        before = len(asked)
        desk.page.wait_for_timeout(3000)
        assert len(asked) == before
    assert desk.page.locator("#latency").inner_text() == ""
    assert all("503" in error for error in desk.errors)  # the browser's own lines
    desk.errors.clear()


def test_one_call_at_a_time_waits_for_the_mask_of_an_object(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each click that had no mask went on asking, which kept busy refiners busy."""
    asked: list[float] = []
    service = desk.gateway.services.refining._service

    async def busy(_request: object) -> None:
        asked.append(time.monotonic())
        raise BusyError("No refiner answers in time.")

    desk.begin()
    with monkeypatch.context() as down:
        down.setattr(service, "refine", busy)
        for x in range(60, 90, 5):
            desk.click((float(x), 60.0))
            desk.wait_saved()
        desk.page.wait_for_timeout(500)
        asked.clear()
        desk.page.wait_for_timeout(6000)
        assert 0 < len(asked) <= 5
    desk.wait_mask()
    assert all("503" in error for error in desk.errors)  # the browser's own lines
    desk.errors.clear()


def test_a_claim_that_waits_gives_way_to_what_is_opened_meanwhile(desk: Desk) -> None:
    """Each click claimed an image of its own once the server was back, also over what was opened since."""
    desk.begin()
    desk.click(CENTRE)
    desk.wait_saved()
    desk.page.goto("about:blank")
    desk.page.goto(desk.gateway.url)
    desk.page.locator("#unfinished button").wait_for()
    busy = {"error": {"code": "busy", "message": "Too many writes are waiting."}}
    desk.page.route("**/claim", lambda route: route.fulfill(status=503, json=busy))
    for _ in range(3):
        desk.page.locator("#campaigns").get_by_role("button", name="discs").click()
        desk.page.locator("#start-note", has_text="Too many writes").wait_for()
    desk.page.locator("#unfinished button").click()
    desk.wait_image(1)
    desk.page.unroute("**/claim")
    desk.page.wait_for_timeout(4000)
    assert desk.page.locator("#where").inner_text().startswith("Image 1 ")
    with desk.gateway.http("eve") as http:
        assert http.get("/api/sessions").json()["count"] == 1
    assert all("503" in error for error in desk.errors)  # the browser's own lines
    desk.errors.clear()


def test_what_is_saved_is_not_said_to_be_saving_while_the_next_image_is_claimed(desk: Desk) -> None:
    desk.begin()
    desk.click(CENTRE)
    desk.accept()
    desk.wait_saved()
    busy = {"error": {"code": "busy", "message": "Too many writes are waiting."}}
    desk.page.route("**/claim", lambda route: route.fulfill(status=503, json=busy))
    desk.page.keyboard.press("Control+Enter")
    desk.wait(lambda: "submit" in desk.kinds())
    desk.page.locator("#note", has_text="Too many writes").wait_for()
    assert desk.page.locator("#badge").text_content() == ""
    desk.click(BESIDE)
    desk.page.locator("#note", has_text="what comes next is on its way").wait_for()
    desk.page.unroute("**/claim")
    desk.wait_image(2)
    assert all("503" in error for error in desk.errors)  # the browser's own lines
    desk.errors.clear()


@pytest.mark.parametrize("page", ["", f"campaigns#campaign={CAMPAIGN}"])
def test_a_double_click_claims_one_image(desk: Desk, page: str) -> None:
    desk.page.goto(f"{desk.gateway.url}/{page}")
    desk.identify()
    desk.page.locator("#campaigns button, #do-label").dblclick()
    desk.wait_image(1)
    desk.page.wait_for_timeout(500)
    with desk.gateway.http("eve") as http:
        assert http.get("/api/sessions").json()["count"] == 1


def test_a_claimed_image_is_loaded_when_the_server_was_busy(desk: Desk) -> None:
    refused: list[str] = []

    def busy(route: Any) -> None:
        if route.request.method != "GET" or refused:
            route.continue_()
            return
        refused.append(route.request.url)
        route.fulfill(status=503, json={"error": {"code": "busy", "message": "Too many writes are waiting."}})

    desk.begin()
    desk.click(CENTRE)
    desk.accept()
    desk.page.locator("#objects").get_by_text("accepted").wait_for()
    desk.page.route(re.compile("/api/sessions/[^/]+$"), busy)
    desk.page.keyboard.press("Control+Enter")
    desk.wait_image(2)
    assert len(refused) == 1 and refused[0].endswith(desk.session_id)
    refused.clear()
    desk.page.reload()
    desk.page.locator("#start-note", has_text="Too many writes are waiting.").wait_for()
    desk.wait_image(2)
    assert all("503" in error for error in desk.errors)  # the browser's own lines
    desk.errors.clear()


def test_clicks_show_at_once_while_the_server_is_slow(desk: Desk) -> None:
    held: list[tuple[Any, str]] = []

    def slow_down(socket: Any) -> None:
        server = socket.connect_to_server()

        def pass_on(message: str) -> None:
            if message.startswith('{"type":"mask"'):
                held.append((socket, message))
            else:
                socket.send(message)

        server.on_message(pass_on)

    desk.page.route_web_socket("**/ws", slow_down)
    desk.begin()
    bare = desk.pixel(INSIDE)
    points = [CENTRE, (60.0, 60.0), (100.0, 60.0)]
    for point in points:
        desk.click(point)
    dots = [desk.settled(point, without_mask=True) for point in points]
    assert len(set(dots)) == 1 and dots[0] != bare  # drawn without a mask
    desk.page.keyboard.press("Enter")
    desk.page.locator("#note", has_text="not here yet. Accept it").wait_for()
    desk.page.keyboard.press("p")
    desk.page.locator("#note", has_text="not here yet. Take its outline").wait_for()
    assert desk.page.locator("#outline").is_hidden()
    desk.wait_saved()
    assert desk.kinds() == ["open", "click", "click", "click"]
    desk.wait(lambda: any('"seq":4' in message for _, message in held))
    for socket, message in reversed(held):  # the newest first: an older mask is not drawn over it
        socket.send(message)
    desk.wait_mask()
    desk.wait(lambda: desk.pixel(INSIDE) != bare)
    desk.accept()
    desk.page.locator("#objects").get_by_text("accepted").wait_for()
    desk.wait_saved()
    assert desk.events()[-1].payload["seq"] == 4


def hatch(desk: Desk, lines: int) -> None:
    """One stroke of the brush from side to side, down the canvas."""
    box = desk.page.locator("#canvas").bounding_box()
    left, right, top = box["x"] + 5, box["x"] + box["width"] - 5, box["y"] + 60
    desk.page.mouse.move(left, top)
    desk.page.mouse.down()
    for line in range(lines):
        desk.page.mouse.move(left if line % 2 else right, top + line * 11, steps=4)
    desk.page.mouse.up()


def test_the_page_knows_the_limits_of_an_event(desk: Desk) -> None:
    desk.page.goto(desk.gateway.url)
    limits = desk.page.evaluate("async () => ({ ...(await import('./js/limits.js')) })")
    assert limits["MOST_RUN_BYTES"] == MAX_BRUSH_BYTES
    assert limits["MOST_FRAME_BYTES"] == Settings.model_fields["max_frame_bytes"].default


def test_a_stroke_with_too_many_runs_is_not_taken(desk: Desk, tmp_path: Path) -> None:
    large = cv2.imencode(".png", np.full((2900, 4000, 3), 90, np.uint8))[1].tobytes()
    with desk.gateway.http("eve") as http:
        session = Work(http, put(desk.gateway, tmp_path, "large.png", large)).session_id
    desk.open(session)
    desk.page.locator("#where", has_text="large.png").wait_for()
    desk.wait(lambda: desk.pixel(CENTRE)[3] == 255)
    desk.page.keyboard.press("b")
    for _ in range(10):
        desk.page.keyboard.press("[")  # else the lines meet
    hatch(desk, 44)
    desk.page.locator("#note", has_text="too much for one step").wait_for()
    assert desk.page.locator("#objects li").count() == 0
    hatch(desk, 2)
    desk.page.locator("#objects").get_by_text("1 stroke").wait_for()
    desk.wait_saved()
    assert desk.kinds() == ["open", "brush"]


def test_an_event_that_is_too_big_for_the_server_is_refused_once(browser: Any, tmp_path: Path) -> None:
    with (
        gateway_in(tmp_path, images=1, max_frame_bytes=1000) as gateway,
        desk_at(browser, gateway) as desk,
    ):
        desk.begin()
        desk.click(CENTRE)
        desk.wait_saved()
        desk.page.keyboard.press("b")
        hatch(desk, 9)
        desk.page.locator("#note", has_text="too much for one step").wait_for()
        desk.page.locator("#objects").get_by_text("1 stroke").wait_for(state="detached")
        desk.page.keyboard.press("Escape")
        desk.click(BESIDE, button="right")
        desk.page.locator("#objects").get_by_text("2 clicks").wait_for()
        desk.wait_saved()
        assert desk.kinds() == ["open", "click", "click"]


def test_nothing_is_taken_behind_a_submit_that_waits(desk: Desk) -> None:
    held: list[tuple[Any, str]] = []

    def hold(socket: Any) -> None:
        server = socket.connect_to_server()
        socket.on_message(lambda m: held.append((server, m)) if '"kind":"submit"' in m else server.send(m))

    desk.page.route_web_socket("**/ws", hold)
    desk.begin()
    desk.click(CENTRE)
    desk.accept()
    desk.page.locator("#objects").get_by_text("accepted").wait_for()
    desk.wait_saved()
    first = desk.session_id
    desk.page.keyboard.press("Control+Enter")
    desk.wait(lambda: len(held) == 1)
    desk.click(BESIDE, modifiers=["Control"])
    desk.page.locator("#note", has_text="You are done with this image").wait_for()
    assert desk.page.locator("#objects li").count() == 1 and desk.page.locator("#submit").is_disabled()
    for server, message in held:
        server.send(message)
    desk.wait_image(2)
    with desk.gateway.services.database.connect() as conn:
        assert [event.kind for event in session_events(conn, first)] == ["open", "click", "accept", "submit"]


def test_nothing_is_taken_while_the_state_is_fetched_anew(desk: Desk) -> None:
    held: list[Any] = []
    desk.forge_first_accept()
    desk.begin()
    desk.click(CENTRE)
    desk.wait_mask()
    desk.wait_saved()
    desk.page.route("**/api/sessions/*/events", lambda route: held.append(route))
    desk.page.keyboard.press("Enter")
    desk.wait(lambda: len(held) == 1)
    desk.click(BESIDE, modifiers=["Control"])
    desk.page.locator("#note", has_text="do that again in a moment").wait_for()
    held[0].continue_()
    desk.page.unroute("**/api/sessions/*/events")
    desk.page.locator("#objects").get_by_text("1 click").wait_for()
    desk.wait(lambda: desk.page.locator("#accept").is_enabled())
    desk.click(BESIDE, button="right")
    desk.page.locator("#objects").get_by_text("2 clicks").wait_for()
    desk.wait_saved()
    assert desk.kinds() == ["open", "click", "click"]
