"""What the other formats hold, read again by those who will read them; and names that would like to be paths."""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import cv2
import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from lvis import LVIS, LVISEval, LVISResults
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from sqlalchemy import func, select

from pipeline.export.filters import named_filters
from pipeline.export.snapshot import FORMATS, export_snapshot
from pipeline.export.splits import Splits
from pipeline.export.verify import verify_snapshot
from pipeline.export.yolo import yaml_text
from pipeline.imports import import_source
from pipeline.ingest.scan import ingest
from pipeline.masks.rle import rle_to_mask
from pipeline.storage.campaigns import add_categories, create_campaign
from pipeline.storage.database import Database
from pipeline.storage.images import images_of
from pipeline.storage.masks import current_masks
from pipeline.storage.snapshots import list_snapshots
from schemas.campaigns import CampaignRecord
from schemas.errors import BadInputError
from schemas.masks import Rle
from schemas.tables import Annotator
from tests.pipeline.export.labelled import Labelled, blob, tree
from tests.pipeline.ingest.pictures import encoded, scene

Mask = NDArray[np.bool_]
HOSTILE = ['cat, "big"', "</script><b>x", "../../etc/passwd", "a: {b} - c #d", "\\ ß😀"]


def iou(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


def read_yolo(line: str, size: tuple[int, int]) -> tuple[int, Mask]:
    """A line as Ultralytics reads it: fractions to whole pixels, filled."""
    kind, *numbers = line.split()
    points = np.array(numbers, np.float32).reshape(-1, 2) * [size[1], size[0]]
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [points.astype(np.int32)], 1)
    return int(kind), mask.astype(bool)


def copy_of(world: Labelled, annotations: Path) -> CampaignRecord:
    """Another campaign of the same images, whose masks are imported."""
    with world.database.begin() as conn:
        made = create_campaign(
            conn,
            campaign_id=str(uuid.uuid4()),
            name=f"copy {uuid.uuid4()}",
            source_url=world.campaign.source_url,
            model_id="toy-color",
            model_digest="d" * 64,
            model_key="k",
            labels=[],
        )
    ingest(world.database, made, world.campaign.source_url)
    assert import_source(world.database, made, str(annotations), is_trusted=True).stored == len(world.masks)
    return made


