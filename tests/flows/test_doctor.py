"""doctor says of each part whether it works here."""

from pathlib import Path

import pytest

from flows.doctor import _checked, _storage, run_checks
from schemas.settings import Settings
from tests.s3 import s3_bucket, s3_server

__all__ = ["s3_bucket", "s3_server"]


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_every_needed_part_works_here_and_a_missing_one_is_named(settings: Settings) -> None:
    starved = settings.model_copy(update={"min_free_bytes": 2**62, "storage_url": "nosuch://bucket"})
    checks = {check.name: check for check in run_checks(starved)}
    assert {name for name, check in checks.items() if check.needed and not check.ok} == {"disk", "storage"}
    assert "floor" in checks["disk"].detail and "nosuch" in checks["storage"].detail
    assert {"python", "torch", "packages", "weights", "database", "ray"} <= checks.keys()
    assert not checks["serve"].ok and not checks["serve"].needed


def test_a_storage_that_takes_nothing_says_so_in_words(settings: Settings, tmp_path: Path, s3_bucket: str) -> None:
    (tmp_path / "file").touch()
    told = {
        url: _checked("storage", _storage, settings.model_copy(update={"storage_url": url})).detail
        for url in (str(tmp_path / "file" / "storage"), "s3://no-such-bucket/work", s3_bucket)
    }
    assert [word in text for word, text in zip(("Not a directory", "Check the URL", "can be written"), told.values(),
                                               strict=True)] == [True] * 3, told  # fmt: skip
    assert not any("Error:" in text for text in told.values()), told
