"""Deltas: applied to the older export they give the newer one, whatever was done between."""

import json
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.random import Generator
from sqlalchemy import update

from pipeline.export import batches
from pipeline.export.snapshot import export_snapshot
from pipeline.export.splits import Splits
from pipeline.export.verify import verify_snapshot
from pipeline.ingest.scan import ingest
from pipeline.storage import purge, requests, snapshots
from pipeline.storage.annotators import pseudonyms
from pipeline.storage.campaigns import add_categories
from pipeline.storage.database import Database
from pipeline.storage.files import patience
from pipeline.storage.images import images_of
from pipeline.storage.masks import current_masks
from pipeline.storage.sql import database_now
from schemas.campaigns import ImageRecord
from schemas.errors import BadInputError, BusyError, NotFoundError
from schemas.tables import Instance, Task
from tests.pipeline.export.labelled import Labelled, blob, tree
from tests.pipeline.export.test_verify import restate
from tests.pipeline.ingest.pictures import write_scenes
from tests.pipeline.storage.catalogues import store_import
from tests.s3 import object_names
from tests.s3_faults import FaultyS3

FORMATS = ["coco", "parquet"]
SORTED_BY = {"images": "image_id", "annotations": "image_id, id", "clicks": "image_id, session_id, seq"}
PAGE = (Path(__file__).parents[3] / "docs" / "deltas.md").read_text()


def block(language: str) -> str:
    """What the page tells to do."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def apply_to_coco(older: Path, delta: Path) -> dict[str, Any]:
    """The newer COCO file, as the page says."""
    namespace: dict[str, Any] = {}
    exec(block("python"), namespace)
    applied: dict[str, Any] = namespace["apply_delta"](older, delta)
    return applied


def apply_to_parquet(older: Path, delta: Path) -> dict[str, pa.Table]:
    """The newer tables, as the page says."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(block("sql").replace("'older/", f"'{older}/").replace("'delta/", f"'{delta}/"))
        return {name: connection.sql(f"FROM {name} ORDER BY {by}").to_arrow_table() for name, by in SORTED_BY.items()}


def tables(folder: Path) -> dict[str, pa.Table]:
    """The tables of an export."""
    return {
        name: pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob(f"parquet/{name}-*.parquet")))
        for name in SORTED_BY
    }


def coco_of(folder: Path) -> dict[str, Any]:
    """The COCO file of an export."""
    coco: dict[str, Any] = json.loads((folder / "coco" / "instances.json").read_text())
    return coco


def require_same(older: Path, delta: Path, newer: Path) -> None:
    """The older export and the delta are the newer export."""
    applied, whole = apply_to_coco(older, delta), coco_of(newer)
    assert {**applied, "info": None} == {**whole, "info": None}
    manifest = json.loads((delta / "manifest.json").read_text())
    assert applied["info"]["description"].endswith(f", snapshot {applied['info']['version']}")
    assert applied["info"]["version"] == str(manifest["snapshot"]["number"])
    for name, table in apply_to_parquet(older, delta).items():
        assert table.to_pylist() == tables(newer)[name].to_pylist(), name
    # the other way that the page tells of: annotation by annotation
    gone = json.loads((delta / "tombstones.json").read_text())
    removed, images = ({entry["id"] for entry in gone[what]} for what in ("annotations", "images"))
    masks = {
        mask["id"]: mask
        for mask in coco_of(older)["annotations"]
        if mask["id"] not in removed and mask["image_id"] not in images
    }
    masks |= {mask["id"]: mask for mask in coco_of(delta)["annotations"]}
    assert masks == {mask["id"]: mask for mask in whole["annotations"]}


