"""Fixtures of the tests of commands and flows."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage.database import Database, open_database
from schemas.campaigns import CampaignRecord
from schemas.settings import Settings
from tests.flows.scenes import make_campaign, write_pictures
from tests.rays import ray_workers

__all__ = ["ray_workers"]


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    """An API that flow runs of this session are told to."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a workspace of this test's own."""
    return Settings(workspace=tmp_path / "workspace", min_free_bytes=0)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """The workspace's database."""
    opened = open_database(settings.resolved_database_url)
    yield opened
    opened.close()


@pytest.fixture
def campaign(tmp_path: Path, settings: Settings, database: Database) -> CampaignRecord:
    """A campaign `discs` of four pictures."""
    return make_campaign(settings, database, write_pictures(tmp_path, 4))
