"""What image files lie at a source: a folder, a glob or one file, local or on an object store. Reads none of them."""

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from fsspec import AbstractFileSystem, get_filesystem_class
from fsspec.core import split_protocol
from fsspec.utils import glob_translate

from pipeline.storage.files import is_local, kind, open_storage, storage_error, url_of, with_retry
from schemas.errors import BadInputError, ForbiddenError

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp"})
OTHER_IMAGES = frozenset({".gif", ".heic", ".heif", ".avif", ".jp2", ".dng", ".svs"})
"""Images that people expect to be read; they are reported instead of being passed over."""
_LISTED = SUFFIXES | OTHER_IMAGES
_VERSION_FIELDS = ("ETag", "etag", "md5Hash", "checksum", "mtime", "LastModified", "last_modified", "updated")
_GLOB = frozenset("*?[")


class SourceFile(NamedTuple):
    """A file as it was listed. (A tuple: a pass makes one of every file, and most are not looked at again.)

    Attributes:
        uri: Absolute path or URL.
        file_name: Relative POSIX path below the source.
        version: Size and ETag or modification time: the same means unchanged.
        problem: Why it cannot be registered, known from the listing alone.
    """

    uri: str
    file_name: str
    version: str
    problem: str | None = None

    @property
    def uri_sha256(self) -> str:
        """The key of its row in the catalogue."""
        return hashlib.sha256(self.uri.encode()).hexdigest()


@dataclass(frozen=True)
class Listing:
    """What lies at a source.

    Attributes:
        files: Its image files in order of their names.
        ignored: How many other files were passed over.
        scope: Matches the URIs of the files that would be listed if they were there.
    """

    files: list[SourceFile]
    ignored: int
    scope: re.Pattern[str]


def is_image_name(name: str) -> bool:
    """Whether a file of this name is listed: as an image, or as one of a kind that people expect to be read."""
    return os.path.splitext(name)[1].lower() in _LISTED


def require_allowed(url: str, roots: Sequence[str]) -> None:
    """Check that a URL lies below one of the configured roots, links and ".." resolved.

    Raises:
        BadInputError: It is no usable URL.
        ForbiddenError: It lies elsewhere.
    """
    client = _client(url)  # some connect as soon as they are made: only to where a root is of their kind
    if client is not None and client not in map(_client, roots):
        raise ForbiddenError(f"{url!r} is not below a configured root (CLICKLOOP_SOURCE_ROOTS).")
    place = _place(url)
    if not any(_is_below(place, _place(root)) for root in roots):
        raise ForbiddenError(f"{url!r} is not below a configured root (CLICKLOOP_SOURCE_ROOTS).")


def list_files(url: str, roots: Sequence[str] | None = None) -> Listing:
    """List a source.

    Args:
        url: Folder (looked through with all its subfolders), glob or file; a path or an fsspec URL.
        roots: Local files that lie (by links) outside of these are refused; None: anywhere.

    Raises:
        BadInputError: There is nothing at the URL, or the URL is not usable.
        BusyError: The storage cannot be reached.
    """
    fs, root = open_storage(url)
    try:
        base, found = with_retry(fs, lambda: _find(fs, root))
    except PermissionError as error:
        raise BadInputError(f"Not allowed to read {url!r}: {error}. Check its permissions or credentials.") from error
    except OSError as error:
        raise storage_error(error, f"Listing {url!r}") from error
    if found is None:
        raise BadInputError(
            f"There is nothing at {url!r}. Give an existing folder, glob or file by --images, also where the images of "
            "a campaign were moved: it finds them there by their content."
        )
    files, start = [], len(base)
    for path in sorted(found):
        name = path[start:].lstrip("/")
        suffix = os.path.splitext(name)[1].lower()
        if suffix in _LISTED and not (name.startswith(".") or "/." in name):
            files.append(_source_file(fs, path, name, suffix, found[path], roots))
    return Listing(files, len(found) - len(files), _scope(fs, root))


