"""Whole files on local folders and S3."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from pipeline.campaigns import require_source
from pipeline.storage import files
from pipeline.storage.files import files_below, open_storage, put_if_absent, read_bytes, storage_error, write_atomic
from schemas.errors import BadInputError, ForbiddenError
from tests.s3 import object_names, s3_bucket, s3_server  # noqa: F401
from tests.s3_faults import FaultyS3, faulty_s3  # noqa: F401


@pytest.mark.parametrize("url", ["", "simplecache::s3://bucket/x", "nosuch://bucket/x", "a\0b", "s3://"])
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


@pytest.mark.s3
@pytest.mark.parametrize(("fault", "count"), [("cut", 6), ("torn", 3), ("InternalError", 2), ("SlowDown", 3)])
def test_a_store_that_comes_back_is_waited_for(
    faulty_s3: FaultyS3,  # noqa: F811
    s3_bucket: str,  # noqa: F811
    fault: str,
    count: int,
) -> None:
    fs, root = open_storage(s3_bucket)
    waits: list[str] = []
    with files.patience(60, lambda seconds, why: waits.append(why)):
        write_atomic(fs, f"{root}/x", b"content" * 1000)
        faulty_s3.go_away(fault, count=count)  # the clients try again by themselves first
        assert read_bytes(fs, f"{root}/x") == b"content" * 1000
    assert waits and all(waits)


def test_pauses_grow_with_jitter_until_patience_ends() -> None:
    pauses: list[float] = []

    def call() -> None:
        raise OSError("slow down")

    def wait(seconds: float, why: str) -> None:
        pauses.append(seconds)
        if len(pauses) == 12:
            raise KeyboardInterrupt  # as a job does that is to stop

    with files.patience(10_000, wait), pytest.raises(KeyboardInterrupt):
        files.with_retry(fsspec.filesystem("memory"), call)
    assert all(0.5 * low <= pause <= 1.5 * low for pause, low in zip(pauses, [0.5, 1, 2, 4, 8, 16], strict=False))
    assert len(set(pauses)) == 12 and max(pauses) <= 45
    with files.patience(0, wait), pytest.raises(OSError, match="slow down"):
        files.with_retry(fsspec.filesystem("memory"), call)
    assert len(pauses) == 12


@pytest.mark.s3
def test_a_put_is_tried_again_and_patience_ends(faulty_s3: FaultyS3, s3_bucket: str) -> None:  # noqa: F811
    fs, root = open_storage(s3_bucket)
    waits: list[str] = []
    with files.patience(60, lambda seconds, why: waits.append(why)):
        faulty_s3.go_away("ServiceUnavailable", method="HEAD", after=1, count=2)
        assert put_if_absent(fs, f"{root}/x", b"content")
    assert waits
    faulty_s3.go_away("ServiceUnavailable")
    with files.patience(0), pytest.raises(OSError) as failure:
        write_atomic(fs, f"{root}/y", b"content")
    assert "does not answer: [Errno 16] Service is unable" in files.storage_error(failure.value, "Writing").message
    faulty_s3.come_back()
    assert object_names(s3_bucket) == ["x"]


@pytest.mark.s3
@pytest.mark.parametrize("refusal", ["ExpiredToken", "InvalidAccessKeyId", "AccessDenied"])
def test_a_refusal_is_final(faulty_s3: FaultyS3, s3_bucket: str, refusal: str) -> None:  # noqa: F811
    fs, root = open_storage(s3_bucket)
    write_atomic(fs, f"{root}/x", b"content")

    def wait(seconds: float, why: str) -> None:
        raise AssertionError(why)

    faulty_s3.go_away(refusal)
    with files.patience(60, wait):
        for call in (
            lambda: read_bytes(fs, f"{root}/x"),
            lambda: write_atomic(fs, f"{root}/y", b"new"),
            lambda: put_if_absent(fs, f"{root}/y", b"new"),
            lambda: files.exists(fs, f"{root}/x"),
        ):
            with pytest.raises(PermissionError) as failure:
                call()
            assert isinstance(files.storage_error(failure.value, "Reading"), ForbiddenError)


@pytest.mark.s3
def test_without_credentials_nothing_is_waited_for(
    s3_bucket: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    type(open_storage(s3_bucket)[0]).clear_instance_cache()
    fs, root = open_storage(s3_bucket)
    with pytest.raises(PermissionError, match="credentials"):
        write_atomic(fs, f"{root}/x", b"content")
    with pytest.raises(ForbiddenError, match="credentials"):
        require_source(f"{s3_bucket}/photos")


@pytest.mark.parametrize("error", [FileNotFoundError(), ValueError("a fault of ours")])
def test_what_no_other_try_mends_is_not_tried_again(error: Exception) -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        files.with_retry(fsspec.filesystem("memory"), call)
    assert len(calls) == 1


@pytest.mark.parametrize("place", ["folder", "s3_bucket"])
def test_files_of_a_folder_that_need_not_exist(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    fs, root = open_storage(str(tmp_path) if place == "folder" else request.getfixturevalue("s3_bucket"))
    for name in ("b/c/2", "a", "b/1"):
        write_atomic(fs, f"{root}/there/{name}", b"12")
    fs.invalidate_cache()
    found = files_below(fs, f"{root}/there")
    assert list(found) == [f"{root}/there/{name}" for name in ("a", "b/1", "b/c/2")]
    assert {facts["size"] for facts in found.values()} == {2}
    assert files_below(fs, f"{root}/gone") == {}


@pytest.mark.parametrize("name", ["there", "there/below"])
def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(name: str, tmp_path: Path) -> None:
    fs, root = open_storage(str(tmp_path))
    (tmp_path / name).mkdir(parents=True)
    inner = tmp_path / name / "folder"
    inner.mkdir(0)
    if os.geteuid() == 0:  # whom no mode keeps out: a name that leads to itself
        inner.rmdir()
        (tmp_path / name).rmdir()
        (tmp_path / name).symlink_to(tmp_path / name)
    with pytest.raises(OSError, match=name):
        files_below(fs, f"{root}/there")


def test_a_disk_that_may_only_be_read_is_not_to_be_tried_again() -> None:
    told = storage_error(OSError(errno.EROFS, "Read-only file system", "/x/a"), "Removing files from /x")
    assert isinstance(told, ForbiddenError) and "/x/a" in told.message and "answer" not in told.message
