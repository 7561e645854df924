"""Whole files on local folders and S3."""

import os
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from pipeline.storage import files
from pipeline.storage.files import open_storage, put_if_absent, read_bytes, write_atomic
from schemas.errors import BadInputError
from tests.s3 import object_names, s3_bucket, s3_server  # noqa: F401


@pytest.mark.parametrize("url", ["", "simplecache::s3://bucket/x", "nosuch://bucket/x", "a\0b"])
def test_unusable_urls_are_refused(url: str) -> None:
    with pytest.raises(BadInputError):
        open_storage(url)


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_storage("storage/")[1] == str(tmp_path / "storage")
    assert open_storage(f"file://{tmp_path}/storage")[1] == str(tmp_path / "storage")


@pytest.mark.parametrize("place", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_write_replace_and_put_if_absent(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    fs, root = open_storage(str(tmp_path / "s") if place == "local" else request.getfixturevalue("s3_bucket"))
    source = tmp_path / "source"
    source.write_bytes(b"from a file")
    write_atomic(fs, f"{root}/a/b", b"one")
    write_atomic(fs, f"{root}/a/b", source)
    assert read_bytes(fs, f"{root}/a/b") == b"from a file"
    assert source.exists()
    assert not put_if_absent(fs, f"{root}/a/b", b"two")
    assert put_if_absent(fs, f"{root}/a/c", source)
    assert read_bytes(fs, f"{root}/a/c") == b"from a file"
    assert files.sha256_stored(fs, f"{root}/a/c") == (files.sha256_file(source), 11)
    files.remove(fs, f"{root}/a/c")
    files.remove(fs, f"{root}/a/c")
    assert not files.exists(fs, f"{root}/a/c")
    with pytest.raises(FileNotFoundError):
        read_bytes(fs, f"{root}/a/c")


def test_of_processes_that_put_at_once_one_wins(tmp_path: Path) -> None:
    code = """if True:
        import os, sys, time
        from pipeline.storage.files import open_storage, put_if_absent
        root, number = sys.argv[1:]
        fs, path = open_storage(root + "/x")
        open(f"{root}/ready-{number}", "w").close()
        while not os.path.exists(root + "/go"):
            time.sleep(0.001)
        print(put_if_absent(fs, path, number.encode() * 1_000_000))
    """
    command = [sys.executable, "-c", code, str(tmp_path)]
    racers = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True) for n in range(4)]
    while len(list(tmp_path.glob("ready-*"))) < 4:
        assert all(racer.poll() in (None, 0) for racer in racers)
        time.sleep(0.05)
    (tmp_path / "go").touch()
    won = [racer.communicate(timeout=60)[0].strip() == "True" for racer in racers]
    assert sum(won) == 1
    assert (tmp_path / "x").read_bytes() == str(won.index(True)).encode() * 1_000_000
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.s3
def test_an_object_that_appears_after_the_look_is_not_overwritten(
    s3_bucket: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fs, root = open_storage(s3_bucket)
    write_atomic(fs, f"{root}/x", b"first")
    monkeypatch.setattr(type(fs), "exists", lambda self, path, **options: False)
    assert not put_if_absent(fs, f"{root}/x", b"second")
    assert read_bytes(fs, f"{root}/x") == b"first"
    assert object_names(s3_bucket) == ["x"]


def test_a_failed_replace_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, root = open_storage(str(tmp_path))
    write_atomic(fs, f"{root}/x", b"old")

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        write_atomic(fs, f"{root}/x", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_calls_to_an_object_store_are_retried_unless_the_answer_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BACKOFF_S", 0.0)
    store = fsspec.filesystem("memory")
    answers: list[Exception] = [OSError("slow down"), TimeoutError("again")]

    def flaky() -> str:
        if answers:
            raise answers.pop()
        return "done"

    assert files.with_retry(store, flaky) == "done"
    calls = []

    def missing() -> None:
        calls.append(1)
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        files.with_retry(store, missing)
    assert len(calls) == 1
