"""Exports, opened again by those who will read them."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import datasets
import duckdb
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.export import batches, parquet, png, snapshot
from pipeline.export import coco as coco_module
from pipeline.export.snapshot import FORMATS, export_snapshot
from pipeline.export.verify import verify_snapshot
from pipeline.storage import snapshots
from pipeline.storage.campaigns import add_categories
from pipeline.storage.database import Database
from schemas.errors import BadInputError, CorruptDataError, OutOfSpaceError
from tests.disks import full_disk
from tests.pipeline.export.labelled import ADAPTER, Labelled, blob, standard, tree
from tests.pipeline.storage.catalogues import store_import
from tests.s3 import object_names


def test_counts_manifest_and_verification(world: Labelled, storage_url: str) -> None:
    seen: list[dict[str, Any]] = []
    report = export_snapshot(world.database, world.campaign, storage_url, FORMATS, progress=seen.append)
    assert report.counts == {"images": 4, "verified_empty": 1, "annotations": 6, "clicks": 6 * 6 + 3}
    assert report.manifest_uri == f"{storage_url}/manifest.json"
    assert seen and seen[-1]["images"] == 4
    with fsspec.open(report.manifest_uri, "rb") as file:
        manifest = json.load(file)
    assert manifest["counts"] == report.counts
    assert (manifest["format"], manifest["format_version"]) == ("clickloop-snapshot", 1)
    assert (manifest["adapters"], manifest["model"]["id"]) == ([ADAPTER], "toy-color")
    assert manifest["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    for facts in manifest["files"]:
        with fsspec.open(f"{storage_url}/{facts['path']}", "rb") as file:
            data = file.read()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (facts["bytes"], facts["sha256"])
    check = verify_snapshot(storage_url)
    assert check.ok, check.problems
    assert (check.masks, check.unlisted, check.counts) == (6, [], report.counts)
    assert verify_snapshot(f"{storage_url}/manifest.json").ok


def test_the_same_on_postgresql(database: Database, tmp_path: Path) -> None:
    world = standard(database, tmp_path / "images")
    report = export_snapshot(world.database, world.campaign, str(tmp_path / "out"), FORMATS)
    assert report.counts["annotations"] == 6
    assert verify_snapshot(str(tmp_path / "out")).ok


def test_pycocotools_reads_it_and_finds_it_perfect(world: Labelled, tmp_path: Path) -> None:
    export_snapshot(world.database, world.campaign, str(tmp_path / "out"), ["coco"])
    path = tmp_path / "out" / "coco" / "instances.json"
    coco = COCO(str(path))
    assert sorted(coco.imgs) == [1, 2, 3, 5]
    assert sorted(coco.anns) == [1, 2, 3, 4, 5, 6]
    assert coco.getAnnIds(imgIds=[2]) == []
    for number, annotation in coco.anns.items():
        mask = coco.annToMask(annotation).astype(bool)
        assert np.array_equal(mask, world.masks[number])
        rows, columns = np.nonzero(mask)
        assert annotation["area"] == mask.sum()
        assert annotation["iscrowd"] == 0
        width, height = columns.max() - columns.min() + 1, rows.max() - rows.min() + 1
        assert annotation["bbox"] == [columns.min(), rows.min(), width, height]
    assert {c["id"]: c["name"] for c in coco.dataset["categories"]} == {0: "unlabelled", 1: "cat", 2: "dog"}
    found = [{**annotation, "score": 1.0} for annotation in coco.dataset["annotations"]]
    evaluation = COCOeval(coco, coco.loadRes(found), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_coco_says_where_each_mask_came_from_and_no_name(world: Labelled, tmp_path: Path) -> None:
    export_snapshot(world.database, world.campaign, str(tmp_path / "out"), FORMATS)
    coco = json.loads((tmp_path / "out" / "coco" / "instances.json").read_text())
    assert [image["verified_empty"] for image in coco["images"]] == [False, True, False, False]
    assert {image["split"] for image in coco["images"]} <= {"train", "holdout"}
    lineage = coco["annotations"][0]["lineage"]
    assert (lineage["adapter_digest"], lineage["source"], lineage["score"]) == (ADAPTER, "annotator", None)
    assert all(b"Ann Secret" not in data for data in tree(tmp_path / "out").values())


def test_files_say_what_the_model_and_the_annotator_thought_of_a_mask(
    sqlite_database: Database, tmp_path: Path
) -> None:
    world = Labelled(sqlite_database, tmp_path / "images", 2)
    world.label(world.images[0], [(1, blob(0))], score=0.75, unsure=True)
    world.label(world.images[1], [(1, blob(1))])
    export_snapshot(world.database, world.campaign, str(tmp_path / "out"), FORMATS)
    coco = json.loads((tmp_path / "out" / "coco" / "instances.json").read_text())["annotations"]
    assert [(mask["unsure"], mask["lineage"]["score"]) for mask in coco] == [(True, 0.75), (False, None)]
    rows = pq.read_table(tmp_path / "out" / "parquet" / "annotations-00000.parquet").to_pylist()
    assert [(row["unsure"], row["score"]) for row in rows] == [(True, 0.75), (False, None)]
    filters = {"sure": True}
    report = export_snapshot(world.database, world.campaign, str(tmp_path / "sure"), ["lvis"], filters=filters)
    assert report.counts["annotations"] == 1
    (image,) = json.loads((tmp_path / "sure" / "lvis" / "instances.json").read_text())["images"]
    assert image["neg_category_ids"] == []


def test_no_category_is_added_where_every_mask_has_one(sqlite_database: Database, tmp_path: Path) -> None:
    world = Labelled(sqlite_database, tmp_path / "images", 1)
    world.label(world.images[0], [(2, blob(0))])
    export_snapshot(world.database, world.campaign, str(tmp_path / "out"), ["coco"])
    coco = json.loads((tmp_path / "out" / "coco" / "instances.json").read_text())
    assert [category["id"] for category in coco["categories"]] == [1, 2]


def test_datasets_loads_it_as_it_is(world: Labelled, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_snapshot(world.database, world.campaign, str(out), ["parquet"])
    cache = str(tmp_path / "cache")
    images = datasets.load_dataset("parquet", data_files=f"{out}/parquet/images-*.parquet", cache_dir=cache)["train"]
    assert isinstance(images.features["image"], datasets.Image)
    first = images[0]
    assert first["image"].size == (first["width"], first["height"]) == (80, 60)
    objects = images[2]["objects"]
    assert [entry["id"] for entry in objects] == [1, 2, 3]
    names = images.features["objects"].feature["category_id"]
    assert [names.int2str(entry["category_id"]) for entry in objects] == ["cat", "dog", "unlabelled"]
    clicks = datasets.load_dataset(str(out), "clicks", cache_dir=cache)["train"]
    assert len(clicks) == 39
    streamed = datasets.load_dataset(str(out), "images", streaming=True)["train"]
    assert next(iter(streamed))["image"].size == (80, 60)


def test_datasets_is_told_of_no_table_without_rows(sqlite_database: Database, tmp_path: Path) -> None:
    """It opens none: masks that were imported have no clicks."""
    world, out = Labelled(sqlite_database, tmp_path / "images", 1), str(tmp_path / "out")
    with sqlite_database.begin() as conn:
        store_import(conn, world.images[0].id, blob(1))
    export_snapshot(world.database, world.campaign, out, ["parquet"])
    names = datasets.get_dataset_config_names(out)
    assert names == ["images", "annotations"]
    for name in names:
        assert len(datasets.load_dataset(out, name, cache_dir=str(tmp_path / "cache"))["train"]) == 1


def test_duckdb_and_pyarrow_read_it(world: Labelled, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_snapshot(world.database, world.campaign, str(out), ["parquet"])
    rows = duckdb.sql(
        f"SELECT category, count(*), sum(area) FROM '{out}/parquet/annotations-*.parquet' GROUP BY 1 ORDER BY 1"
    ).fetchall()
    by_category = {None: [3], "cat": [1, 5, 6], "dog": [2, 4]}
    assert {row[0]: row[1:] for row in rows} == {
        name: (len(ids), float(sum(world.masks[i].sum() for i in ids))) for name, ids in by_category.items()
    }
    joined = duckdb.sql(
        f"SELECT count(*) FROM '{out}/parquet/clicks-*.parquet' c JOIN '{out}/parquet/annotations-*.parquet' a "
        "ON c.annotation_id = a.id WHERE c.kind = 'click' AND NOT c.undone"
    ).fetchall()
    assert joined == [(12,)]
    table = pq.read_table(out / "parquet" / "annotations-00000.parquet")
    assert table.column("image_id").to_pylist() == [1, 3, 3, 3, 5, 5]
    assert (
        pq.ParquetFile(out / "parquet" / "clicks-00000.parquet").metadata.row_group(0).column(0).compression == "ZSTD"
    )


def test_the_click_log_says_what_was_done_and_computed(world: Labelled, tmp_path: Path) -> None:
    export_snapshot(world.database, world.campaign, str(tmp_path / "out"), ["parquet"])
    rows = pq.read_table(tmp_path / "out" / "parquet" / "clicks-00000.parquet").to_pylist()
    session = [row for row in rows if row["image_id"] == 1]
    assert [row["kind"] for row in session] == ["open", "click", "click", "click", "undo", "accept", "submit"]
    assert [row["undone"] for row in session] == [False, False, False, True, False, False, False]
    assert [row["sign"] for row in session] == [None, 1, -1, 1, None, None, None]
    assert (session[2]["x"], session[2]["y"]) == (3.5, 2.25)
    assert (session[1]["latency_ms"], session[1]["scores"], session[1]["roi"]) == (2.5, [0.5, 0.25], [0, 0, 60, 80])
    assert session[1]["adapter_version"] == ADAPTER
    assert session[0]["t_ms"] == 0 and all(row["t_ms"] >= 0 for row in rows)
    assert [row["annotation_id"] for row in session] == [4] * 6 + [None]
    assert [(r["image_id"], r["session_id"], r["seq"]) for r in rows] == sorted(
        (r["image_id"], r["session_id"], r["seq"]) for r in rows
    )


def test_png_masks_are_the_masks(world: Labelled, tmp_path: Path) -> None:
    export_snapshot(world.database, world.campaign, str(tmp_path / "out"), ["png"])
    found = {int(path.stem): path for path in (tmp_path / "out" / "masks").rglob("*.png")}
    assert found.keys() == world.masks.keys()
    for number, path in found.items():
        assert np.array_equal(np.asarray(Image.open(path)), world.masks[number])


def test_the_same_snapshot_has_the_same_bytes(world: Labelled, tmp_path: Path) -> None:
    first = export_snapshot(world.database, world.campaign, str(tmp_path / "a"), FORMATS)
    world.label(world.images[3], [(1, blob(9))])
    with world.database.begin() as conn:
        add_categories(conn, world.campaign_id, ["bird"])
    options = {"snapshot_id": first.snapshot_id}
    export_snapshot(world.database, world.campaign, str(tmp_path / "b"), FORMATS, **options)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    later = export_snapshot(world.database, world.campaign, str(tmp_path / "c"), FORMATS)
    assert later.counts["annotations"] == 7
    assert later.snapshot_number == first.snapshot_number + 1


def test_filters(world: Labelled, tmp_path: Path) -> None:
    report = export_snapshot(
        world.database, world.campaign, str(tmp_path / "dogs"), ["coco"], filters={"categories": [2]}
    )
    assert report.counts["annotations"] == 2
    held = [image.number for image in world.images if image.holdout]
    export_snapshot(world.database, world.campaign, str(tmp_path / "held"), ["coco"], filters={"holdout": True})
    coco = json.loads((tmp_path / "held" / "coco" / "instances.json").read_text())
    assert {image["id"] for image in coco["images"]} == set(held) & {1, 2, 3, 5}


def test_uris_instead_of_image_files(world: Labelled, tmp_path: Path) -> None:
    report = export_snapshot(world.database, world.campaign, str(tmp_path / "out"), ["parquet"], images="uri")
    (row, *_) = pq.read_table(tmp_path / "out" / "parquet" / "images-00000.parquet").to_pylist()
    assert row["image"] == {"bytes": None, "path": world.images[0].uri}
    data = f"{tmp_path}/out/parquet/images-*.parquet"
    loaded = datasets.load_dataset("parquet", data_files=data, cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded[0]["image"].size == (80, 60)
    assert report.counts["images"] == 4


def test_an_empty_campaign_gives_empty_tables(sqlite_database: Database, tmp_path: Path) -> None:
    world = Labelled(sqlite_database, tmp_path / "images", 1)
    report = export_snapshot(world.database, world.campaign, str(tmp_path / "out"), FORMATS)
    assert set(report.counts.values()) == {0}
    assert verify_snapshot(str(tmp_path / "out")).ok
    assert COCO(str(tmp_path / "out" / "coco" / "instances.json")).imgs == {}


def test_shards(world: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = parquet.TableWriter
    monkeypatch.setattr(parquet, "TableWriter", lambda *args: writer(*args, shard_bytes=1))
    monkeypatch.setattr("pipeline.export.parquet._GROUP_ROWS", {"images": 1, "annotations": 2, "clicks": 7})
    export_snapshot(world.database, world.campaign, str(tmp_path / "out"), ["parquet", "coco"])
    assert len(list((tmp_path / "out" / "parquet").glob("images-*.parquet"))) == 4
    assert len(list((tmp_path / "out" / "parquet").glob("annotations-*.parquet"))) == 3
    assert len(COCO(str(tmp_path / "out" / "coco" / "instances.json")).anns) == 6
    assert verify_snapshot(str(tmp_path / "out")).ok


def left_over(url: str, tmp_path: Path) -> list[str]:
    """Everything that a failed export left at the target or beside it."""
    if url.startswith("s3:"):
        return object_names(url)
    return [str(path) for path in tmp_path.rglob("*") if "storage" in path.name]


@pytest.mark.parametrize("asked_before", [0, 1, 2, 3])
def test_stopped_between_rows_nothing_is_there(world: Labelled, tmp_path: Path, asked_before: int) -> None:
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) > asked_before

    url = str(tmp_path / "storage")
    report = export_snapshot(world.database, world.campaign, url, FORMATS, should_stop=should_stop)
    assert report.stopped and not report.manifest_uri
    assert left_over(url, tmp_path) == []


def interrupt(
    world: Labelled, url: str, module: Any, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Export with a function that is interrupted: nothing may be left, and the next export works."""

    def fail(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, where, fail)
        with pytest.raises(KeyboardInterrupt):
            export_snapshot(world.database, world.campaign, url, FORMATS)
    assert left_over(url, tmp_path) == []
    export_snapshot(world.database, world.campaign, url, FORMATS)
    assert verify_snapshot(url).ok


