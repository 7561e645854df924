"""backup and restore by the command line."""

import hashlib
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


def test_a_restore_into_a_storage_that_cannot_be_written_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, to = (str(tmp_path / name) for name in ("old", "new", "backup"))
    main(["token", "create", "ada", "--workspace", old])
    main(["backup", to, "--workspace", old])
    weights, manifest = tmp_path / "backup" / "storage" / "weights", tmp_path / "backup" / "manifest.json"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    part = {"path": "storage/weights", "sha256": hashlib.sha256(b"weights").hexdigest(), "size_bytes": 7}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"files": {"models/weights": part}}))
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("CLICKLOOP_STORAGE_URL", f"{tmp_path}/file/storage")
    capsys.readouterr()
    assert main(["restore", to, "--workspace", new]) == 2
    assert f"Cannot restore {to} into {tmp_path}/file/storage" in capsys.readouterr().err
