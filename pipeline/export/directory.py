"""A snapshot directory while it is written: nothing is visible as a snapshot before its manifest is.

Locally everything is written into a hidden folder beside the target, which is renamed at the end. On an object store
each file is staged locally and put whole, the manifest last; what was put is removed again when the export fails.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, BinaryIO

import orjson

from pipeline.export.manifest import MANIFEST
from pipeline.storage.files import (
    as_space_error,
    exists,
    is_local,
    join,
    open_storage,
    remove,
    require_free_space,
    sha256_file,
    write_atomic,
)
from schemas.errors import BadInputError

logger = logging.getLogger(__name__)


class SnapshotDirectory:
    """A new snapshot directory at a URL; use as a context manager, and publish before it ends.

    Args:
        url: Folder or URL; empty or absent.
        min_free_bytes: Adding a file stops before a local disk has less than this.

    Raises:
        BadInputError: Something is at the URL already, or it cannot be written to.
        OutOfSpaceError: The disk is near its floor.
    """

    def __init__(self, url: str, min_free_bytes: int = 0) -> None:
        self.fs, self.root = open_storage(url)
        self.min_free_bytes = min_free_bytes
        self.files: list[dict[str, Any]] = []
        self._local = is_local(self.fs)
        self._require_empty(url)
        require_free_space(self.fs, self.root, min_free_bytes)
        try:
            self._stage = self._make_stage()
        except OSError as error:
            raise BadInputError(f"Cannot write to {url!r}: {error.strerror or error}.") from error
        self._published = False

    def __enter__(self) -> "SnapshotDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutil.rmtree(self._stage, ignore_errors=True)
        if not self._local and not self._published:
            for file in self.files:
                self._remove_quietly(join(self.root, file["path"]))
        if isinstance(error, OSError):
            translated = as_space_error(error, self.root)
            if translated is not error:
                raise translated from error

    def local_path(self, name: str) -> Path:
        """Where to write a file (relative POSIX name) before it is added."""
        path = self._stage / PurePosixPath(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def local_folder(self, name: str) -> Path:
        """A folder to write files in before they are added."""
        folder = self._stage / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def add(self, name: str, rows: int | None = None) -> None:
        """Take in a file that was written at `local_path(name)`; on an object store it is put and removed locally.

        Raises:
            OutOfSpaceError: The disk is full or near its floor.
        """
        path = self.local_path(name)
        facts = {"path": name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        self.files.append(facts if rows is None else facts | {"rows": rows})
        require_free_space(self.fs, self.root, self.min_free_bytes)
        if self._local:
            _sync(path)
        else:
            write_atomic(self.fs, join(self.root, name), path)
            path.unlink()

    def open(self, name: str) -> BinaryIO:
        """Read a file that was added."""
        path = self._stage / PurePosixPath(name)
        file: BinaryIO = path.open("rb") if path.exists() else self.fs.open(join(self.root, name), "rb")
        return file

    def publish(self, facts: dict[str, Any]) -> str:
        """Write the manifest, after which the snapshot is there.

        Args:
            facts: Of the manifest, besides `files`.

        Returns:
            URI of the manifest.
        """
        files = sorted(self.files, key=lambda file: str(file["path"]))
        content = orjson.dumps(facts | {"files": files}, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
        if self._local:
            path = self._stage / MANIFEST
            path.write_bytes(content)
            _sync(path)
            self._stage.chmod(0o755)
            os.rename(self._stage, self.root)  # onto nothing or an empty folder; fails on any other
            _sync(Path(self.root).parent)
        else:
            write_atomic(self.fs, join(self.root, MANIFEST), content)
        self._published = True
        logger.info("snapshot published at=%s sha256=%s", self.root, hashlib.sha256(content).hexdigest())
        return self._uri(MANIFEST)

    def _uri(self, name: str) -> str:
        path = join(self.root, name)
        return path if self._local else str(self.fs.unstrip_protocol(path))

    def _make_stage(self) -> Path:
        if not self._local:
            return Path(tempfile.mkdtemp(prefix="clickloop-export-"))
        target = Path(self.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))

    def _require_empty(self, url: str) -> None:
        """A snapshot is never written over another, nor locally over anything."""
        target = Path(self.root)
        if self._local and target.is_dir() and not any(target.iterdir()):
            return
        if self._local and (target.exists() or target.is_symlink()):
            raise BadInputError(f"{url!r} is there already and not empty. Give a new or empty folder to export to.")
        if not self._local and exists(self.fs, join(self.root, MANIFEST)):
            raise BadInputError(f"{url!r} holds a snapshot already. Give another URL to export to.")

    def _remove_quietly(self, path: str) -> None:
        try:
            remove(self.fs, path)
        except Exception as error:  # the first error matters more
            logger.warning("cannot remove %s of a failed export: %s", path, error)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
