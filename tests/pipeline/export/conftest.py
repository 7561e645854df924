"""A labelled campaign (built once, its database copied for each test), a folder and a bucket."""

import copy
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage.database import Database
from tests.databases import (  # noqa: F401
    database,
    database_url,
    migrated_sqlite,
    postgres_server,
    sqlite_database,
)
from tests.pipeline.export.labelled import Labelled, standard
from tests.s3 import s3_bucket, s3_server  # noqa: F401
from tests.s3_faults import faulty_s3  # noqa: F401

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # `datasets` reads it when it is imported


@pytest.fixture(scope="session")
def labelled_template(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Labelled, Path]:  # noqa: F811
    """The campaign of `standard` and its database file."""
    folder = tmp_path_factory.mktemp("labelled")
    path = folder / "clickloop.db"
    shutil.copyfile(migrated_sqlite, path)
    opened = Database(f"sqlite:///{path}")
    world = standard(opened, folder / "images")
    opened.close()
    return world, path


@pytest.fixture
def world(labelled_template: tuple[Labelled, Path], tmp_path: Path) -> Iterator[Labelled]:
    """See `standard`; the image files are shared, so leave them alone."""
    template, path = labelled_template
    shutil.copyfile(path, tmp_path / "clickloop.db")
    own = copy.copy(template)
    own.masks = dict(template.masks)
    own.database = Database(f"sqlite:///{tmp_path / 'clickloop.db'}")
    yield own
    own.database.close()


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place: once a folder, once a bucket."""
    if request.param == "local":
        return str(tmp_path / "storage")
    return f"{request.getfixturevalue('s3_bucket')}/prefix"
