"""Verification finds what is wrong with a snapshot."""

import gc
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.export.manifest import DELTA_FORMAT
from pipeline.export.snapshot import FORMATS, export_snapshot
from pipeline.export.verify import verify_snapshot
from pipeline.storage.campaigns import get_campaign
from pipeline.storage.database import Database
from pipeline.storage.files import sha256_file
from schemas.errors import BadInputError, CorruptDataError, NotFoundError
from tests.peaks import at_most
from tests.pipeline.export.labelled import Labelled


@pytest.fixture(scope="module")
def exported(labelled_template: tuple[Labelled, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound snapshot."""
    world, path = labelled_template
    folder = tmp_path_factory.mktemp("verify")
    shutil.copyfile(path, folder / "clickloop.db")
    database = Database(f"sqlite:///{folder / 'clickloop.db'}")
    with database.connect() as conn:
        campaign = get_campaign(conn, world.campaign_id)
    export_snapshot(database, campaign, str(folder / "out"), FORMATS)
    database.close()
    return folder / "out"


@pytest.fixture
def snapshot(exported: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(exported, tmp_path / "copy")
    return tmp_path / "copy"


def problems(snapshot: Path) -> str:
    """All problems in one text; there must be some."""
    report = verify_snapshot(str(snapshot))
    assert not report.ok
    return "\n".join(report.problems)


def restate(snapshot: Path, name: str) -> None:
    """Make the manifest agree with a file that was changed."""
    path = snapshot / "manifest.json"
    manifest = json.loads(path.read_text())
    for file in manifest["files"]:
        if file["path"] == name:
            file["bytes"], file["sha256"] = (snapshot / name).stat().st_size, sha256_file(snapshot / name)
    path.write_text(json.dumps(manifest))


def test_a_sound_one_passes(exported: Path) -> None:
    report = verify_snapshot(str(exported))
    assert report.ok and report.problems == [] and report.masks == 6


def test_annotations_are_checked_one_by_one(snapshot: Path) -> None:
    """A hundred thousand more: as objects they take a few hundred MB."""
    path = snapshot / "coco" / "instances.json"
    *head, first, rest = path.read_bytes().split(b"\n", 4)
    more = (b'{"id":%d,%s' % (number, first.partition(b",")[2]) for number in range(100, 100_100))
    path.write_bytes(b"\n".join([*head, *more, first, rest]))
    restate(snapshot, "coco/instances.json")
    with at_most(100):
        text = problems(snapshot)
    assert text == "coco: annotations: 100006 found, the manifest says 6"


def test_missing_cut_and_changed_files_are_found(snapshot: Path) -> None:
    (snapshot / "README.md").unlink()
    coco = snapshot / "coco" / "instances.json"
    coco.write_bytes(coco.read_bytes()[:-10])
    clicks = snapshot / "parquet" / "clicks-00000.parquet"
    data = bytearray(clicks.read_bytes())
    data[len(data) // 2] ^= 1
    clicks.write_bytes(bytes(data))
    text = problems(snapshot)
    assert "README.md: missing" in text
    assert "coco/instances.json: " in text and "bytes" in text
    assert "clicks-00000.parquet: its sha256" in text


def change_annotation(snapshot: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the first annotation of the COCO file, manifest included."""
    path = snapshot / "coco" / "instances.json"
    coco = json.loads(path.read_text())
    change(coco["annotations"][0])
    path.write_text(json.dumps(coco))
    restate(snapshot, "coco/instances.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": 0}, "ids must be unique"),
        ({"id": 2}, "ids must be unique"),
        ({"area": 3}, "do not fit"),
        ({"category_id": 77}, "category 77"),
        ({"iscrowd": 1}, "iscrowd"),
        ({"bbox": [0, 0, 1, 1]}, "that of its mask"),
        ({"image_id": 99}, "image of size None"),
        ({"segmentation": {"size": [80, 60], "counts": "01?0"}}, "mask of size"),
        ({"segmentation": {"size": [60, 80], "counts": "01?0"}}, "do not fit"),
        ({"segmentation": {"size": [60, 80], "counts": "~~~"}}, "RLE"),
        ({"segmentation": None}, "coco/instances.json: malformed"),
    ],
)
def test_wrong_annotations_are_found(snapshot: Path, change: dict[str, Any], said: str) -> None:
    change_annotation(snapshot, lambda annotation: annotation.update(change))
    assert said in problems(snapshot)


def test_missing_rows_are_found(snapshot: Path) -> None:
    path = snapshot / "parquet" / "annotations-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    restate(snapshot, "parquet/annotations-00000.parquet")
    text = problems(snapshot)
    assert "rows: 5 found, the manifest says 6" in text and "parquet: annotations: 5 found" in text


def test_another_schema_is_found(snapshot: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), snapshot / "parquet" / "annotations-00000.parquet")
    restate(snapshot, "parquet/annotations-00000.parquet")
    assert "annotations" in problems(snapshot)


@pytest.mark.parametrize("part", ["data", "footer"])
def test_a_damaged_table_is_found(snapshot: Path, part: str) -> None:
    path = snapshot / "parquet" / "annotations-00000.parquet"
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[300 if part == "data" else footer] ^= 0xFF
    path.write_bytes(data)
    restate(snapshot, "parquet/annotations-00000.parquet")
    assert problems(snapshot)