@pytest.mark.parametrize(
    ("module", "where"),
    [
        (batches, "annotation_table"),
        (batches, "click_table"),
        (coco_module, "object_parts"),
        (png, "write_mask_png"),
        (parquet, "dataset_card"),
        (snapshot, "manifest_facts"),
    ],
)
def test_interrupted_anywhere_nothing_is_left(
    world: Labelled, tmp_path: Path, module: Any, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(world, str(tmp_path / "storage"), module, where, tmp_path, monkeypatch)


@pytest.mark.s3
def test_interrupted_before_the_manifest_nothing_is_left_in_a_bucket(
    world: Labelled, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(world, f"{s3_bucket}/prefix", snapshot, "manifest_facts", tmp_path, monkeypatch)
    with pytest.raises(BadInputError, match="holds a snapshot already"):
        export_snapshot(world.database, world.campaign, f"{s3_bucket}/prefix", ["coco"])


@pytest.mark.parametrize("limit", [500, 3000, 9000])
def test_a_full_disk_leaves_nothing_visible(world: Labelled, tmp_path: Path, limit: int) -> None:
    # SQLite writes its snapshot row before the disk fills up
    with world.database.begin() as conn:
        made = snapshots.create_snapshot(conn, world.campaign_id, "export")
    campaign, url = world.campaign, str(tmp_path / "storage")
    with full_disk(limit), pytest.raises(OutOfSpaceError):
        export_snapshot(world.database, campaign, url, FORMATS, snapshot_id=made.id)
    assert left_over(url, tmp_path) == []


def test_the_free_space_floor(world: Labelled, tmp_path: Path) -> None:
    with pytest.raises(OutOfSpaceError, match="shall stay free"):
        export_snapshot(world.database, world.campaign, str(tmp_path / "storage"), min_free_bytes=1 << 60)
    assert left_over(str(tmp_path / "storage"), tmp_path) == []


def test_nothing_is_written_over(world: Labelled, tmp_path: Path) -> None:
    storage_url = str(tmp_path / "storage")
    export_snapshot(world.database, world.campaign, storage_url, ["coco"])
    with pytest.raises(BadInputError, match="already"):
        export_snapshot(world.database, world.campaign, storage_url, ["coco"])
    assert verify_snapshot(storage_url).ok
    (tmp_path / "mine").mkdir()
    export_snapshot(world.database, world.campaign, str(tmp_path / "mine"), ["coco"])  # an empty folder will do
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInputError):
        export_snapshot(world.database, world.campaign, str(tmp_path / "file"), ["coco"])


def test_what_killed_exports_left_beside_the_folder_goes_with_the_next_one_to_it(
    world: Labelled, tmp_path: Path
) -> None:
    for name in (".out.a1b2c3_4.part", ".out.b.a1b2c3_4.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(b"x")
    export_snapshot(world.database, world.campaign, str(tmp_path / "out"), ["coco"])
    assert verify_snapshot(str(tmp_path / "out")).ok
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".out.b.a1b2c3_4.part"]  # of an export to out.b


def test_into_an_empty_folder_behind_a_link(world: Labelled, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o750)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / ".real.killed.part").mkdir()  # what a killed export leaves
    report = export_snapshot(world.database, world.campaign, str(tmp_path / "link"), FORMATS)
    assert report.manifest_uri == f"{tmp_path}/link/manifest.json"
    assert verify_snapshot(str(tmp_path / "real")).ok
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").stat().st_mode & 0o777 == 0o750
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]


