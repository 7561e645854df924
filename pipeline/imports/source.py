"""The files of an import: a single file or a folder, on any storage."""

import json
from pathlib import PurePosixPath
from typing import Any

from pipeline.ingest.sources import walk_local
from pipeline.storage.files import is_local, join, kind, open_storage, read_bytes, with_retry
from schemas.errors import BadAnnotationsError, TooLargeError

MAX_BYTES = 2_000_000_000
"""Of one file."""
_HEAD_BYTES = 1000
_BLANKS = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"


def parse_json(data: bytes) -> Any:
    """A JSON file's content.

    Raises:
        BadAnnotationsError: It is none.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadAnnotationsError(f"The file is not JSON: {error}.") from error


class Source:
    """What lies at a URL.

    Attributes:
        url: As given.
        files: Paths of its files below it, sorted; for a single file, its name.

    Raises:
        BadAnnotationsError: There is nothing, or it cannot be listed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, path = open_storage(url)
        try:
            found_kind = with_retry(self._fs, lambda: kind(self._fs, path))
            self.is_folder = found_kind == "directory"
            found = with_retry(self._fs, lambda: self._find(path)) if self.is_folder else [path]
            if not found or found_kind not in {"file", "directory"}:
                raise BadAnnotationsError(f"There are no annotations at {url!r}. Give a file or a folder.")
        except OSError as error:
            raise BadAnnotationsError(f"The annotations {url!r} cannot be read: {error}.") from error
        self._root = path if self.is_folder else str(PurePosixPath(path).parent)
        self.files = sorted(str(name)[len(self._root.rstrip("/")) + 1 :] for name in found)

    def _find(self, folder: str) -> list[str]:
        """Regular files, through links as at ingest: reading a pipe would wait for ever."""
        return [path for path, _ in walk_local(folder)] if is_local(self._fs) else list(self._fs.find(folder))

    def of_type(self, *suffixes: str) -> list[str]:
        """Its files with one of these endings, such as ".png"."""
        return [name for name in self.files if PurePosixPath(name).suffix.lower() in suffixes]

    def some_of_type(self, suffix: str) -> list[str]:
        """Likewise, at least one.

        Raises:
            BadAnnotationsError: There is none.
        """
        found = self.of_type(suffix)
        if not found:
            raise BadAnnotationsError(f"There is no {suffix} file at {self.url!r}. Is --format right?")
        return found

    def read(self, name: str) -> bytes:
        """A file.

        Raises:
            BadAnnotationsError: It cannot be read.
            TooLargeError: It is over the limit.
        """
        path = join(self._root, name)
        try:
            size = int(with_retry(self._fs, lambda: self._fs.size(path)) or 0)
            if size > MAX_BYTES:
                raise TooLargeError(f"{name} has {size} bytes, at most {MAX_BYTES} are read. Split it.")
            return read_bytes(self._fs, path)
        except OSError as error:
            raise BadAnnotationsError(f"{name} in {self.url!r} cannot be read: {error}.") from error

    def begins_with(self, name: str) -> bytes:
        """The first of a file's bytes that are no blanks, nor marks or zeros of an encoding: few, "" if there is none.

        Raises:
            BadAnnotationsError: It cannot be read.
        """
        path = join(self._root, name)
        try:
            data: bytes = with_retry(self._fs, lambda: self._fs.cat_file(path, start=0, end=_HEAD_BYTES))
        except OSError as error:
            raise BadAnnotationsError(f"{name} in {self.url!r} cannot be read: {error}.") from error
        return data.lstrip(_BLANKS)