@dataclass
class Editor:
    """Does to a campaign what people do."""

    world: Labelled
    random: Generator
    folder: Path
    scenes: int = 6

    def images(self) -> list[ImageRecord]:
        with self.world.database.connect() as conn:
            return images_of(conn, self.world.campaign_id)

    def masks(self, image: ImageRecord) -> list[str]:
        with self.world.database.connect() as conn:
            return [mask.id for mask in current_masks(conn, self.world.campaign_id, image_id=image.id)]

    def one(self, things: list[Any]) -> Any:
        return things[self.random.integers(len(things))]

    def drawn(self, low: int, high: int) -> list[tuple[int | None, Any]]:
        """New masks, from `low` to below `high` of them."""
        return [
            (self.one([1, 2, None]), blob(int(self.random.integers(1000))))
            for _ in range(self.random.integers(low, high))
        ]

    def edit(self) -> None:
        """Something happens."""
        image = self.one(self.images())
        masks = self.masks(image)
        match self.random.integers(9):
            case 0 | 1:
                self.world.label(
                    image, self.drawn(0, 3), score=self.one([0.2, 0.9, None]), unsure=self.one([True, False])
                )
            case 2 if masks:
                self.world.label(image, self.drawn(1, 3), corrects=masks[:1])
            case 3 if masks:
                self.world.label(image, [], deletes=masks)
            case 4 if masks:
                self.relabel(self.one(masks))
            case 5:
                self.purge(image)
            case 6:
                self.add_images()
            case 7:
                self.trust(image)
            case 8:
                self.set_state(image, self.one(["new", "skipped", "done"]))

    def relabel(self, mask_id: str) -> None:
        """The same mask has another category, or is flagged otherwise."""
        values = self.one([{"category_number": 2}, {"unsure": ~Instance.unsure}])
        with self.world.database.begin() as conn:
            conn.execute(update(Instance).where(Instance.mask_id == mask_id).values(values))

    def set_state(self, image: ImageRecord, state: str) -> None:
        """The image's task was skipped, or is to be done again."""
        with self.world.database.begin() as conn:
            conn.execute(update(Task).where(Task.image_id == image.id).values(state=state))

    def purge(self, image: ImageRecord) -> None:
        with self.world.database.connect() as conn:
            scope = purge.find_scope(conn, self.world.campaign_id, str(image.number))
        purge.purge(self.world.database, scope, str(self.folder / "storage"), purged_by="me")

    def add_images(self) -> None:
        write_scenes(self.folder / "images", range(self.scenes, self.scenes + 2))
        self.scenes += 2
        ingest(self.world.database, self.world.campaign, str(self.folder / "images"))

    def trust(self, image: ImageRecord) -> None:
        """A mask is imported."""
        mask = blob(int(self.random.integers(1000)))
        with self.world.database.begin() as conn:
            store_import(conn, image.id, mask)


def export(world: Labelled, to: Path, **options: Any) -> Any:
    """Write a snapshot or delta, and check it."""
    report = export_snapshot(world.database, world.campaign, str(to), options.pop("formats", FORMATS), **options)
    check = verify_snapshot(str(to))
    assert check.ok, check.problems
    assert check.since_snapshot == report.since_snapshot
    return report


def drawn_filters(world: Labelled, random: Generator) -> dict[str, Any]:
    """Some of what an export can be filtered by; masks that are there already are older than the time."""
    with world.database.connect() as conn:
        people, now = list(pseudonyms(conn).values()), database_now(conn).isoformat()
    of_all = {"states": ["new", "done"], "categories": [1, 3], "annotators": people, "since": now, "until": now}
    of_all |= {"sure": True, "min_score": 0.5}
    names = random.choice(list(of_all), 2, replace=False)
    return {name: of_all[name] for name in names}


def require_property(world: Labelled, tmp_path: Path, seed: int, *, is_filtered: bool) -> None:
    """After random edits, a delta since any older snapshot gives the newer one."""
    editor = Editor(world, np.random.default_rng(seed), tmp_path)
    for _ in range(4):
        editor.edit()
    options: dict[str, Any] = {"splits": Splits(val=0.3)}
    if is_filtered:
        options["filters"] = drawn_filters(world, editor.random)
    whole = {}
    for turn in range(4):
        for _ in range(editor.random.integers(1, 7)):
            editor.edit()
        if turn == 2:
            with world.database.begin() as conn:
                add_categories(conn, world.campaign_id, ["bird"])
        report = export(world, tmp_path / f"whole-{turn}", **options)
        for number, older in whole.items():
            delta = tmp_path / f"delta-{turn}-{number}"
            export(world, delta, snapshot_id=report.snapshot_id, since_snapshot=str(number), **options)
            require_same(older, delta, tmp_path / f"whole-{turn}")
        whole[report.snapshot_number] = tmp_path / f"whole-{turn}"


