"""Deltas: applied to the older export they give the newer one, whatever was done between."""

import json
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.random import Generator
from sqlalchemy import update

from pipeline.export.snapshot import export_snapshot
from pipeline.export.splits import Splits
from pipeline.export.verify import verify_snapshot
from pipeline.ingest.scan import ingest
from pipeline.masks.boxes import mask_box_xywh
from pipeline.masks.digest import mask_digest
from pipeline.masks.rle import mask_to_rle
from pipeline.storage import purge, requests, snapshots
from pipeline.storage.campaigns import add_categories
from pipeline.storage.database import Database
from pipeline.storage.images import images_of
from pipeline.storage.masks import current_masks, import_mask
from schemas.campaigns import ImageRecord
from schemas.errors import BadInputError, NotFoundError
from schemas.tables import Instance
from tests.pipeline.export.labelled import Labelled, blob, tree
from tests.pipeline.ingest.pictures import write_scenes

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
        match self.random.integers(8):
            case 0 | 1:
                self.world.label(image, self.drawn(0, 3))
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

    def relabel(self, mask_id: str) -> None:
        """The same mask has another category."""
        with self.world.database.begin() as conn:
            conn.execute(update(Instance).where(Instance.mask_id == mask_id).values(category_number=2))

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
            import_mask(
                conn, mask_id=str(uuid.uuid4()), instance_id=str(uuid.uuid4()), image_id=image.id, category_number=1,
                rle=mask_to_rle(mask), mask_sha256=mask_digest(mask), area=int(mask.sum()), bbox=mask_box_xywh(mask),
            )  # fmt: skip


def export(world: Labelled, to: Path, **options: Any) -> Any:
    """Write a snapshot or delta, and check it."""
    report = export_snapshot(world.database, world.campaign, str(to), options.pop("formats", FORMATS), **options)
    check = verify_snapshot(str(to))
    assert check.ok, check.problems
    assert check.since_snapshot == report.since_snapshot
    return report


def require_property(world: Labelled, tmp_path: Path, seed: int) -> None:
    """After random edits, a delta since any older snapshot gives the newer one."""
    editor = Editor(world, np.random.default_rng(seed), tmp_path)
    whole = {}
    for turn in range(4):
        for _ in range(editor.random.integers(1, 7)):
            editor.edit()
        if turn == 2:
            with world.database.begin() as conn:
                add_categories(conn, world.campaign_id, ["bird"])
        report = export(world, tmp_path / f"whole-{turn}")
        for number, older in whole.items():
            delta = tmp_path / f"delta-{turn}-{number}"
            export(world, delta, snapshot_id=report.snapshot_id, since_snapshot=str(number))
            require_same(older, delta, tmp_path / f"whole-{turn}")
        whole[report.snapshot_number] = tmp_path / f"whole-{turn}"


@pytest.mark.parametrize("seed", range(4))
def test_the_older_export_and_the_delta_are_the_newer_one(sqlite_database: Database, tmp_path: Path, seed: int) -> None:
    require_property(Labelled(sqlite_database, tmp_path / "images"), tmp_path, seed)


def test_the_same_on_postgresql(database: Database, tmp_path: Path) -> None:
    require_property(Labelled(database, tmp_path / "images"), tmp_path, 4)
