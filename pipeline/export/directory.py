"""A snapshot directory while it is written: nothing is visible as a snapshot before its manifest is.

Locally everything is written into a hidden folder beside the target, which is renamed at the end; or in the target, if
that is an empty folder (it may be a mount point, a link, or the only place where one may write), and moved up at the
end, the manifest last; what an export that was killed just then had moved up is taken back by the next one.
On an object store each file is staged locally and put whole, the manifest last. What was put is removed again when the
export fails, unless the store itself failed or the process died: then a note of what was being written is left with it,
and the same export to the same place goes on, putting only what is not there.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import orjson

from pipeline.export.file_list import FileList, summary
from pipeline.export.manifest import MANIFEST, write_manifest
from pipeline.storage.files import (
    as_space_error,
    is_local,
    join,
    open_storage,
    patience,
    read_bytes,
    remove,
    require_free_space,
    sha256_file,
    storage_error,
    url_of,
    with_retry,
    write_atomic,
)
from pipeline.storage.stores import stored_md5
from schemas.errors import BadInputError, BusyError, ForbiddenError

logger = logging.getLogger(__name__)

NOTE = "unfinished.json"
"""Beside the files of an export to an object store until its manifest is there."""
_STAGE = ".part"
_LIST = ".files"
"""In the stage, until the files are put in place."""


class SnapshotDirectory:
    """A new snapshot directory at a URL; use as a context manager, and publish before it ends.

    Args:
        url: Folder or URL; empty or absent.
        min_free_bytes: Adding a file stops before a local disk has less than this.

    Raises:
        BadInputError: Something is at the URL already, or it cannot be written to.
        OutOfSpaceError: The disk is near its floor.
        BusyError, ForbiddenError: The object store does not answer, or refuses.
    """

    def __init__(self, url: str, min_free_bytes: int = 0) -> None:
        self.fs, self.root = open_storage(url)
        self.min_free_bytes = min_free_bytes
        self._url = url
        self._local = is_local(self.fs)
        self._there: dict[str, tuple[int, str]] = {}  # of an export that is gone on with: bytes and MD5 by name
        self._note = b""
        self._is_inside = self._local and Path(self.root).is_dir()
        self._cleans_up = False
        with self._translating():
            if self._is_inside:
                _take_back(Path(self.root))
            self._require_empty()
        require_free_space(self.fs, self.root, min_free_bytes)
        try:
            self._stage = self._make_stage()
        except OSError as error:
            raise BadInputError(f"Cannot write to {url!r}: {error.strerror or error}.") from error
        self.files = FileList(self._stage / _LIST)
        self._published = False

    def __enter__(self) -> "SnapshotDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        is_of_store = isinstance(error, OSError | BusyError | ForbiddenError)
        if self._cleans_up and not (self._published or is_of_store):
            self._remove_quietly()
        self.files.close()
        shutil.rmtree(self._stage, ignore_errors=True)
        if isinstance(error, OSError):
            translated = as_space_error(error, self.root)
            if translated is not error:
                raise translated from error
            if not self._local:
                raise storage_error(error, f"Exporting to {self._url!r}") from error

    def unfinished(self, facts: dict[str, Any]) -> str | None:
        """The snapshot of an export that began here and was not finished; None: there is none. See `begin`.

        Args:
            facts: What decides on the files, besides the snapshot: JSON.

        Raises:
            BadInputError: Another export was not finished here.
        """
        if self._local:
            return None
        try:
            with self._translating():
                noted = orjson.loads(read_bytes(self.fs, join(self.root, NOTE)))
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError:
            noted = {}
        snapshot_id = noted.pop("snapshot_id", None)
        if noted != facts:
            raise BadInputError(
                f"An export with other options began at {self._url!r} and was not finished. Finish it by its own "
                "command, remove what is there, or give another URL to export to."
            )
        return str(snapshot_id)

    def begin(self, facts: dict[str, Any], snapshot_id: str) -> None:
        """On an object store, note what is going to be written, or look at what is there of it.

        Args:
            facts: As for `unfinished`.
            snapshot_id: Of the snapshot.

        Raises:
            BadInputError: Another snapshot was not finished here.
        """
        if self._local:
            return
        self._note = orjson.dumps(facts | {"snapshot_id": snapshot_id})
        with self._translating():
            before = self.unfinished(facts)
            if before is None:
                write_atomic(self.fs, join(self.root, NOTE), self._note)
                self._cleans_up = True
                return
            if before != snapshot_id:
                raise BadInputError(f"Another snapshot ({before}) was not finished at {self._url!r}.")
            self.fs.invalidate_cache()
            found = with_retry(self.fs, lambda: self.fs.find(self.root, detail=True))
        start = len(self.root.rstrip("/")) + 1
        self._there = {path[start:]: (file["size"], stored_md5(file)) for path, file in found.items()}
        logger.info("going on with an export at=%s snapshot_id=%s objects=%d", self.root, snapshot_id, len(found))

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
        """Take in a file that was written at `local_path(name)`; on an object store it is put, unless it is there, and
        removed locally.

        Raises:
            OutOfSpaceError: The disk is full or near its floor.
        """
        path = self.local_path(name)
        self.files.add(name, path.stat().st_size, sha256_file(path), rows)
        require_free_space(self.fs, self.root, self.min_free_bytes)
        if self._local:
            _sync(path)
        else:
            if not self._is_there(name, path):
                write_atomic(self.fs, join(self.root, name), path)
            path.unlink()

    def publish(self, facts: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Write the manifest, after which the snapshot is there.

        Args:
            facts: Of the manifest, besides `files`.

        Returns:
            URI of the manifest, and what `summary` says of its files.
        """
        path = self._stage / MANIFEST
        write_manifest(path, facts, self.files)
        digest, found = sha256_file(path), summary(self.files)
        if self._local:
            _sync(path)
            self.files.close()
            self._put_in_place()
            _sync(self._stage.parent)
        else:
            self._remove_what_was_purged()
            self._require_all()
            write_atomic(self.fs, join(self.root, MANIFEST), path)
            remove(self.fs, join(self.root, NOTE))
            self._remove_other_stages()
        self._published = True
        logger.info("snapshot published at=%s sha256=%s", self.root, digest)
        return url_of(self.fs, join(self.root, MANIFEST)), found

    def _make_stage(self) -> Path:
        if not self._local:
            return Path(tempfile.mkdtemp(prefix=self._stage_prefix(), suffix=_STAGE))
        target = Path(self.root)
        folder = target if self._is_inside else target.parent
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=self._stage_prefix(), suffix=_STAGE, dir=folder))

    def _stage_prefix(self) -> str:
        """Of all stages of this target."""
        if self._local:
            return f".{Path(self.root).name}."
        return f".clickloop-export-{hashlib.sha256(self._url.encode()).hexdigest()[:16]}."

    def _put_in_place(self) -> None:
        """Out of the stage."""
        target = Path(self.root)
        if self._is_inside:
            self._require_empty()
            self._remove_other_stages()
            for name in sorted(os.listdir(self._stage), key=lambda name: name == MANIFEST):
                os.rename(self._stage / name, target / name)
        else:
            self._stage.chmod(0o755)
            os.rename(self._stage, target)  # onto nothing or an empty folder; fails on any other
            self._remove_other_stages()

    def _remove_other_stages(self) -> None:
        """Remove what exports to this target left that were killed, or that come too late for it."""
        folder, prefix = self._stage.parent, self._stage_prefix()
        for name in _stages(folder):
            is_of_target = self._is_inside or (name.startswith(prefix) and "." not in name[len(prefix) : -len(_STAGE)])
            if is_of_target and folder / name != self._stage:
                shutil.rmtree(folder / name, ignore_errors=True)

    def _require_empty(self) -> None:
        """A snapshot is never written over anything; on an object store an unfinished one may be there."""
        if not self._local:
            there = self._listed()
            if MANIFEST in there and NOTE not in there:  # with both, it died as it was about to remove the note
                raise BadInputError(f"{self._url!r} holds a snapshot already. Give another URL to export to.")
            is_free = not there or NOTE in there
        else:
            target = Path(self.root)
            is_free = _holds_nothing(target) if target.is_dir() else not os.path.lexists(target)
        if not is_free:
            raise BadInputError(
                f"{self._url!r} is there already and not empty. Give a new or empty folder to export to."
            )

    def _listed(self) -> set[str]:
        """The names right below the URL on an object store; not the empty object that stands for a folder there."""
        self.fs.invalidate_cache()
        try:
            found = with_retry(self.fs, lambda: self.fs.ls(self.root, detail=False))
        except FileNotFoundError:
            return set()
        start = len(self.root.rstrip("/")) + 1
        return {path[start:] for path in found} - {""}

    def _is_there(self, name: str, path: Path) -> bool:
        """Whether the object of an unfinished export is this file."""
        size, md5 = self._there.get(name, (-1, ""))
        if size != path.stat().st_size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5

    def _remove_what_was_purged(self) -> None:
        """Remove what an unfinished export put into its folders and is in them no more: a purge came between."""
        kept = {file["path"] for file in self.files}
        for name in sorted(self._there.keys() - kept):
            if "/" in name:
                remove(self.fs, join(self.root, name))

    def _require_all(self) -> None:
        """Objects that were put may be gone by now: by a rule of the bucket's, or with it, if it was made anew.

        Raises:
            BusyError: Some are; the same export puts them again.
        """
        self.fs.invalidate_cache()
        found = with_retry(self.fs, lambda: self.fs.find(self.root, detail=True)) if self.files else {}
        start = len(self.root.rstrip("/")) + 1
        there = {path[start:]: file["size"] for path, file in found.items()}
        gone = [file["path"] for file in self.files if there.get(file["path"]) != file["bytes"]]
        if gone:
            write_atomic(self.fs, join(self.root, NOTE), self._note)  # it may be gone, too
            raise BusyError(
                f"{len(gone)} of the {len(self.files)} objects that were put to {self._url!r} are not there any more, "
                f"such as {gone[0]}: something else removes them, or the bucket was made anew. Run the same export "
                "again: it puts what is missing."
            )

    def _remove_quietly(self) -> None:
        """Remove what was put, the manifest first and the note last; a store that does not answer is not waited for."""
        try:
            with patience(0):
                for name in [MANIFEST, *(file["path"] for file in self.files), NOTE]:
                    remove(self.fs, join(self.root, name))
        except Exception as error:  # the first error matters more
            logger.warning("cannot remove what a failed export left at %s: %s", self.root, error)

    @contextlib.contextmanager
    def _translating(self) -> Iterator[None]:
        """Before the block of `__exit__` begins, and where what is missing matters."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if self._local:
                raise
            raise storage_error(error, f"Exporting to {self._url!r}") from error


def _holds_nothing(folder: Path) -> bool:
    """But stages, of this export or of one that was killed."""
    return len(_stages(folder)) == len(os.listdir(folder))


def _take_back(folder: Path) -> None:
    """Undo what an export that was killed had moved up out of its stage, where the manifest stays until the end.

    Only if all that is in the folder is that: each file as the manifest says, and no other.
    """
    there = list(_paths(folder)) if not _holds_nothing(folder) else []
    for stage in (folder / name for name in _stages(folder) if there):
        listed = _listed_in(stage / MANIFEST)
        if all(listed.get(path.relative_to(folder).as_posix()) == _digest(path) for path in there):
            (stage / MANIFEST).unlink()  # first: should that export be alive after all, it publishes nothing
            for name in set(os.listdir(folder)) - set(_stages(folder)):
                os.rename(folder / name, stage / name)
            logger.info("took back what a killed export left at=%s", folder)
            return


def _paths(folder: Path) -> Iterator[Path]:
    """All that is in it but stages: files, links, and folders with nothing in them."""
    for root, folders, names in os.walk(folder):
        if root == str(folder):
            folders[:] = set(folders) - set(_stages(folder))
        if not folders and not names:
            yield Path(root)
        yield from (Path(root, name) for name in [*names, *folders] if name in names or Path(root, name).is_symlink())


def _listed_in(manifest: Path) -> dict[str, str]:
    """sha256 of its files by path; of what is no whole manifest none."""
    try:
        return {file["path"]: file["sha256"] for file in orjson.loads(manifest.read_bytes())["files"]}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _digest(path: Path) -> str:
    return sha256_file(path) if path.is_file() and not path.is_symlink() else "no file"


def _stages(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".") and name.endswith(_STAGE)]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