@pytest.mark.parametrize("is_filtered", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_the_older_export_and_the_delta_are_the_newer_one(
    database: Database, tmp_path: Path, seed: int, is_filtered: bool
) -> None:
    require_property(Labelled(database, tmp_path / "images"), tmp_path, seed, is_filtered=is_filtered)


def written(folder: Path) -> tuple[set[int], set[int], dict[str, Any]]:
    """Ids of the images and masks of a delta, and its tombstones."""
    coco = coco_of(folder)
    images, masks = ({entry["id"] for entry in coco[what]} for what in ("images", "annotations"))
    return images, masks, json.loads((folder / "tombstones.json").read_text())


def test_only_images_that_changed_are_there_and_tombstones_say_what_is_gone(world: Labelled, tmp_path: Path) -> None:
    editor = Editor(world, np.random.default_rng(0), tmp_path)
    one, two, three, _, five, _ = world.images
    base = export(world, tmp_path / "base")
    third = editor.masks(three)
    world.label(three, [(2, blob(10))], corrects=third[:1])  # mask 1 becomes 7
    world.label(five, [], deletes=editor.masks(five))  # 5 and 6 go, the image is verified to be empty
    editor.purge(one)
    report = export(world, tmp_path / "delta", since_snapshot=str(base.snapshot_number))
    images, masks, gone = written(tmp_path / "delta")
    assert (images, masks) == ({three.number, five.number}, {2, 3, 7})
    assert gone["annotations"] == [{"id": 1, "image_id": 3}, {"id": 5, "image_id": 5}, {"id": 6, "image_id": 5}]
    assert [(entry["id"], entry["sha256"]) for entry in gone["images"]] == [(one.number, one.sha256)]
    assert gone["images"][0]["purged_at"] is not None
    counts = {"images": 2, "verified_empty": 1, "annotations": 3, "removed_images": 1, "removed_annotations": 3}
    assert counts.items() <= report.counts.items()
    manifest = json.loads((tmp_path / "delta" / "manifest.json").read_text())
    assert manifest["format"] == "clickloop-snapshot-delta" and manifest["counts"] == report.counts
    assert manifest["delta"]["since"] == {"id": base.snapshot_id, "number": base.snapshot_number}
    assert two.number not in images


def test_a_purge_between_is_told_in_every_delta_since_before_and_in_none_since_after(
    world: Labelled, tmp_path: Path
) -> None:
    editor = Editor(world, np.random.default_rng(0), tmp_path)
    before = export(world, tmp_path / "before")
    editor.purge(world.images[0])
    editor.purge(world.images[5])  # in no snapshot
    after = export(world, tmp_path / "after")
    world.label(world.images[3], [(1, blob(9))])
    for base, gone in ((before, [1]), (after, [])):
        folder = tmp_path / f"since-{base.snapshot_number}"
        export(world, folder, since_snapshot=base.snapshot_id)
        assert [entry["id"] for entry in written(folder)[2]["images"]] == gone


def test_an_image_that_a_filter_takes_out_is_gone_without_a_purge(world: Labelled, tmp_path: Path) -> None:
    base = export(world, tmp_path / "older", filters={"states": ["done", "submitted"]})
    filters = {"states": ["submitted", "done"]}
    with world.database.begin() as conn:
        conn.execute(update(Task).where(Task.image_id == world.images[2].id).values(state="new"))
    delta = export(world, tmp_path / "delta", filters=filters, since_snapshot=str(base.snapshot_number))
    export(world, tmp_path / "newer", snapshot_id=delta.snapshot_id)
    assert written(tmp_path / "delta")[2]["images"] == [{"id": 3, "sha256": world.images[2].sha256, "purged_at": None}]
    require_same(tmp_path / "older", tmp_path / "delta", tmp_path / "newer")


def test_nothing_changed(world: Labelled, tmp_path: Path) -> None:
    base = export(world, tmp_path / "base")
    report = export(world, tmp_path / "delta", since_snapshot=str(base.snapshot_number))
    assert set(report.counts.values()) == {0} and report.since_snapshot == base.snapshot_number
    assert written(tmp_path / "delta") == (set(), set(), {"images": [], "annotations": []})


def test_deltas_chain_and_the_same_two_snapshots_have_the_same_bytes(world: Labelled, tmp_path: Path) -> None:
    first = export(world, tmp_path / "first")
    since = first.snapshot_number
    for turn in range(2):
        world.label(world.images[3], [(1, blob(20 + turn))])
        report = export(world, tmp_path / f"delta-{turn}", since_snapshot=str(since))
        since = report.snapshot_number
    again = {"snapshot_id": report.snapshot_id, "since_snapshot": str(since - 1)}
    export(world, tmp_path / "again", **again)
    assert tree(tmp_path / "again") == tree(tmp_path / "delta-1")
    assert written(tmp_path / "delta-1")[:2] == ({4}, {7, 8})


def test_many_pages(world: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "IMAGES_AT_ONCE", 2)
    base = export(world, tmp_path / "older")
    for number in (1, 2, 3, 4, 6):
        world.label(world.images[number - 1], [(1, blob(number))])
    delta = export(world, tmp_path / "delta", since_snapshot=str(base.snapshot_number))
    export(world, tmp_path / "newer", snapshot_id=delta.snapshot_id)
    assert written(tmp_path / "delta")[0] == {1, 2, 3, 4, 6}
    require_same(tmp_path / "older", tmp_path / "delta", tmp_path / "newer")


def refused(world: Labelled, tmp_path: Path, **options: Any) -> str:
    """What an export is refused with; it took no snapshot and wrote nothing."""
    with world.database.connect() as conn:
        before = snapshots.list_snapshots(conn, world.campaign_id)
    with pytest.raises((BadInputError, NotFoundError)) as caught:
        export(world, tmp_path / "refused", **options)
    with world.database.connect() as conn:
        assert snapshots.list_snapshots(conn, world.campaign_id) == before
    assert not (tmp_path / "refused").exists()
    return str(caught.value)


def test_a_difference_that_means_nothing_is_refused(world: Labelled, tmp_path: Path) -> None:
    other = Labelled(world.database, tmp_path / "other", 1)
    foreign = export(other, tmp_path / "foreign")
    base = export(world, tmp_path / "base")
    with world.database.begin() as conn:
        trained = snapshots.create_snapshot(conn, world.campaign_id, "retrain")
    since = {"since_snapshot": str(base.snapshot_number)}
    assert "no snapshot '77'" in refused(world, tmp_path, since_snapshot="77")
    assert "no snapshot" in refused(world, tmp_path, since_snapshot=foreign.snapshot_id)
    said = refused(world, tmp_path, since_snapshot=trained.id)
    assert "taken to retrain" in said and "snapshot list` calls an export" in said
    assert 'has the filters none, this export has {"categories":[1]}' in refused(
        world, tmp_path, filters={"categories": [1]}, **since
    )
    for name in ("png", "lvis", "yolo-seg", "hf"):
        assert f"{name} cannot be written as a delta" in refused(world, tmp_path, formats=["coco", name], **since)
    newer = export(world, tmp_path / "newer")
    assert "not older" in refused(world, tmp_path, snapshot_id=base.snapshot_id, since_snapshot=newer.snapshot_id)


@pytest.mark.parametrize("kind", ["export", "campaign"])
def test_what_the_base_was_not_written_with_is_refused(world: Labelled, tmp_path: Path, kind: str) -> None:
    base = export(world, tmp_path / "base")
    asked = {"val": 0.2, "formats": ["coco"], "images": "uri"} if kind == "export" else {"steps": ["export"]}
    result = {"snapshot_id": base.snapshot_id, "manifest_uri": base.manifest_uri}
    with world.database.begin() as conn:
        request = requests.insert_request(conn, str(uuid.uuid4()), kind, world.campaign_id, asked)
        requests.claim_request(conn, "me", request_id=request.id)
        done = result if kind == "export" else {"export": result}
        requests.finish_request(conn, request.id, "me", "done", done)
    since = {"since_snapshot": str(base.snapshot_number)}
    if kind == "export":
        said = "written as coco with --val 0.2 --test 0.0 --images uri"
        fitting: dict[str, Any] = {"splits": Splits(val=0.2), "formats": ["coco"], "images": "uri"}
    else:
        said = "written as coco, parquet with --val 0.0 --test 0.0 --images embedded"
        fitting = {"splits": Splits(), "formats": ["coco", "parquet"], "images": "embedded"}
    other = {"splits": Splits(test=0.5), "images": "embedded" if kind == "export" else "uri"}
    for name, value in other.items():
        assert said in refused(world, tmp_path, **fitting | {name: value}, **since)
    if kind == "export":
        assert said in refused(world, tmp_path, **fitting | {"formats": FORMATS}, **since)
    export(world, tmp_path / "fitting", **fitting, **since)


@pytest.mark.s3
def test_a_delta_to_a_bucket_goes_on_where_it_was_cut_off(
    world: Labelled, tmp_path: Path, faulty_s3: FaultyS3, s3_bucket: str
) -> None:
    base = export(world, tmp_path / "base")
    since = {"since_snapshot": str(base.snapshot_number)}
    world.label(world.images[3], [(1, blob(9))])
    url = f"{s3_bucket}/delta"
    faulty_s3.go_away("ServiceUnavailable", method="PUT", after=3)
    with patience(0), pytest.raises(BusyError):
        export_snapshot(world.database, world.campaign, url, FORMATS, **since)
    faulty_s3.come_back()
    with pytest.raises(BadInputError, match="other options"):
        export_snapshot(world.database, world.campaign, url, FORMATS)
    world.label(world.images[5], [(1, blob(10))])  # of no concern to what began before
    report = export_snapshot(world.database, world.campaign, url, FORMATS, **since)
    assert verify_snapshot(url).ok and report.counts["images"] == 1
    export(world, tmp_path / "local", snapshot_id=report.snapshot_id, **since)
    fs, root = fsspec.core.url_to_fs(url)
    assert {name: fs.cat_file(f"{root}/{name}") for name in object_names(url)} == tree(tmp_path / "local")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": [{"id": 4}]}, "images: 4 is said to be gone, and is there"),
        ({"annotations": [{"id": 7}]}, "annotations: 7 is said to be gone, and is there"),
        ({"images": [{"id": 5}, {"id": 5}]}, "images: ids must be unique"),
        ({"annotations": [{"id": 0}]}, "annotations: ids must be unique"),
        ({"annotations": []}, "annotations: 0 found, the manifest says 1"),
        ({"annotations": None}, "malformed"),
    ],
)
def test_wrong_tombstones_are_found(world: Labelled, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    folder = damaged(world, tmp_path)
    tombstones = json.loads((folder / "tombstones.json").read_text())
    (folder / "tombstones.json").write_text(json.dumps(tombstones | change))
    restate(folder, "tombstones.json")
    assert said in "\n".join(verify_snapshot(str(folder)).problems)


def test_missing_tombstones_are_found(world: Labelled, tmp_path: Path) -> None:
    folder = damaged(world, tmp_path)
    (folder / "tombstones.json").unlink()
    assert verify_snapshot(str(folder)).problems == ["tombstones.json: missing"]
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = [file for file in manifest["files"] if file["path"] != "tombstones.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "not among the files" in "\n".join(verify_snapshot(str(folder)).problems)


def damaged(world: Labelled, tmp_path: Path) -> Path:
    """A delta to damage: mask 7 on image 4 is new, mask 4 on image 1 is gone."""
    base = export(world, tmp_path / "base", formats=["coco"])
    editor = Editor(world, np.random.default_rng(0), tmp_path)
    world.label(world.images[3], [(1, blob(9))])
    world.label(world.images[0], [], deletes=editor.masks(world.images[0]))
    export(world, tmp_path / "delta", formats=["coco"], since_snapshot=base.snapshot_id)
    return tmp_path / "delta"
