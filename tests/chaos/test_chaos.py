"""A short chaos run on each database."""

import pytest

from tests.chaos.run import main


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stack", ["sqlite", "postgres"])
def test_nothing_acknowledged_is_lost(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLICKLOOP_DATABASE_URL", "CLICKLOOP_MIN_FREE_BYTES"):
        monkeypatch.setenv(name, "")  # put back afterwards
        monkeypatch.delenv(name)
    assert main(["--faults", "15", "--images", "60", "--annotators", "4", "--stack", stack]) == 0
