"""Both databases, and a campaign with images to work on."""

import pytest

from pipeline.storage.database import Database
from tests.databases import (  # noqa: F401
    database,
    database_url,
    empty_url,
    migrated_sqlite,
    postgres_database,
    postgres_server,
    sqlite_database,
)
from tests.pipeline.storage.catalogues import Catalogue
from tests.s3 import s3_bucket, s3_server  # noqa: F401


@pytest.fixture
def catalogue(database: Database) -> Catalogue:  # noqa: F811
    """A campaign with five images and an annotator."""
    return Catalogue(database, images=5)
