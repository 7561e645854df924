"""The labeling page as a person uses it, for the tests of the page."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pipeline.storage.sessions import session_events
from schemas.events import Event
from tests.workers.api.gateway import Gateway

SIZE = (160, 120)
CENTRE, BESIDE = (80.0, 60.0), (12.0, 12.0)
INSIDE = (80.0, 45.0)
"""In the disc, away from the click that is drawn at its centre."""
TIMEOUT_MS = 30_000
_PIXEL = """([x, y]) => {
  const canvas = document.querySelector("#canvas");
  const ratio = canvas.width / canvas.clientWidth;
  return [...canvas.getContext("2d").getImageData(x * ratio, y * ratio, 1, 1).data];
}"""


class Visit:
    """A page that somebody looks at; notes what it logs as errors."""

    timeout_ms = TIMEOUT_MS

    def __init__(self, page: Any, gateway: Gateway) -> None:
        self.page = page
        self.gateway = gateway
        self.errors: list[str] = []
        page.set_default_timeout(self.timeout_ms)
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def wait(self, condition: Any) -> None:
        """Until a condition holds."""
        for _ in range(self.timeout_ms // 50):
            if condition():
                return
            self.page.wait_for_timeout(50)
        text = self.page.locator("body").inner_text()
        pytest.fail(f"the page did not get there in time; it says {text!r}, its errors are {self.errors}")


class Desk(Visit):
    """The page as a person sees it: points are in pixels of the image, fitted to the canvas."""

    def identify(self, token: str = "") -> None:
        """Fill in who works."""
        self.page.get_by_role("textbox", name="Your name").fill("eve")
        self.page.get_by_role("textbox", name="Token").fill(token)
        self.page.get_by_role("button", name="Go on", exact=True).click()

    def forge_first_accept(self) -> list[str]:
        """From now on the mask that the first accept names on its way is another one than is shown.

        Returns:
            Filled with what was sent instead.
        """
        forged: list[str] = []

        def route(socket: Any) -> None:
            server = socket.connect_to_server()

            def pass_on(message: str) -> None:
                if '"kind":"accept"' in message and not forged:
                    message = re.sub('"mask_sha256":"[0-9a-f]{64}"', f'"mask_sha256":"{"0" * 64}"', message)
                    forged.append(message)
                server.send(message)

            socket.on_message(pass_on)

        self.page.route_web_socket("**/ws", route)
        return forged

    def begin(self) -> None:
        """From the first visit to the first image."""
        self.page.goto(self.gateway.url)
        self.identify()
        self.page.locator("#campaigns").get_by_role("button", name="discs").click()
        self.wait_image(1)

    def open(self, session_id: str) -> None:
        """From the first visit to a session that is there already."""
        self.page.goto(self.gateway.url)
        self.identify()
        self.page.locator("#campaigns").get_by_role(
            "button", name="discs"
        ).wait_for()  # the start is done with the address
        self.page.goto(f"{self.gateway.url}#session={session_id}")
        self.page.reload()

    def wait_image(self, number: int) -> None:
        """Until the image of this number is drawn."""
        self.page.locator("#where", has_text=f"Image {number} ").wait_for()
        self.wait(lambda: self.pixel(BESIDE)[3] == 255)

    def at(self, point: tuple[float, float]) -> tuple[float, float]:
        """A point of the image in the canvas."""
        box = self.page.locator("#canvas").bounding_box()
        scale = min(box["width"] / SIZE[0], box["height"] / SIZE[1])
        return tuple(
            (full - side * scale) / 2 + value * scale
            for full, side, value in zip((box["width"], box["height"]), SIZE, point, strict=True)
        )

    def click(self, point: tuple[float, float], **options: Any) -> None:
        """Click on the image."""
        x, y = self.at(point)
        self.page.locator("#canvas").click(position={"x": x, "y": y}, **options)

    def drag(
        self, start: tuple[float, float], end: tuple[float, float], *, escape: bool = False, button: Any = "left"
    ) -> None:
        """Drag with Shift held, which the brush does not mind; with escape, Esc comes before the button is let go."""
        box = self.page.locator("#canvas").bounding_box()
        (x0, y0), (x1, y1) = ((x + box["x"], y + box["y"]) for x, y in (self.at(start), self.at(end)))
        keyboard, mouse = self.page.keyboard, self.page.mouse
        keyboard.down("Shift")
        mouse.move(x0, y0)
        mouse.down(button=button)
        mouse.move(x1, y1, steps=4)
        if escape:
            keyboard.press("Escape")
        mouse.up(button=button)
        keyboard.up("Shift")

    def pixel(self, point: tuple[float, float]) -> tuple[int, ...]:
        """RGBA of the canvas at a point of the image."""
        return tuple(self.page.evaluate(_PIXEL, list(self.at(point))))

    def settled(self, point: tuple[float, float], *, without_mask: bool = False) -> tuple[int, ...]:
        """The pixel once the mask has come, unless told otherwise, and it has stayed the same for a while."""
        if not without_mask:
            self.wait_mask()
        seen = [self.pixel(point)]
        self.wait(lambda: not seen.append(self.pixel(point)) and len(seen) > 10 and len(set(seen[-10:])) == 1)
        return seen[-1]

    def wait_mask(self) -> None:
        """Until the mask of the chosen object's last edit is there."""
        self.wait(lambda: not self.page.evaluate("async () => (await import('./js/desk.js')).isWaiting()"))

    def accept(self) -> None:
        """Accept the chosen object once its mask is there: before that the page would only say that it is not."""
        self.wait_mask()
        self.page.keyboard.press("Enter")

    def wait_saved(self) -> None:
        """Until everything is acknowledged."""
        self.page.locator("#badge", has_text="Saved").wait_for()

    @property
    def session_id(self) -> str:
        return str(self.page.evaluate("location.hash")).removeprefix("#session=")

    def events(self) -> list[Event]:
        """The session's log."""
        with self.gateway.services.database.connect() as conn:
            return session_events(conn, self.session_id)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events()]


@contextmanager
def desk_at(browser: Any, gateway: Gateway, **options: Any) -> Iterator[Desk]:
    """A fresh browser profile (with options of Playwright's context); fails when the page logs an error."""
    context = browser.new_context(**{"viewport": {"width": 1000, "height": 640}, **options})
    desk = Desk(context.new_page(), gateway)
    yield desk
    context.close()
    assert desk.errors == []
