"""Fixtures shared by all tests. Starts nothing by itself."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPO_ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

settings.register_profile(
    "ci", max_examples=50, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci")

REQUIRED = frozenset(filter(None, os.environ.get("CLICKLOOP_TEST_REQUIRE", "").split(",")))
"""Parts (postgres, browser, ...) whose absence fails instead of skipping; CI names them all."""


def need(part: str, present: bool, why: str) -> None:
    """Skip when a part is absent, or fail where it is required."""
    if present:
        return
    if part in REQUIRED:
        pytest.fail(f"{part} is required here, but {why}")
    pytest.skip(why)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of test vectors and data beside the checkout; tests that want it are skipped where it is absent."""
    folder = REPO_ROOT.parent / "shared"
    need("shared", folder.is_dir(), f"{folder} is not there")
    return folder


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No CLICKLOOP_ setting of the caller leaks into a test."""
    for name in list(os.environ):
        if name.startswith("CLICKLOOP_") and name != "CLICKLOOP_TEST_REQUIRE":
            monkeypatch.delenv(name)
