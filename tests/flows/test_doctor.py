"""doctor says of each part whether it works here."""

import pytest

from flows.doctor import run_checks
from schemas.settings import Settings


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_every_needed_part_works_here_and_a_missing_one_is_named(settings: Settings) -> None:
    starved = settings.model_copy(update={"min_free_bytes": 2**62, "storage_url": "nosuch://bucket"})
    checks = {check.name: check for check in run_checks(starved)}
    assert {name for name, check in checks.items() if check.needed and not check.ok} == {"disk", "storage"}
    assert "floor" in checks["disk"].detail and "nosuch" in checks["storage"].detail
    assert {"python", "torch", "packages", "weights", "database", "ray"} <= checks.keys()
    assert not checks["serve"].ok and not checks["serve"].needed
