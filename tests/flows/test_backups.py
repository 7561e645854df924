"""backup and restore by the command line."""

import json
from pathlib import Path

import pytest

from flows.cli import main
from pipeline.storage.database import open_database
from pipeline.storage.lock import WorkspaceLock


def test_backup_and_restore_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new, to = (str(tmp_path / name) for name in ("old", "new", "backup"))
    assert main(["backup", to, "--workspace", old]) == 2
    assert "nothing to back up" in capsys.readouterr().err
    assert not (tmp_path / "old").exists()
    assert main(["token", "create", "ada", "--workspace", old]) == 0
    with WorkspaceLock(tmp_path / "old"):  # as beside a running `serve`
        assert main(["backup", to, "--workspace", old, "--json"]) == 0
    written = capsys.readouterr().out
    assert json.loads(written[written.index("{") :])["tables"]["annotators"] == 1
    assert main(["restore", to, "--workspace", new]) == 0
    assert "2 rows and 0 files are back" in capsys.readouterr().out
    assert main(["restore", to, "--workspace", new]) == 2
    assert "--replace" in capsys.readouterr().err
    with WorkspaceLock(tmp_path / "new"):
        assert main(["restore", to, "--workspace", new, "--replace"]) == 1
    assert "in use by process" in capsys.readouterr().err
    part = tmp_path / "backup" / "tables" / "annotators-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    assert main(["restore", to, "--workspace", new, "--replace"]) == 1
    assert "annotators-00000.parquet" in capsys.readouterr().err
    database = open_database(f"sqlite:///{tmp_path / 'new' / 'clickloop.db'}")
    with database.connect() as conn:
        assert conn.exec_driver_sql("SELECT name FROM annotators").scalar_one() == "ada"
    database.close()
