"""Listing sources."""

import os
import socket
from pathlib import Path

import fsspec
import pytest

from pipeline.ingest.sources import list_files, require_allowed
from schemas.errors import BadInputError, BusyError, ForbiddenError
from tests.pipeline.ingest.pictures import encoded, scene, write_scenes


def names(url: str) -> list[str]:
    """File names of a listing."""
    return [file.file_name for file in list_files(url).files]


def test_a_folder_is_looked_through_and_other_files_are_passed_over(tmp_path: Path) -> None:
    write_scenes(tmp_path, range(2))
    write_scenes(tmp_path / "b" / "c", range(2, 3))
    write_scenes(tmp_path / ".hidden", range(3, 4))
    (tmp_path / "._scene-000.png").touch()
    (tmp_path / "notes.txt").touch()
    listing = list_files(str(tmp_path))
    assert [file.file_name for file in listing.files] == ["b/c/scene-002.png", "scene-000.png", "scene-001.jpg"]
    assert listing.ignored == 2
    assert all(Path(file.uri).is_absolute() for file in listing.files)


def test_other_image_types_are_reported(tmp_path: Path) -> None:
    (tmp_path / "scan.HEIC").touch()
    (tmp_path / "scan.TIF").touch()
    other, file = list_files(str(tmp_path)).files
    assert other.problem is not None and ".heic" in other.problem
    assert file.problem is None


def test_a_glob_and_a_single_file(tmp_path: Path) -> None:
    write_scenes(tmp_path / "a", range(4))
    assert names(f"{tmp_path}/a/*.png") == ["scene-000.png", "scene-002.png"]
    assert names(f"{tmp_path}/*/scene-00[12].*") == ["a/scene-001.jpg", "a/scene-002.png"]
    assert names(f"{tmp_path}/a/scene-001.jpg") == ["scene-001.jpg"]


def test_a_folder_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    write_scenes(tmp_path / "set [1]", range(1))
    assert names(f"{tmp_path}/set [1]") == ["scene-000.png"]


@pytest.mark.parametrize("missing", ["nothing", "nothing/*.png", ""])
def test_nothing_there_is_said_clearly(tmp_path: Path, missing: str) -> None:
    with pytest.raises(BadInputError):
        list_files(f"{tmp_path}/{missing}" if missing else "")


def test_the_version_changes_with_the_file(tmp_path: Path) -> None:
    write_scenes(tmp_path, range(1))
    before = list_files(str(tmp_path)).files
    assert list_files(str(tmp_path)).files == before
    os.utime(tmp_path / "scene-000.png", (1, 1))
    assert list_files(str(tmp_path)).files[0].version != before[0].version


def test_links_are_followed_once(tmp_path: Path) -> None:
    write_scenes(tmp_path / "a", range(1))
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "file.png").symlink_to(tmp_path / "a" / "scene-000.png")
    (tmp_path / "a" / "dangling.png").symlink_to(tmp_path / "nowhere")
    assert names(f"{tmp_path}/a") == ["file.png", "scene-000.png"]


def test_names_that_no_database_holds_are_reported(tmp_path: Path) -> None:
    with open(os.path.join(os.fsencode(tmp_path), b"bad-\xff.png"), "wb") as file:
        file.write(encoded(scene(0)))
    (tmp_path / "a::b.png").write_bytes(encoded(scene(1)))
    files = list_files(str(tmp_path)).files
    assert len(files) == 2
    for listed in files:
        listed.uri.encode("utf-8")
        assert listed.problem is not None and "Rename" in listed.problem


def test_roots(tmp_path: Path) -> None:
    (tmp_path / "ok").mkdir()
    (tmp_path / "okay").mkdir()
    (tmp_path / "ok" / "out").symlink_to(tmp_path / "okay")
    roots = [str(tmp_path / "ok"), "s3://bucket/data"]
    for url in (str(tmp_path / "ok"), f"{tmp_path}/ok/new/folder", f"file://{tmp_path}/ok", "s3://bucket/data/x"):
        require_allowed(url, roots)
    for url in (f"{tmp_path}/okay", f"{tmp_path}/ok/../okay", f"{tmp_path}/ok/out/x", "s3://bucket/database", "/etc"):
        with pytest.raises(ForbiddenError):
            require_allowed(url, roots)
    for url in ("s3://bucket/data/../x", "filecache::s3://bucket/data"):
        with pytest.raises(BadInputError):
            require_allowed(url, roots)


def test_links_out_of_the_roots_are_reported(tmp_path: Path) -> None:
    write_scenes(tmp_path / "in", range(1))
    write_scenes(tmp_path / "out", range(1, 2))
    (tmp_path / "in" / "link.jpg").symlink_to(tmp_path / "out" / "scene-001.jpg")
    files = list_files(str(tmp_path / "in"), roots=[str(tmp_path / "in")]).files
    assert [(file.file_name, file.problem is None) for file in files] == [("link.jpg", False), ("scene-000.png", True)]


@pytest.mark.s3
def test_a_bucket(s3_bucket: str) -> None:
    fs = fsspec.filesystem("s3")
    fs.pipe(f"{s3_bucket}/data/a.png", encoded(scene(0)))
    fs.pipe(f"{s3_bucket}/data/b/c.jpg", encoded(scene(1), "JPEG"))
    fs.pipe(f"{s3_bucket}/data/notes.txt", b"no")
    listing = list_files(f"{s3_bucket}/data")
    assert [file.file_name for file in listing.files] == ["a.png", "b/c.jpg"]
    assert [file.uri for file in listing.files] == [f"{s3_bucket}/data/a.png", f"{s3_bucket}/data/b/c.jpg"]
    assert listing.ignored == 1
    assert names(f"{s3_bucket}/data/*/*.jpg") == ["b/c.jpg"]
    before = listing.files[0].version
    fs.pipe(f"{s3_bucket}/data/a.png", encoded(scene(5)))
    assert list_files(f"{s3_bucket}/data").files[0].version != before
    with pytest.raises(BadInputError, match="nothing at"):
        list_files(f"{s3_bucket}/other")


def test_a_server_of_another_kind_than_the_roots_is_not_asked(tmp_path: Path) -> None:
    """Some clients connect as soon as they are made: nobody may send the server to a host that no root names."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"ftp://127.0.0.1:{server.getsockname()[1]}/photos"
        with pytest.raises(ForbiddenError, match="configured root"):
            require_allowed(url, [str(tmp_path)])
        with pytest.raises(TimeoutError):
            server.accept()
    with pytest.raises(BusyError, match="does not answer"):
        list_files(url)
