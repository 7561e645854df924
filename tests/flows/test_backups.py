"""backup and restore by the command line."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import s3fs

from flows.cli import main
from pipeline.storage.database import open_database
from pipeline.storage.lock import WorkspaceLock
from tests.pipeline.storage.catalogues import Catalogue


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


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["backup", "s3://bucket/x"], "Writing to s3://bucket/x is refused"),
        (["restore", "s3://bucket/x"], "Restoring s3://bucket/x into"),
        (["snapshot", "verify", "s3://bucket/x"], "Reading s3://bucket/x is refused"),
        (["gc"], "Looking through s3://bucket/storage is refused"),
        (["backup", "there"], "Reading s3://bucket/storage is refused"),
    ],
)
def test_without_credentials_commands_say_what_is_refused_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str], told: str
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    s3fs.S3FileSystem.clear_instance_cache()
    database = open_database(f"sqlite:///{tmp_path / 'work' / 'clickloop.db'}", embedded=True)
    Catalogue(database, images=1)
    database.close()
    if "s3://bucket/x" not in command:
        monkeypatch.setenv("CLICKLOOP_STORAGE_URL", "s3://bucket/storage")
    assert main([*command, "--workspace", str(tmp_path / "work")]) == 1
    said = capsys.readouterr().err
    assert told in said and "Unable to locate credentials. Renew the credentials" in said
