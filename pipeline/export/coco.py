"""COCO JSON, streamed from the Parquet tables of a snapshot: memory does not grow with it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

import orjson
import pyarrow.parquet as pq

from schemas.arrow import category_names

Opener = Callable[[], IO[bytes]]
"""Opens a Parquet file for reading."""
_IMAGE_COLUMNS = ["image_id", "file_name", "width", "height", "sha256", "split", "verified_empty"]
_ANNOTATION_COLUMNS = [
    "id", "image_id", "category_id", "bbox", "area", "segmentation", "annotation_uuid", "version", "source",
    "num_clicks", "annotator", "model_digest", "adapter_digest",
]  # fmt: skip
_LINEAGE = ("annotation_uuid", "version", "source", "num_clicks", "annotator", "model_digest", "adapter_digest")
_BATCH = 5000


def write_coco(
    path: Path,
    images: Sequence[Opener],
    annotations: Sequence[Opener],
    categories: Sequence[tuple[int, str]],
    info: dict[str, Any],
) -> None:
    """Write a COCO instances file.

    Args:
        path: New local file.
        images: Shards of the `images` table.
        annotations: Shards of the `annotations` table.
        categories: (number, name) of every category; category 0 is added when a mask has none.
        info: COCO's `info` object.
    """
    unlabelled = False
    with path.open("wb") as file:
        file.write(b'{"info":' + orjson.dumps(info) + b',\n"licenses":[],\n"images":[\n')
        _write_items(file, (_image(row) for row in _rows(images, _IMAGE_COLUMNS)))
        file.write(b'],\n"annotations":[\n')

        def items() -> Iterator[dict[str, Any]]:
            nonlocal unlabelled
            for row in _rows(annotations, _ANNOTATION_COLUMNS):
                unlabelled |= row["category_id"] == 0
                yield _annotation(row)

        _write_items(file, items())
        file.write(b'],\n"categories":[\n')
        known = [(0, category_names(categories)[0])] * unlabelled + list(categories)
        _write_items(file, ({"id": number, "name": name, "supercategory": ""} for number, name in known))
        file.write(b"]}\n")


def _rows(shards: Sequence[Opener], columns: list[str]) -> Iterator[dict[str, Any]]:
    for opener in shards:
        with opener() as file:
            for batch in pq.ParquetFile(file).iter_batches(_BATCH, columns=columns):
                yield from batch.to_pylist()


def _write_items(file: BinaryIO, items: Iterable[dict[str, Any]]) -> None:
    """Comma-separated objects, one per line."""
    first = True
    for item in items:
        file.write(b"" if first else b",\n")
        file.write(orjson.dumps(item))
        first = False


def _image(row: dict[str, Any]) -> dict[str, Any]:
    return {"id": row.pop("image_id"), **row}


def _annotation(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "image_id": row["image_id"],
        "category_id": row["category_id"],
        "segmentation": row["segmentation"],
        "area": int(row["area"]),
        "bbox": [int(value) for value in row["bbox"]],
        "iscrowd": 0,
        "lineage": {name: row[name] for name in _LINEAGE},
    }
