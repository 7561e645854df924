"""The files of a snapshot: listed in order of path without being held, and written into the manifest one by one."""

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import orjson
import pytest

from pipeline.export.file_list import FileList, summary
from pipeline.export.manifest import write_manifest
from tests.disks import full_disk

PATHS = ["masks/000002/9.png", "parquet/images-0.parquet", "masks/000001/7.png", "coco/ä.json", "coco/a.json"]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[FileList]:
    with closing(FileList(tmp_path / "list")) as files:
        yield files
    assert not (tmp_path / "list").exists()


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_manifest_is_that_of_one_dump(tmp_path: Path, files: FileList, count: int) -> None:
    for place, path in enumerate(PATHS[:count]):
        files.add(path, 10 * place, f"{place:064x}", rows=3 if path.endswith(".parquet") else None)
    held = list(files)
    assert [file["path"] for file in held] == sorted(PATHS[:count])
    assert [file.get("rows") for file in held if "parquet" in file["path"]] in ([], [3])
    facts = {"format": "x", "z": {"files": []}, "campaign": 'a\n  "files": []', "delta": None}
    write_manifest(tmp_path / "manifest", facts, files)
    written = (tmp_path / "manifest").read_bytes()
    assert written == orjson.dumps(facts | {"files": held}, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    assert json.loads(written)["files"] == held


def test_summary_names_masks_last(files: FileList, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.export.file_list.LISTED_FILES", 4)
    for path in PATHS:
        files.add(path, 10, "0" * 64)
    found = summary(files)
    assert (found["num_files"], found["num_bytes"]) == (5, 50)
    assert [file["path"] for file in found["files"]] == [*sorted(PATHS)[:2], PATHS[1], PATHS[2]]
    assert summary(list(files)) == found


def test_a_full_disk_is_said_to_be_one(tmp_path: Path) -> None:
    def fill(files: FileList) -> None:
        for number in range(200_000):
            files.add(f"masks/{number:08d}.png", 1, "0" * 64)

    caught = pytest.raises(OSError, match="cannot grow")
    with closing(FileList(tmp_path / "list")) as files, full_disk(1 << 20), caught as error:
        fill(files)
    assert error.value.errno == errno.ENOSPC


def test_a_disk_that_is_full_when_it_is_read_is_said_to_be_one(tmp_path: Path) -> None:
    """What its cache has no room for is written before anything else is read into it."""

    def read_after(count: int, read: Callable[[FileList], object]) -> None:
        with closing(FileList(tmp_path / "list")) as files:
            for number in range(count):
                files.add(f"masks/{number:08d}.png", 1, "0" * 64)
            with full_disk(1 << 16), pytest.raises(OSError, match="cannot grow") as error:
                read(files)
        assert error.value.errno == errno.ENOSPC

    read_after(30_000, len)
    read_after(30_000, list)
    read_after(30_000, summary)