def test_an_empty_folder_is_written_into_and_not_replaced(world: Labelled, tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    before = (tmp_path / "storage").stat()  # a mount point could not be replaced
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(len(list(tmp_path.glob("storage/*.part"))))
        return len(asked) > 5

    url = str(tmp_path / "storage")
    assert export_snapshot(world.database, world.campaign, url, FORMATS, should_stop=should_stop).stopped
    assert set(asked) == {1} and list((tmp_path / "storage").iterdir()) == []
    export_snapshot(world.database, world.campaign, url, FORMATS)
    check, after = verify_snapshot(url), (tmp_path / "storage").stat()
    assert check.ok and check.unlisted == []
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


def test_what_came_into_an_empty_folder_meanwhile_stays(world: Labelled, tmp_path: Path) -> None:
    target = tmp_path / "storage"
    target.mkdir()

    def come(facts: dict[str, Any]) -> None:
        (target / "README.md").write_text("mine")

    with pytest.raises(BadInputError, match="not empty"):
        export_snapshot(world.database, world.campaign, str(target), FORMATS, progress=come)
    assert tree(target) == {"README.md": b"mine"}


def killed_while_moving_up(world: Labelled, target: Path, moved: int) -> None:
    """What is left of an export into an empty folder whose process died once it had moved so much out of its stage."""
    export_snapshot(world.database, world.campaign, str(target), FORMATS)
    names = sorted(os.listdir(target), key=lambda name: (name == "manifest.json", name))
    stage = target / ".out.killed_1.part"
    stage.mkdir()
    for name in names[moved:]:
        (target / name).rename(stage / name)


@pytest.mark.parametrize("moved", [1, 4, len(FORMATS) + 1])  # all but the manifest
def test_what_an_export_that_was_killed_had_moved_up_is_taken_back(world: Labelled, tmp_path: Path, moved: int) -> None:
    target = tmp_path / "out"
    killed_while_moving_up(world, target, moved)
    assert len([path for path in target.iterdir() if path.name[0] != "."]) == moved
    export_snapshot(world.database, world.campaign, str(target), ["coco"])
    check = verify_snapshot(str(target))
    assert check.ok and check.unlisted == []
    assert sorted(path.name for path in target.iterdir()) == ["coco", "manifest.json"]


@pytest.mark.parametrize("change", ["added", "changed", "linked", "folder"])
def test_nothing_is_taken_back_where_something_else_came(world: Labelled, tmp_path: Path, change: str) -> None:
    target = tmp_path / "out"
    killed_while_moving_up(world, target, 4)
    readme = target / "README.md"
    if change == "added":
        (target / "coco" / "mine.txt").write_text("mine")
    elif change == "changed":
        readme.write_text(readme.read_text().swapcase())
    elif change == "linked":
        readme.rename(tmp_path / "mine.md")
        readme.symlink_to(tmp_path / "mine.md")
    else:
        (target / "mine").mkdir()
    before = tree(target)
    with pytest.raises(BadInputError, match="not empty"):
        export_snapshot(world.database, world.campaign, str(target), FORMATS)
    assert tree(target) == before and (change != "folder" or (target / "mine").is_dir())


def test_what_others_put_there_stays(world: Labelled, storage_url: str) -> None:
    files = {f"{storage_url}/coco/instances.json": b"mine", f"{storage_url}/notes.txt": b"mine, too"}
    for url, data in files.items():
        fs, path = fsspec.core.url_to_fs(url)
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.pipe_file(path, data)
        with pytest.raises(BadInputError, match="not empty"):
            export_snapshot(world.database, world.campaign, storage_url, FORMATS)
    fs, root = fsspec.core.url_to_fs(storage_url)
    fs.invalidate_cache()
    assert {f"{storage_url}/{path[len(root) + 1 :]}": fs.cat_file(path) for path in fs.find(root)} == files
    with world.database.connect() as conn:
        assert snapshots.list_snapshots(conn, world.campaign_id) == []


@pytest.mark.s3
def test_an_object_that_stands_for_a_folder_is_nothing(world: Labelled, s3_bucket: str) -> None:
    s3 = fsspec.filesystem("s3")
    s3.call_s3("put_object", Bucket=s3_bucket.removeprefix("s3://"), Key="prefix/", Body=b"")
    export_snapshot(world.database, world.campaign, f"{s3_bucket}/prefix", ["coco"])
    assert verify_snapshot(f"{s3_bucket}/prefix").ok


def test_a_changed_image_is_not_embedded(sqlite_database: Database, tmp_path: Path) -> None:
    world = Labelled(sqlite_database, tmp_path / "images", 1)
    world.label(world.images[0], [(1, blob(0))])
    Path(world.images[0].uri).write_bytes(b"changed")
    with pytest.raises(CorruptDataError, match="changed since"):
        export_snapshot(world.database, world.campaign, str(tmp_path / "storage"), ["parquet"])
    assert left_over(str(tmp_path / "storage"), tmp_path) == []
    export_snapshot(world.database, world.campaign, str(tmp_path / "storage"), ["coco"])


@pytest.mark.parametrize("formats", [["yolo"], [], ["coco", "Parquet"]])
def test_unknown_formats_are_refused(world: Labelled, tmp_path: Path, formats: list[str]) -> None:
    with pytest.raises(BadInputError, match="Known: coco, parquet, png"):
        export_snapshot(world.database, world.campaign, str(tmp_path / "out"), formats)


def test_a_foreign_snapshot_is_refused(world: Labelled, tmp_path: Path) -> None:
    other = Labelled(world.database, tmp_path / "other", 1)
    report = export_snapshot(other.database, other.campaign, str(tmp_path / "a"), ["coco"])
    with pytest.raises(BadInputError, match="not one of campaign"):
        export_snapshot(world.database, world.campaign, str(tmp_path / "b"), ["coco"], snapshot_id=report.snapshot_id)
