"""How fast masks of a COCO file are imported, against what the libraries do with the same content.

    python benchmarks/import_rate.py [--images 300] [--masks-per-image 10]

Exports a made-up campaign (images of three sizes, masks of 16 to 600 pixels) as COCO, and imports that into it beside
the masks that are there: a look, then for good. The yardstick, in the same run: orjson reading the file, pycocotools
decoding and encoding each mask, and sqlite3 inserting the rows that the import made. Prints CPU time.
"""

import argparse
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
from export_speed import fill, timed
from pycocotools import mask as coco_mask

from pipeline.export.snapshot import export_snapshot
from pipeline.imports.store import import_source
from pipeline.storage.database import open_database

IMPORTED = {
    "masks": "SELECT * FROM masks WHERE source = 'import'",
    "instances": "SELECT * FROM instances WHERE mask_id IN (SELECT id FROM masks WHERE source = 'import')",
}


def masks_by_pycocotools(coco: dict[str, Any]) -> None:
    """Decode and encode every mask."""
    for annotation in coco["annotations"]:
        coco_mask.encode(coco_mask.decode(annotation["segmentation"]))


def insert_again(path: Path, empty: Path) -> float:
    """CPU seconds that sqlite3 takes to insert the imported masks and instances of a catalogue into an empty one."""
    with closing(sqlite3.connect(path)) as conn:
        rows = {table: conn.execute(query).fetchall() for table, query in IMPORTED.items()}
    with closing(sqlite3.connect(empty)) as conn:

        def insert() -> None:
            with conn:
                for table, found in rows.items():
                    conn.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * len(found[0]))})", found)

        return timed(insert)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--masks-per-image", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        catalogue = Path(folder) / "catalogue.db"
        database = open_database(f"sqlite:///{catalogue}")
        campaign = fill(database, options.images, options.masks_per_image, 1)
        export_snapshot(database, campaign, f"{folder}/out", ["coco"], images="uri")
        file = Path(folder) / "out" / "coco" / "instances.json"

        def work(is_look: bool) -> int:
            report = import_source(database, campaign, str(file), is_trusted=True, is_look=is_look)
            assert not report.dropped and report.round_trip_iou == 1.0, report
            return sum(report.masks.values())

        masks, look_s = timed(lambda: work(True))
        _, import_s = timed(lambda: work(False))
        coco, json_s = timed(lambda: orjson.loads(file.read_bytes()))
        _, decode_s = timed(lambda: masks_by_pycocotools(coco))
        open_database(f"sqlite:///{folder}/empty.db")
        insert_s = insert_again(catalogue, Path(folder) / "empty.db")
    floor = json_s + decode_s + insert_s
    print(f"{masks} masks: look {1000 * look_s / masks:.2f} ms each, import {1000 * import_s / masks:.2f} ms")
    print(
        f"yardstick {1000 * floor / masks:.2f} ms (JSON {json_s:.2f} s, masks {decode_s:.2f} s, rows {insert_s:.2f} s)"
    )
    print(f"yardstick / import {floor / import_s:.2f}")


if __name__ == "__main__":
    main()
