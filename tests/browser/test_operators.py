"""The page while an operator, another window or a silent server changes what somebody works on."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage.purge import find_scope, purge
from tests.browser.desk import BESIDE, CENTRE, Desk, desk_at
from tests.workers.api.gateway import CAMPAIGN, Gateway, gateway_in

pytestmark = pytest.mark.browser


def set_state(gateway: Gateway, verb: str) -> None:
    with gateway.http() as http:
        assert http.post(f"/api/campaigns/{CAMPAIGN}/{verb}", json={}).is_success


def test_a_server_that_is_silent_is_told_and_asked_again(desk: Desk) -> None:
    held: list[Any] = []
    desk.page.clock.install()
    desk.page.goto(desk.gateway.url)
    desk.identify()
    desk.page.route("**/claim", lambda route: held.append(route) if not held else route.continue_())
    desk.page.locator("#campaigns").get_by_role("button", name="discs").click()
    desk.wait(lambda: len(held) == 1)
    desk.page.clock.fast_forward(21_000)
    desk.page.locator("#start-note", has_text="The server does not answer.").wait_for()
    desk.page.clock.fast_forward(1_000)
    desk.wait_image(1)


def test_a_campaign_that_goes_on_can_be_chosen_without_a_reload(desk: Desk) -> None:
    set_state(desk.gateway, "pause")
    desk.page.goto(desk.gateway.url)
    desk.identify()
    campaign = desk.page.locator("#campaigns").get_by_role("button", name="discs")
    campaign.click()
    desk.page.locator("#start-note", has_text="paused").wait_for()
    set_state(desk.gateway, "resume")
    campaign.click()
    desk.wait_image(1)
    desk.errors[:] = [error for error in desk.errors if "409" not in error]


def test_the_page_says_why_an_event_is_not_saved_until_it_is(desk: Desk) -> None:
    refused: list[Any] = []

    def refuse(socket: Any) -> None:
        server = socket.connect_to_server()

        def pass_on(message: str) -> None:
            event = json.loads(message).get("event")
            if event is None or len(refused) == 2:
                server.send(message)
                return
            refused.append(event["event_id"])
            error = {"code": "database_unavailable", "message": "The disk is full. Make room.", "details": {}}
            socket.send(json.dumps({"type": "error", "event_id": event["event_id"], "error": error}))

        socket.on_message(pass_on)

    desk.page.route_web_socket("**/ws", refuse)
    desk.begin()
    desk.click(CENTRE)
    desk.page.locator("#note", has_text="Not saved yet: The disk is full. Make room.").wait_for()
    desk.wait_saved()
    desk.wait(lambda: not desk.page.locator("#note").inner_text())
    assert len(refused) == 2 and refused[0] == refused[1] and desk.kinds() == ["open", "click"]


@pytest.mark.parametrize("what", ["image", "campaign"])
def test_what_is_purged_under_the_hands_is_left(browser: Any, tmp_path: Path, what: str) -> None:
    with gateway_in(tmp_path, images=2, lease_s=0.5) as gateway, desk_at(browser, gateway) as desk:
        desk.begin()
        desk.click(CENTRE)
        desk.wait_saved()
        address = desk.page.url
        desk.page.wait_for_timeout(800)
        with gateway.services.database.connect() as conn:
            scope = find_scope(conn, CAMPAIGN, "1" if what == "image" else None)
        purge(gateway.services.database, scope, str(tmp_path / "storage"), purged_by="an operator")
        desk.click(BESIDE, button="right")
        desk.page.locator("#gate", has_text="This image was removed from the server").wait_for()
        desk.page.get_by_role("button", name="Choose a campaign").click()
        assert desk.page.evaluate("document.activeElement.id") == "start"
        if what == "image":
            desk.page.locator("#campaigns").get_by_role("button", name="discs").click()
            desk.wait_image(2)
        else:
            desk.page.get_by_text("There is no campaign yet.").wait_for()
        desk.page.goto("about:blank")
        desk.page.goto(address)
        desk.page.locator("#start-note", has_text="There is no session").wait_for()
        desk.errors[:] = [error for error in desk.errors if "404" not in error and "409" not in error]


def test_a_name_that_was_changed_in_another_window_is_asked_for_and_nothing_is_dropped(desk: Desk) -> None:
    sockets: list[Any] = []

    def follow(socket: Any) -> None:
        socket.connect_to_server()
        sockets.append(socket)

    desk.page.route_web_socket("**/ws", follow)
    desk.begin()
    desk.click(CENTRE)
    desk.wait_saved()
    other = desk.page.context.new_page()
    other.goto(desk.gateway.url)
    other.locator("#who").click()
    other.get_by_role("textbox", name="Your name").fill("bob")
    other.get_by_role("button", name="Go on", exact=True).click()
    desk.page.locator("#who", has_text="bob").wait_for()
    desk.page.bring_to_front()
    sockets[0].close()
    desk.click(BESIDE, button="right")
    desk.page.get_by_text("This session belongs to another annotator.").wait_for()
    desk.page.get_by_role("textbox", name="Your name").fill("eve")
    desk.page.get_by_role("button", name="Go on", exact=True).click()
    desk.page.locator("#objects").get_by_text("2 clicks").wait_for()
    desk.wait_saved()
    assert desk.kinds() == ["open", "click", "click"]