def test_a_file_that_is_no_png_is_found(snapshot: Path) -> None:
    path = next((snapshot / "masks").rglob("*.png"))
    path.write_text("no picture")
    restate(snapshot, str(path.relative_to(snapshot)))
    assert "malformed" in problems(snapshot)


def test_a_folder_in_the_place_of_a_file_is_found(snapshot: Path) -> None:
    path = snapshot / "coco" / "instances.json"
    path.unlink()
    path.mkdir()
    assert "coco/instances.json: missing" in problems(snapshot)


@pytest.mark.parametrize(
    "change",
    [
        {"files": None},
        {"files": [1]},
        {"files": [{"path": 3, "bytes": 1, "sha256": ""}]},
        {"counts": None},
        {"counts": {"images": "x"}},
        {"snapshot": None},
        {"format_version": "x"},
        {"categories": None},
        {"categories": [{"id": "x", "name": "cat"}]},
        {"delta": {"since": {"id": "x", "number": "x"}, "tombstones": "tombstones.json"}},
        {"delta": {"since": {"id": "x", "number": 1}, "tombstones": ["tombstones.json"]}},
    ],
)
def test_a_broken_manifest_is_said_to_be_that(snapshot: Path, change: dict[str, Any]) -> None:
    path = snapshot / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CorruptDataError, match=next(iter(change))):
        verify_snapshot(str(snapshot))


def test_a_wrong_png_is_found(snapshot: Path) -> None:
    masks = sorted((snapshot / "masks").rglob("*.png"))
    shutil.copyfile(masks[1], masks[0])
    restate(snapshot, str(masks[0].relative_to(snapshot)))
    assert "its annotation says" in problems(snapshot)


def test_a_png_of_too_many_pixels_is_a_problem(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # reading images lifts it for the process
    assert "too large to be checked" in problems(snapshot)


def test_files_beside_are_named_but_no_problem(snapshot: Path) -> None:
    (snapshot / "notes.txt").touch()
    report = verify_snapshot(str(snapshot))
    assert report.ok and report.unlisted == ["notes.txt"]
    (snapshot / "elsewhere").symlink_to(snapshot.parent)
    (snapshot / "masks" / "more").mkdir()
    (snapshot / "masks" / "more" / "1.png").touch()
    assert verify_snapshot(str(snapshot)).unlisted == ["elsewhere", "masks/more/1.png", "notes.txt"]


def test_files_of_a_snapshot_take_little_memory(snapshot: Path) -> None:
    """What the listing of their folders says of each, and the manifest twice, took half as much again."""
    path, empty = snapshot / "manifest.json", {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    (snapshot / "more").mkdir()
    names = [f"more/{number:08d}" for number in range(20_000)]
    for name in names:
        (snapshot / name).touch()
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"formats": [], "files": [{"path": name} | empty for name in names]}))
    del manifest, names
    gc.collect()
    with at_most(15):
        assert verify_snapshot(str(snapshot)).ok


def test_a_path_that_leaves_the_snapshot_is_not_read(snapshot: Path) -> None:
    manifest = json.loads((snapshot / "manifest.json").read_text())
    manifest["files"][0]["path"] = "../../secret"
    (snapshot / "manifest.json").write_text(json.dumps(manifest))
    assert "leaves the snapshot" in problems(snapshot)


@pytest.mark.parametrize("name", ["coco/instances.json", "lvis/instances.json", "yolo-seg/data.yaml", "hf/README.md"])
def test_a_format_whose_file_the_manifest_does_not_list_is_found(snapshot: Path, name: str) -> None:
    path = snapshot / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = [file for file in manifest["files"] if file["path"] != name]
    path.write_text(json.dumps(manifest))
    assert problems(snapshot) == f"{name}: not among the files of the manifest"


def test_counts_that_the_manifest_lacks_are_missed(snapshot: Path) -> None:
    path = snapshot / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"counts": {}}))
    assert "annotations: 6 found, the manifest says None" in problems(snapshot)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["\x1b[2J" * 1000, "a\0b", "pipe", "zeros"])
def test_what_is_no_file_is_not_waited_for(snapshot: Path, name: str) -> None:
    """Nor does a file's name do anything to the terminal."""
    os.mkfifo(snapshot / "pipe")
    (snapshot / "zeros").symlink_to("/dev/zero")
    path = snapshot / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"].append({"path": name, "bytes": 1, "sha256": ""})
    path.write_text(json.dumps(manifest))
    [problem] = verify_snapshot(str(snapshot)).problems
    assert len(problem) < 5000
    assert problem.isprintable()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(NotFoundError, match=r"no manifest\.json"):
        verify_snapshot(str(snapshot))


def test_a_delta_that_does_not_say_of_what_is_broken(snapshot: Path) -> None:
    path = snapshot / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": DELTA_FORMAT}))
    with pytest.raises(CorruptDataError, match="delta"):
        verify_snapshot(str(snapshot))


def test_no_or_a_broken_or_a_newer_manifest(snapshot: Path) -> None:
    path = snapshot / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(BadInputError, match="newer"):
        verify_snapshot(str(snapshot))
    for broken in ("{", "[]", "{}"):
        path.write_text(broken)
        with pytest.raises(CorruptDataError):
            verify_snapshot(str(snapshot))
    path.unlink()
    with pytest.raises(NotFoundError, match="not finished"):
        verify_snapshot(str(snapshot))
