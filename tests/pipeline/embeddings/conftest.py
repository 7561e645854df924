"""A local folder and a real S3 bucket."""

from pathlib import Path

import pytest

from tests.s3 import s3_bucket, s3_server  # noqa: F401


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty storage: once a folder, once a bucket."""
    if request.param == "local":
        return str(tmp_path / "storage")
    return f"{request.getfixturevalue('s3_bucket')}/prefix"
