"""Parquet tables in shards, and the dataset card that names them. Knows nothing about where rows come from."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.arrow import TABLES, table_schema

SHARD_BYTES = 500_000_000
_GROUP_BYTES = 32_000_000
_GROUP_ROWS = {"images": 100, "annotations": 20_000, "clicks": 20_000}
"""Small groups of images, so that previews and streaming need not read much."""
_DICTIONARY = {
    "images": ["split"],
    "annotations": ["category", "split", "source", "annotator", "model_digest", "adapter_digest", "session_id"],
    "clicks": ["session_id", "instance_id", "kind", "annotator", "model_digest", "adapter_version", "engine"],
}

OnShard = Callable[[str, int], None]
"""Called with a finished shard's file name and rows."""


class TableWriter:
    """Writes one table as `FOLDER/TABLE-00000.parquet`, ... The same rows give the same bytes.

    A context manager: the last shard is finished when the block ends without an error.

    Args:
        folder: Local folder that exists.
        table: images, annotations or clicks.
        names: Category names by number.
        on_shard: Told about every finished shard.
        shard_bytes: A shard is ended when about so many bytes went into it.
    """

    def __init__(
        self, folder: Path, table: str, names: Sequence[str], on_shard: OnShard, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.rows = 0
        self.shards: list[str] = []
        self._folder = folder
        self._table = table
        self._schema = table_schema(table, names)
        self._on_shard = on_shard
        self._shard_bytes = shard_bytes
        self._writer: pq.ParquetWriter | None = None
        self._group: list[dict[str, Any]] = []
        self._group_size = self._shard_size = self._shard_rows = 0

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
            if not self.shards:
                self._open_shard()  # an empty table is a table, too
            self._end_shard()
        elif self._writer is not None:
            with suppress(OSError):
                self._writer.close()

    def write(self, row: dict[str, Any], size_bytes: int = 0) -> None:
        """Append a row.

        Args:
            row: By column.
            size_bytes: About what its large values take.
        """
        self._group.append(row)
        self._group_size += size_bytes
        if len(self._group) >= _GROUP_ROWS[self._table] or self._group_size >= _GROUP_BYTES:
            self._flush()

    def write_table(self, table: pa.Table) -> None:
        """Append rows that are columns already, as row groups of their own."""
        self._flush()
        if self._writer is None:
            self._open_shard()
        assert self._writer is not None
        self._writer.write_table(table.cast(self._schema), row_group_size=_GROUP_ROWS[self._table])
        self.rows += table.num_rows
        self._shard_rows += table.num_rows
        self._shard_size += table.nbytes
        if self._shard_size >= self._shard_bytes:
            self._end_shard()

    def _flush(self) -> None:
        """Write the rows at hand as a row group."""
        if self._group:
            table = pa.Table.from_pylist(self._group, schema=self._schema)
            self._group, self._group_size = [], 0
            self.write_table(table)

    def _open_shard(self) -> None:
        name = f"{self._table}-{len(self.shards):05d}.parquet"
        self.shards.append(name)
        self._writer = pq.ParquetWriter(
            self._folder / name, self._schema, compression="zstd", use_dictionary=_DICTIONARY[self._table]
        )
        self._shard_size = self._shard_rows = 0

    def _end_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._on_shard(self.shards[-1], self._shard_rows)


def dataset_card(title: str, tables: Sequence[str] = tuple(TABLES)) -> str:
    """A README that tells `datasets` and its hub which files make up which table."""
    configs = "".join(f"- config_name: {name}\n  data_files: parquet/{name}-*.parquet\n" for name in tables)
    return (
        f"---\nconfigs:\n{configs}---\n# {title}\n\n"
        "Instance masks with their click log. `images` has one row per image with its objects, `annotations` one row "
        "per mask, `clicks` one row per event; `manifest.json` lists every file with its sha256. Masks are COCO RLE "
        "(column-major, compressed, ASCII) at the size of the image after EXIF orientation.\n"
    )
