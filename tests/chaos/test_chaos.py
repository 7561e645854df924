"""A short chaos run on each stack."""

import pytest

from tests.chaos.run import main


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stack", ["sqlite", "postgres"])
def test_nothing_acknowledged_is_lost(stack: str) -> None:
    assert main(["--faults", "15", "--images", "60", "--annotators", "4", "--stack", stack]) == 0