def _find(fs: AbstractFileSystem, root: str) -> tuple[str, dict[str, dict[str, Any]] | None]:
    """The folder that names are relative to, and every file's facts by path; None where nothing is."""
    fs.invalidate_cache()
    found_kind = kind(fs, root)
    if found_kind == "file":
        return root.rpartition("/")[0], {root: fs.info(root)}
    if found_kind == "directory" and is_local(fs):
        return root, dict(walk_local(root))
    if found_kind == "directory":
        found = fs.find(root, detail=True)
        return root, {path: facts for path, facts in found.items() if facts.get("type") == "file"}
    if not _GLOB & set(root):
        return root, None
    base = root[: min(root.index(c) for c in _GLOB if c in root)].rpartition("/")[0]
    matches = fs.glob(root, detail=True)
    files = {path: facts for path, facts in matches.items() if facts.get("type") == "file" or facts.get("islink")}
    return base, files or None


def _scope(fs: AbstractFileSystem, root: str) -> re.Pattern[str]:
    """See `Listing.scope`."""
    uri = url_of(fs, root)
    if _GLOB & set(root) and kind(fs, root) is None:
        return re.compile(glob_translate(uri))
    return re.compile(re.escape(uri.rstrip("/")) + "(/.*)?", re.DOTALL)


def walk_local(root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every regular file below a local folder, through links, each folder once."""
    seen, waiting = set(), [root]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        folders = []
        try:
            entries = os.scandir(folder)
        except OSError:  # as `os.walk` has it
            continue
        with entries:
            for entry in entries:
                try:
                    if entry.is_dir():
                        folders.append(entry)
                        continue
                    facts = entry.stat()
                except OSError:  # a dangling link
                    continue
                if stat.S_ISREG(facts.st_mode):
                    yield entry.path, {"size": facts.st_size, "mtime": facts.st_mtime_ns}
        waiting += sorted((inner.path for inner in folders if not inner.name.startswith(".")), reverse=True)


def _source_file(
    fs: AbstractFileSystem, path: str, name: str, suffix: str, facts: dict[str, Any], roots: Sequence[str] | None
) -> SourceFile:
    changed = next(filter(None, map(facts.get, _VERSION_FIELDS)), "")
    version = f"{facts.get('size')}:" + str(changed).strip('"')
    uri = url_of(fs, path)
    if suffix in OTHER_IMAGES:
        problem = f"Files of type {suffix} cannot be read; JPEG, PNG, WebP, TIFF and BMP can."
        return SourceFile(printable(uri), printable(name), version, problem)
    if printable(uri) != uri or "::" in uri:
        problem = "The file's name is not valid UTF-8, or holds '::'. Rename it."
        return SourceFile(printable(uri), printable(name), version, problem)
    if roots is not None and is_local(fs) and not any(_is_below(_place(path), _place(root)) for root in roots):
        return SourceFile(uri, name, version, "A link that leads out of the configured roots.")
    return SourceFile(uri, name, version)


def printable(text: str) -> str:
    """The text with what is not valid UTF-8, and NUL, written out: a database can store it."""
    return text if text.isprintable() else text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _client(url: str) -> type[AbstractFileSystem] | None:
    """The kind of file system of a URL; None: it is not known, or its package is missing, as `open_storage` says."""
    try:
        found: type[AbstractFileSystem] = get_filesystem_class(split_protocol(url)[0] or "file")
    except (ImportError, ValueError):
        return None
    return found


def _place(url: str) -> tuple[str, str]:
    """(protocol, path) to compare."""
    fs, path = open_storage(url)
    if is_local(fs):
        return "file", os.path.realpath(path)
    if ".." in path.split("/"):
        raise BadInputError(f"{url!r} holds '..'.")
    return urlsplit(url_of(fs, path)).scheme, path


def _is_below(place: tuple[str, str], root: tuple[str, str]) -> bool:
    return place[0] == root[0] and (place[1] == root[1] or place[1].startswith(root[1].rstrip("/") + "/"))
