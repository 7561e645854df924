"""The files of a snapshot while it is written: path, size and hash of each.

They are in a file of SQLite's, not in memory: an export as PNG has one for each mask, of which there can be millions.
"""

import errno
import heapq
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas.exports import LISTED_FILES


class FileList:
    """Facts of files by path: `path`, `bytes`, `sha256`, and `rows` where there are any; iterated in order of path.

    Args:
        path: Of the file to keep them in, which is removed by `close`; on the disk of what is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._conn = sqlite3.connect(path, isolation_level=None)
        self._conn.execute("PRAGMA journal_mode = OFF")
        self._conn.execute("BEGIN")  # and never committed: written is what its cache has no room for
        self._conn.execute(
            "CREATE TABLE files (path TEXT PRIMARY KEY, bytes INTEGER, sha256 TEXT, rows INTEGER) WITHOUT ROWID"
        )

    def add(self, path: str, size: int, sha256: str, rows: int | None = None) -> None:
        """Take in a file.

        Raises:
            OSError: The disk is full.
        """
        with _telling_of_the_disk():
            self._conn.execute("INSERT INTO files VALUES (?, ?, ?, ?)", (path, size, sha256, rows))

    def close(self) -> None:
        """Forget them all."""
        self._conn.close()
        self._path.unlink(missing_ok=True)

    def __len__(self) -> int:
        with _telling_of_the_disk():
            return int(self._conn.execute("SELECT COUNT(*) FROM files").fetchone()[0])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with _telling_of_the_disk():
            for path, size, sha256, rows in self._conn.execute("SELECT * FROM files ORDER BY path"):
                facts = {"path": path, "bytes": size, "sha256": sha256}
                yield facts if rows is None else facts | {"rows": rows}


@contextmanager
def _telling_of_the_disk() -> Iterator[None]:
    """Reading fails on a full disk, too: what the cache has no more room for is written first."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(errno.ENOSPC, f"the list of its files cannot grow: {error}") from error


def summary(files: FileList | list[dict[str, Any]]) -> dict[str, Any]:
    """How many files there are and of how many bytes, and the first `LISTED_FILES` by path, masks as PNG last."""
    first = heapq.nsmallest(LISTED_FILES, files, key=lambda file: (str(file["path"]).endswith(".png"), file["path"]))
    return {"files": first, "num_files": len(files), "num_bytes": sum(file["bytes"] for file in files)}
