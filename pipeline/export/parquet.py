"""Parquet tables in shards, and the dataset card that names them."""

import html
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.export.batches import Labels
from pipeline.export.image_files import image_bytes
from pipeline.export.target import Format, Target
from schemas.arrow import IMAGE, TABLES, category_names, table_schema

SHARD_BYTES = 500_000_000
_GROUP_BYTES = 32_000_000
_GROUP_ROWS = {"images": 100, "annotations": 20_000, "clicks": 20_000}
"""Small groups of images, so that previews and streaming need not read much."""
_URI_ROWS = 1000
"""Rows of a group of images whose pixels are named only."""
_DICTIONARY = {
    "images": ["split"],
    "annotations": ["category", "split", "source", "annotator", "model_digest", "adapter_digest", "session_id"],
    "clicks": ["session_id", "instance_id", "kind", "annotator", "model_digest", "adapter_version", "engine"],
}

OnShard = Callable[[str, int], None]
"""Called with a finished shard's file name and rows."""


class TableWriter:
    """Writes one table as `FOLDER/TABLE-00000.parquet`, ... The same rows give the same bytes.

    Args:
        folder: Local folder that exists.
        table: images, annotations or clicks.
        names: Category names by number.
        on_shard: Told about every finished shard.
        group_rows: Rows of a row group.
        shard_bytes: A shard is ended when about so many bytes went into it.
    """

    def __init__(
        self,
        folder: Path,
        table: str,
        names: Sequence[str],
        on_shard: OnShard,
        group_rows: int,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self._folder = folder
        self._table = table
        self._schema = table_schema(table, names)
        self._on_shard = on_shard
        self._group_rows = group_rows
        self._shard_bytes = shard_bytes
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._shards = self._shard_size = self._shard_rows = 0

    def write(self, table: pa.Table) -> None:
        """Append rows; they are written when there are enough for a row group."""
        self._waiting.append(table)
        rows, size = sum(t.num_rows for t in self._waiting), sum(t.nbytes for t in self._waiting)
        if size >= _GROUP_BYTES:
            self._flush(rows)
        elif rows >= self._group_rows:
            self._flush(rows - rows % self._group_rows)

    def finish(self) -> None:
        """End the last shard."""
        self._flush(sum(t.num_rows for t in self._waiting))
        if not self._shards:
            self._open_shard()  # an empty table is a table, too
        self._end_shard()

    def close(self) -> None:
        """Let go of the file; of an export that failed, if it is still open."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
            self._writer = None

    def _flush(self, rows: int) -> None:
        """Write the first rows that wait, a row group at a time."""
        if not rows:
            return
        waiting = pa.concat_tables(self._waiting)
        self._waiting = [waiting.slice(rows)] if waiting.num_rows > rows else []
        for start in range(0, rows, self._group_rows):
            self._write_group(waiting.slice(start, min(self._group_rows, rows - start)))

    def _write_group(self, group: pa.Table) -> None:
        writer = self._writer or self._open_shard()
        writer.write_table(group.replace_schema_metadata(self._schema.metadata), row_group_size=group.num_rows)
        self._shard_rows += group.num_rows
        self._shard_size += group.nbytes
        if self._shard_size >= self._shard_bytes:
            self._end_shard()

    def _open_shard(self) -> pq.ParquetWriter:
        self._name = f"{self._table}-{self._shards:05d}.parquet"
        self._writer = pq.ParquetWriter(
            self._folder / self._name, self._schema, compression="zstd", use_dictionary=_DICTIONARY[self._table]
        )
        self._shards += 1
        self._shard_size = self._shard_rows = 0
        return self._writer

    def _end_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._on_shard(self._name, self._shard_rows)


class ParquetFormat(Format):
    """`parquet/images-*`, `annotations-*` and `clicks-*`, and the card that tells `datasets` so."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._filled: set[str] = set()
        folder, names = target.directory.local_folder("parquet"), category_names(target.categories)
        rows = _GROUP_ROWS if target.embed else _GROUP_ROWS | {"images": _URI_ROWS}
        self._tables = {table: TableWriter(folder, table, names, self._on_shard, rows[table]) for table in TABLES}

    def add_labels(self, labels: Labels) -> None:
        """Write images, their pixels if they are to be embedded, and masks."""
        for images in self._embedded(labels) if self._target.embed else [labels.images]:
            self._tables["images"].write(images)
        self._tables["annotations"].write(labels.annotations)

    def add_clicks(self, clicks: pa.Table) -> None:
        """Write clicks."""
        self._tables["clicks"].write(clicks)

    def finish(self) -> dict[str, Any]:
        """End the tables and write the card."""
        for table in self._tables.values():
            table.finish()
        self._target.directory.local_path("README.md").write_text(dataset_card(self._target.title, self._filled))
        self._target.directory.add("README.md")
        return {}

    def close(self) -> None:
        """Let go of open shards."""
        for table in self._tables.values():
            table.close()

    def _on_shard(self, name: str, rows: int) -> None:
        self._target.directory.add(f"parquet/{name}", rows=rows)
        if rows:
            self._filled.add(name.partition("-")[0])

    def _embedded(self, labels: Labels) -> Iterator[pa.Table]:
        """The rows of `images` with their files' bytes, a row group or so at a time.

        Raises:
            BadImageError, CorruptDataError, OSError: An image is gone, changed or not reachable.
        """
        start, files, size = 0, list[dict[str, Any]](), 0
        for place, image in enumerate(labels.sources):
            data = image_bytes(image)
            files.append({"bytes": data, "path": image.file_name})
            size += len(data)
            if size >= _GROUP_BYTES or len(files) >= _GROUP_ROWS["images"] or place + 1 == len(labels.sources):
                rows = labels.images.slice(start, len(files))
                yield rows.set_column(rows.column_names.index("image"), "image", pa.array(files, IMAGE))
                start, files, size = place + 1, [], 0
                self._target.tick()


def dataset_card(title: str, filled: Collection[str]) -> str:
    """A README that tells `datasets` and its hub which files make up which table; it opens none without rows."""
    named = [name for name in TABLES if name in filled] or list(TABLES)
    configs = "".join(f"- config_name: {name}\n  data_files: parquet/{name}-*.parquet\n" for name in named)
    return (
        f"---\nconfigs:\n{configs}---\n# {plain_line(title)}\n\n"
        "Instance masks with their click log. `images` has one row per image with its objects, `annotations` one row "
        "per mask, `clicks` one row per event; `manifest.json` lists every file with its sha256. Masks are COCO RLE "
        "(column-major, compressed, ASCII) at the size of the image after EXIF orientation.\n"
    )


def plain_line(text: str) -> str:
    """Text of people's as one line of Markdown that holds no HTML."""
    return html.escape(" ".join(text.split()), quote=False)
