"""Chromium and a gateway for the tests of the page."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.desk import Desk, desk_at
from tests.conftest import need
from tests.workers.api.gateway import Gateway, gateway_in

ARGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium: the system's, or the one that playwright installed.

    No longer than a module: while Playwright runs, no other event loop can run in this thread.
    """
    need("browser", importlib.util.find_spec("playwright") is not None, "playwright is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        path = shutil.which("chromium") or driver.chromium.executable_path
        need("browser", Path(path).exists(), "there is no Chromium")
        chromium = driver.chromium.launch(executable_path=path, args=ARGS)
        yield chromium
        chromium.close()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """A gateway with three images of a disc."""
    with gateway_in(tmp_path, images=3) as running:
        yield running


@pytest.fixture
def desk(browser: Any, gateway: Gateway) -> Iterator[Desk]:
    """The page of a gateway with three images."""
    with desk_at(browser, gateway) as opened:
        yield opened