def test_yolo_text_is_the_masks_again(world: Labelled, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_snapshot(world.database, world.campaign, str(out), ["yolo-seg"])
    data = yaml.safe_load((out / "yolo-seg" / "data.yaml").read_text())
    assert data["names"] == {0: "cat", 1: "dog", 2: "unlabelled"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert [(c["class"], c["id"]) for c in manifest["reports"]["yolo-seg"]["classes"]] == [(0, 1), (1, 2), (2, 0)]
    masks = {1: [4], 2: [], 3: [1, 2, 3], 5: [5, 6]}
    sources = [json.loads(line) for line in (out / "yolo-seg" / "sources.jsonl").read_text().splitlines()]
    assert [source["image_id"] for source in sources] == list(masks)
    kinds, found = [], []
    for source in sources:
        labels, image = out / "yolo-seg" / source["labels"], out / "yolo-seg" / source["image"]
        assert (image.parent, labels.parent) in {
            (out / "yolo-seg" / data[part], out / "yolo-seg" / "labels" / part) for part in ("train", "val")
        }
        assert image.stem == labels.stem
        with Image.open(image) as pixels:
            assert pixels.size == (80, 60)
        lines = labels.read_text().splitlines()
        assert len(lines) == len(masks[source["image_id"]])
        for line, number in zip(lines, masks[source["image_id"]], strict=True):
            kind, mask = read_yolo(line, (60, 80))
            kinds.append(kind)
            found.append((kind, iou(mask, world.masks[number])))
    assert kinds == [1, 0, 1, 2, 0, 0]
    assert min(value for _, value in found) > 0.95  # ellipses with holes
    for loss in manifest["reports"]["yolo-seg"]["polygons"]:
        place = {1: 0, 2: 1, 0: 2}[loss["id"]]
        values = [value for kind, value in found if kind == place]
        assert (loss["masks"], loss["min_iou"]) == (len(values), pytest.approx(min(values)))
        assert loss["mean_iou"] == pytest.approx(np.mean(values))
    assert verify_snapshot(str(out)).ok


def test_yolo_names_images_that_it_does_not_hold(world: Labelled, tmp_path: Path) -> None:
    export_snapshot(world.database, world.campaign, str(tmp_path / "out"), ["yolo-seg"], images="uri")
    first = json.loads((tmp_path / "out" / "yolo-seg" / "sources.jsonl").read_text().splitlines()[0])
    assert first["uri"] == world.images[0].uri and "image" not in first
    assert not (tmp_path / "out" / "yolo-seg" / "images").exists()


def test_datasets_loads_the_folder_with_its_splits(world: Labelled, tmp_path: Path) -> None:
    out, splits = tmp_path / "out", Splits(val=0.3, test=0.3)
    export_snapshot(world.database, world.campaign, str(out), ["hf", "parquet"], splits=splits)
    loaded = datasets.load_dataset(str(out / "hf"), cache_dir=str(tmp_path / "cache"))
    rows = {row["image_id"]: (split, row) for split in loaded for row in loaded[split]}
    table = pq.read_table(out / "parquet" / "images-00000.parquet").to_pylist()
    assert rows.keys() == {row["image_id"] for row in table}
    assert {split for split, _ in rows.values()} <= {"train", "validation", "test"}
    for row in table:
        split, found = rows[row["image_id"]]
        assert split == {"val": "validation"}.get(row["split"], row["split"])
        assert found["image"].size == (80, 60) and found["source"] == row["file_name"]
        assert found["verified_empty"] == row["verified_empty"]
        for entry in found["objects"]:
            mask = rle_to_mask(Rle(**entry["segmentation"]))
            assert np.array_equal(mask, world.masks[entry["id"]])
    names = loaded["train"].features["objects"].feature["category_id"].names
    assert names == ["unlabelled", "cat", "dog"]


def test_hf_without_images_is_refused(world: Labelled, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="hf holds the image files"):
        export_snapshot(world.database, world.campaign, str(tmp_path / "out"), ["hf"], images="uri")
    assert not (tmp_path / "out").exists()
    with world.database.connect() as conn:
        assert list_snapshots(conn, world.campaign_id) == []


def lvis(world: Labelled, out: Path, **options: Any) -> dict[str, Any]:
    """The LVIS file; pycocotools must be able to read it."""
    export_snapshot(world.database, options.pop("campaign", world.campaign), str(out), ["lvis"], **options)
    path = out / "lvis" / "instances.json"
    COCO(str(path))
    assert verify_snapshot(str(out)).ok
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def federated(loaded: dict[str, Any]) -> dict[int, tuple[list[int], list[int]]]:
    return {i["id"]: (i["neg_category_ids"], i["not_exhaustive_category_ids"]) for i in loaded["images"]}


def test_lvis_says_what_was_searched_for(world: Labelled, tmp_path: Path) -> None:
    loaded = lvis(world, tmp_path / "out")
    # 1 shows a dog, 2 nothing, 3 a cat, a dog and something without a category, 5 two cats
    assert federated(loaded) == {1: ([1], []), 2: ([1, 2], []), 3: ([], [1, 2]), 5: ([2], [])}
    counts = {c["id"]: (c["image_count"], c["instance_count"], c["frequency"]) for c in loaded["categories"]}
    assert counts == {0: (1, 1, "r"), 1: (2, 3, "r"), 2: (2, 2, "r")}


def test_lvis_claims_nothing_about_what_it_leaves_out(world: Labelled, tmp_path: Path) -> None:
    dogs = lvis(world, tmp_path / "dogs", filters={"categories": [2]})
    # what has no category on 3 may be another dog
    assert federated(dogs) == {1: ([], []), 2: ([2], []), 3: ([], [2]), 5: ([2], [])}
    late = lvis(world, tmp_path / "late", filters={"since": "2020-01-01T00:00:00+00:00"})
    assert federated(late) == {1: ([], [2]), 2: ([], []), 3: ([], [1, 2]), 5: ([], [1])}


def test_lvis_claims_nothing_where_the_filter_leaves_out_masks_without_a_category(
    database: Database, tmp_path: Path
) -> None:
    world = Labelled(database, tmp_path / "images", 5)
    world.label(world.images[0], [(None, blob(0))])
    world.label(world.images[1], [(None, blob(1)), (1, blob(2)), (None, blob(3))])
    world.label(world.images[2], [(1, blob(4)), (1, blob(5))])
    world.label(world.images[3], [(2, blob(6))])
    world.label(world.images[4], [])
    with world.database.begin() as conn:
        add_categories(conn, world.campaign_id, ["bird"])
    loaded = lvis(world, tmp_path / "out", filters={"categories": [1, 3]})
    assert federated(loaded) == {2: ([], [1]), 3: ([3], []), 4: ([1, 3], []), 5: ([1, 3], [])}
    assert [image["id"] for image in loaded["images"] if image["verified_empty"]] == [4, 5]
    with world.database.connect() as conn:
        [made] = list_snapshots(conn, world.campaign_id)
    assert (made.images, made.masks) == (4, 3)


def test_lvis_claims_nothing_about_imports(world: Labelled, tmp_path: Path) -> None:
    export_snapshot(world.database, world.campaign, str(tmp_path / "out"), ["coco"])
    made = copy_of(world, tmp_path / "out" / "coco" / "instances.json")
    loaded = lvis(world, tmp_path / "lvis", campaign=made)
    assert all(negative == [] and open_ended for negative, open_ended in federated(loaded).values())


def test_lvis_own_package_reads_it_and_finds_it_perfect(
    world: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lvis(world, tmp_path / "out")
    truth = LVIS(str(tmp_path / "out" / "lvis" / "instances.json"))
    assert (sorted(truth.imgs), sorted(truth.cats), sorted(truth.anns)) == ([1, 2, 3, 5], [0, 1, 2], [1, 2, 3, 4, 5, 6])
    for number, annotation in truth.anns.items():
        assert np.array_equal(truth.ann_to_mask(annotation).astype(bool), world.masks[number])
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis 0.5.3 is older than numpy 1.24, which dropped it
    kept = ("image_id", "category_id", "segmentation", "bbox", "area")
    found = [{name: annotation[name] for name in kept} | {"score": 1.0} for annotation in truth.anns.values()]
    elsewhere = {**found[-1], "category_id": 1}
    # On image 3 nobody looked for all cats, so one more does not count; on image 2, verified to be empty, it does.
    for image_id, is_perfect in ((3, True), (2, False)):
        evaluation = LVISEval(truth, LVISResults(truth, [*found, {**elsewhere, "image_id": image_id}]), "segm")
        evaluation.run()
        assert (evaluation.results["AP"] > 0.999) == is_perfect


@pytest.mark.parametrize("form", ["coco", "lvis"])
def test_a_second_import_gives_the_same_masks_bit_for_bit(world: Labelled, tmp_path: Path, form: str) -> None:
    export_snapshot(world.database, world.campaign, str(tmp_path / "out"), [form])
    made = copy_of(world, tmp_path / "out" / form / "instances.json")
    with world.database.connect() as conn:
        found = {(mask.image_number, mask.rle_counts, mask.mask_sha256) for mask in current_masks(conn, made.id)}
        wanted = {(m.image_number, m.rle_counts, m.mask_sha256) for m in current_masks(conn, world.campaign_id)}
        names = [image.file_name for image in images_of(conn, made.id)]
        assert names == [image.file_name for image in images_of(conn, world.campaign_id)]
    assert len(wanted) == 6 and found == wanted
    export_snapshot(world.database, made, str(tmp_path / "again"), ["coco", "parquet"])
    assert verify_snapshot(str(tmp_path / "again")).ok
    rows = pq.read_table(tmp_path / "again" / "parquet" / "annotations-00000.parquet").to_pylist()
    assert {(r["image_id"], r["segmentation"]["counts"], r["mask_sha256"]) for r in rows} == wanted
    assert {(row["source"], row["session_id"], row["annotator"]) for row in rows} == {("import", None, None)}


def test_polygons_can_be_stopped_between_masks(sqlite_database: Database, tmp_path: Path) -> None:
    world = Labelled(sqlite_database, tmp_path / "images", 1)
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return False

    for out, count in (("few", 1), ("many", 20)):
        world.label(world.images[0], [(1, blob(seed)) for seed in range(count)])
        asked.clear()
        export_snapshot(world.database, world.campaign, str(tmp_path / out), ["yolo-seg"], should_stop=should_stop)
    assert len(asked) > 20


def test_hostile_names_stay_names(sqlite_database: Database, tmp_path: Path) -> None:
    folder, places = tmp_path / "images", ["a, 'b' \"c\" <i>.png", "x{}\n--- #.png", "up..%2f..\\.png", "s/d../ü.png"]
    for seed, name in enumerate(places):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(scene(seed)))
    world = Labelled(sqlite_database, folder, 0)
    with sqlite_database.begin() as conn:
        add_categories(conn, world.campaign_id, HOSTILE)
    for place, image in enumerate(world.images):
        world.label(image, [(3 + place, blob(place)), (7, blob(place + 10))])
    names = sorted(image.file_name for image in world.images)
    assert names == sorted(places)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    out = tmp_path / "deep" / "out"
    export_snapshot(world.database, world.campaign, str(out), list(FORMATS))
    made = {path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith("clickloop.db")}
    assert all(path.is_relative_to(out) for path in made - before)
    listed = {file["path"] for file in json.loads((out / "manifest.json").read_text())["files"]}
    assert listed | {"manifest.json"} == tree(out).keys()
    assert verify_snapshot(str(out)).ok
    for form in ("coco", "lvis"):
        loaded = json.loads((out / form / "instances.json").read_bytes())
        assert sorted(image["file_name"] for image in loaded["images"]) == names
        assert [category["name"] for category in loaded["categories"]][2:] == HOSTILE
    data = yaml.safe_load((out / "yolo-seg" / "data.yaml").read_text(encoding="utf-8"))
    assert list(data["names"].values())[2:] == HOSTILE
    rows = [json.loads(line) for line in (out / "yolo-seg" / "sources.jsonl").read_bytes().splitlines()]
    assert sorted(row["file_name"] for row in rows) == names
    loaded = datasets.load_dataset(str(out / "hf"), cache_dir=str(tmp_path / "cache"))
    assert sorted(row["source"] for split in loaded.values() for row in split) == names
    table = pq.read_table(out / "parquet" / "annotations-00000.parquet")
    assert set(table["category"].to_pylist()) <= set(HOSTILE)


@pytest.mark.parametrize("text", ["", "a\nb", 'q"\\', "\x00\x7f\x85\u2028\u202e\ufeff", "😀", ": - # {}"])
def test_any_text_is_a_yaml_string(text: str) -> None:
    assert yaml.safe_load(f"0: {yaml_text(text)}\n1: x\n") == {0: text, 1: "x"}


def test_a_hostile_campaign_name_is_no_markup_in_the_cards(world: Labelled, tmp_path: Path) -> None:
    named = world.campaign.model_copy(update={"name": "x\n---\n# y <script>alert(1)</script>"})
    export_snapshot(world.database, named, str(tmp_path / "out"), ["hf", "parquet"])
    for card in (tmp_path / "out" / "README.md", tmp_path / "out" / "hf" / "README.md"):
        text = card.read_text()
        assert "<script>" not in text and text.count("\n---\n") == 1
        assert yaml.safe_load(text.split("---\n")[1])["configs"]


def test_filters_by_name(world: Labelled, tmp_path: Path) -> None:
    with world.database.connect() as conn:
        pseudonym = conn.execute(select(Annotator.pseudonym).where(Annotator.name == "Ann Secret")).scalar_one()
        found = named_filters(conn, world.campaign_id, categories=["dog", "cat"], annotators=["Ann Secret"], since=None)
        assert found == {"categories": [1, 2], "annotators": [pseudonym], "since": None}
        with pytest.raises(BadInputError, match=r"no category 'bird'\. Its categories: cat, dog"):
            named_filters(conn, world.campaign_id, categories=["bird"])
    report = export_snapshot(world.database, world.campaign, str(tmp_path / "out"), ["coco"], filters=found)
    assert report.counts["annotations"] == 5
    manifest = (tmp_path / "out" / "manifest.json").read_text()
    assert json.loads(manifest)["filters"] == {"categories": [1, 2], "annotators": [pseudonym]}
    assert "Ann Secret" not in manifest


def test_an_image_labelled_twice_has_its_clicks_in_order(world: Labelled, tmp_path: Path) -> None:
    for seed in range(3):
        world.label(world.images[0], [(1, blob(20 + seed))])
    export_snapshot(world.database, world.campaign, str(tmp_path / "out"), ["parquet", "coco"])
    rows = pq.read_table(tmp_path / "out" / "parquet" / "clicks-00000.parquet").to_pylist()
    keys = [(row["image_id"], row["session_id"], row["seq"]) for row in rows]
    assert keys == sorted(keys) and len({key[1] for key in keys if key[0] == 1}) == 4
    masks = {r["session_id"]: r["id"] for r in pq.read_table(next((tmp_path / "out").rglob("annot*"))).to_pylist()}
    accepted = [row for row in rows if row["kind"] == "accept" and row["image_id"] == 1]
    assert [row["annotation_id"] for row in accepted] == [masks[row["session_id"]] for row in accepted]
    assert verify_snapshot(str(tmp_path / "out")).ok


def test_only_images_verified_to_be_empty(sqlite_database: Database, tmp_path: Path) -> None:
    world = Labelled(sqlite_database, tmp_path / "images", 2)
    world.label(world.images[0], [])
    report = export_snapshot(world.database, world.campaign, str(tmp_path / "out"), list(FORMATS))
    assert report.counts == {"images": 1, "verified_empty": 1, "annotations": 0, "clicks": 0}
    assert verify_snapshot(str(tmp_path / "out")).ok
    assert [path.read_text() for path in (tmp_path / "out").rglob("000001.txt")] == [""]
    with world.database.connect() as conn:
        assert conn.execute(select(func.count()).select_from(Annotator)).scalar_one() == 1


def test_small_batches_give_the_same_bytes(world: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formats = [name for name in FORMATS if name != "hf"]  # its row groups follow the batches
    first = export_snapshot(world.database, world.campaign, str(tmp_path / "a"), formats)
    monkeypatch.setattr("pipeline.export.batches.ROWS_AT_ONCE", 10)
    monkeypatch.setattr("pipeline.export.batches.IMAGES_AT_ONCE", 2)
    export_snapshot(world.database, world.campaign, str(tmp_path / "b"), formats, snapshot_id=first.snapshot_id)
    shutil.rmtree(tmp_path / "images", ignore_errors=True)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
