from contextlib import closing
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.storage.database import open_database
from schemas.settings import Settings


@pytest.mark.parametrize("name", ["photos%20of%20cats", "which?", "cats#2", "q?mode=ro", "été"])
def test_the_database_lies_in_its_workspace_whatever_that_is_called(name: str, tmp_path: Path) -> None:
    settings = Settings(workspace=tmp_path / name)
    with closing(open_database(settings.resolved_database_url)):
        pass
    assert settings.sqlite_path == tmp_path / name / "clickloop.db"
    assert settings.sqlite_path.is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_file_of_a_database_url_is_found(tmp_path: Path) -> None:
    settings = Settings(database_url=f"sqlite+pysqlite:///{tmp_path}/x.db?timeout=4")
    assert settings.sqlite_path == tmp_path / "x.db"
    assert Settings(database_url="postgresql://localhost/x").sqlite_path is None
    assert Settings(database_url="sqlite:").sqlite_path is None


@pytest.mark.parametrize("name", ["workspace", "host"])
def test_an_empty_variable_is_not_the_current_folder_or_every_address(name: str) -> None:
    with pytest.raises(ValidationError, match="it is empty, as from a variable that is not set"):
        Settings(**{name: ""})  # type: ignore[arg-type]
