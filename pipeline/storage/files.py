"""Whole files on any storage: a local folder or an object store, through fsspec.

A file appears under its name only when it is complete: locally it is written aside, synced and renamed; an object store
publishes a put whole. Nothing here writes through `fs.open(path, "wb")`, which commits a partial object when the block
fails. Knows nothing about what the bytes mean.

An object store that does not answer is asked again for as long as `patience` says; one that refuses is not.
"""

import contextlib
import errno
import hashlib
import logging
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.stores import as_os_error, client_options, limit_retries
from schemas.errors import BadInputError, BusyError, ClickloopError, ForbiddenError, NotFoundError, OutOfSpaceError

logger = logging.getLogger(__name__)

T = TypeVar("T")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_FINAL_ERRNOS = frozenset({errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG, errno.EMSGSIZE})
_PAUSES_S = (0.5, 30.0)
"""Shortest and longest pause between two attempts, before jitter."""
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Patience:
    """How long an object store that does not answer is waited for.

    Attributes:
        seconds: From a call's first failure to the last attempt.
        wait: (seconds, why) -> None; spends a pause, may raise to stop.
    """

    seconds: float = 5.0
    wait: Callable[[float, str], None] = lambda seconds, why: time.sleep(seconds)


_OUTSIDE_JOBS = Patience()
_PATIENCE: ContextVar[Patience] = ContextVar("patience", default=_OUTSIDE_JOBS)


@contextlib.contextmanager
def patience(seconds: float, wait: Callable[[float, str], None] | None = None) -> Iterator[None]:
    """Within the block (and the threads that copy its context) wait for an object store as `Patience` says."""
    token = _PATIENCE.set(Patience(seconds) if wait is None else Patience(seconds, wait))
    try:
        yield
    finally:
        _PATIENCE.reset(token)


def open_storage(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL and the path in it, without a trailing slash (absolute for a local folder).

    Args:
        url: A path, or a URL of any fsspec protocol, such as s3://bucket/prefix.

    Raises:
        BadInputError: The URL is empty, chained ("::"), without a bucket, or of an unknown protocol or one whose
            package is missing.
        BusyError: Its server cannot be reached.
    """
    if not url or "::" in url or "\0" in url:
        raise BadInputError(f"{url!r} is not a usable storage URL. Give a folder or a URL such as s3://bucket/prefix.")
    try:
        fs, root = fsspec.core.url_to_fs(url, **client_options(url.partition("://")[0]))
    except ImportError as error:
        raise BadInputError(f"Storage URL {url!r}: {error} ({error.__cause__ or 'import failed'}).") from error
    except ValueError as error:
        raise BadInputError(f"Storage URL {url!r}: {error}.") from error
    except OSError as error:  # some clients connect at once
        raise storage_error(error, f"Opening {url!r}") from error
    if not root:
        raise BadInputError(f"{url!r} names no bucket. Give a folder or a URL such as s3://bucket/prefix.")
    limit_retries(fs)
    return fs, root.rstrip("/") or root


def is_local(fs: AbstractFileSystem) -> bool:
    """Whether it is a folder of this machine, where files can be renamed and linked."""
    return isinstance(fs, LocalFileSystem)


def url_of(fs: AbstractFileSystem, path: str) -> str:
    """A path of a file system as it is named outside: as it is on this machine, else with its protocol."""
    return path if is_local(fs) else str(fs.unstrip_protocol(path))


def join(root: str, *parts: str) -> str:
    """Path below a root, with forward slashes."""
    return "/".join([root.rstrip("/"), *parts])


def leaves_root(path: str) -> bool:
    """Whether a path that somebody else wrote, to be joined to a root, would leave it."""
    return path.startswith("/") or ".." in path.split("/")


def read_bytes(fs: AbstractFileSystem, path: str) -> bytes:
    """A whole file.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read (after retries on an object store).
    """
    data: bytes = with_retry(fs, lambda: fs.cat_file(path))
    return data


def write_atomic(fs: AbstractFileSystem, path: str, content: bytes | Path) -> None:
    """Write or replace a file; readers see the old one or the new one, whole.

    Args:
        fs: Where.
        path: Name in `fs`; missing folders are made.
        content: The bytes, or a local file that holds them (which stays).

    Raises:
        OutOfSpaceError: The disk or quota is full; nothing is visible.
        OSError: It cannot be written.
    """
    if is_local(fs):
        aside = _write_aside(path, content)
        try:
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        _sync_folder(Path(path).parent)
    else:
        with_retry(fs, lambda: _put(fs, path, content))


def put_if_absent(fs: AbstractFileSystem, path: str, content: bytes | Path) -> bool:
    """Write a file unless there is one already: the first one stays.

    Returns:
        True if this call's content is what is stored now, False if there was another (or an equal) file before.

    Raises:
        OutOfSpaceError: The disk or quota is full; nothing is visible.
        OSError: It cannot be written.
    """
    if with_retry(fs, lambda: kind(fs, path)) is not None:
        return False
    if not is_local(fs):
        return _create_object(fs, path, content)
    aside = _write_aside(path, content)
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(Path(path).parent)
    return True


def remove(fs: AbstractFileSystem, path: str) -> None:
    """Delete a file; it need not exist."""
    with contextlib.suppress(FileNotFoundError):
        with_retry(fs, lambda: fs.rm_file(path))


def remove_folder(fs: AbstractFileSystem, path: str) -> None:
    """Delete a folder, or all objects below a prefix; it need not exist."""
    with contextlib.suppress(FileNotFoundError):
        with_retry(fs, lambda: fs.rm(path, recursive=True))


def files_below(fs: AbstractFileSystem, folder: str) -> dict[str, dict[str, Any]]:
    """Facts of all files of a folder, which need not exist, by path.

    Raises:
        OSError: It, or a folder in it, cannot be listed: `fs.find` takes those of this machine for empty.
    """
    if not is_local(fs):
        return dict(with_retry(fs, lambda: fs.find(folder, detail=True)))
    found = {}
    for at, _, names in os.walk(folder, onerror=_raise_unless_gone, followlinks=True):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # somebody removed it just now
                found[join(at, name)] = fs.info(join(at, name))
    return dict(sorted(found.items()))


def exists(fs: AbstractFileSystem, path: str) -> bool:
    """Whether a file is there, asked anew."""
    fs.invalidate_cache()
    return with_retry(fs, lambda: kind(fs, path)) is not None


def require_no_pipe(fs: AbstractFileSystem, path: str) -> None:
    """Before reading what somebody else may have put there: reading a pipe of this machine would wait for ever.

    Raises:
        FileNotFoundError: It is no file, also through links.
    """
    if is_local(fs) and kind(fs, path) != "file":
        raise FileNotFoundError(path)


def kind(fs: AbstractFileSystem, path: str) -> str | None:
    """What is at a path: "file" or "directory", through links; None: nothing. One try.

    Of an object store's answers `fs.isfile`, `isdir` and `exists` take refusals and outages for "nothing".
    """
    if is_local(fs):
        return "directory" if os.path.isdir(path) else "file" if os.path.isfile(path) else None
    try:
        return str(fs.info(path)["type"])
    except FileNotFoundError:
        return None
    except Exception as error:
        if "/" in path or not isinstance(as_os_error(error), PermissionError):
            raise
    fs.ls(path)  # who may not look at a bucket itself may still list it
    return "directory"


def sha256_file(path: str | Path) -> str:
    """sha256 (hex) of a local file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_stored(fs: AbstractFileSystem, path: str) -> tuple[str, int]:
    """sha256 (hex) and bytes of a stored file, read in blocks.

    Raises:
        FileNotFoundError: There is none.
    """

    def scan() -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        with fs.open(path, "rb", block_size=8 * _BLOCK_BYTES) as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                size += len(block)
        return digest.hexdigest(), size

    return with_retry(fs, scan)


def require_free_space(fs: AbstractFileSystem, path: str, min_free_bytes: int) -> None:
    """Stop before a local disk gets full; object stores are never full.

    Raises:
        OutOfSpaceError: The disk of `path` has less than `min_free_bytes` free.
    """
    if not is_local(fs) or min_free_bytes <= 0:
        return
    folder = Path(path)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < min_free_bytes:
        raise OutOfSpaceError(
            f"Only {free / 1e6:.0f} MB are free at {folder}, and {min_free_bytes / 1e6:.0f} MB shall stay free. "
            "Make room, or lower CLICKLOOP_MIN_FREE_BYTES.",
            free_bytes=free,
        )


def as_space_error(error: OSError, path: str | Path) -> OSError | OutOfSpaceError:
    """The error to raise for a failed write: ours if the disk is full, else the same."""
    if error.errno in _FULL:
        return OutOfSpaceError(f"No space left to write {path}: {error.strerror}. Make room and try again.")
    return error


def storage_error(error: OSError, what: str) -> ClickloopError:
    """The error to tell the user when an object store did not answer, refused, or has no such thing.

    Args:
        error: Of a call of this module.
        what: That failed, as in "Reading s3://bucket/a.jpg".
    """
    reason = str(error).rstrip(".") or type(error).__name__
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return ForbiddenError(
            f"{what} is refused: {reason}. Renew the credentials or ask for the permission, then run it "
            "again: it goes on where it ended."
        )
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{what} failed, there is no such bucket or object: {reason}. Check the URL.")
    if not _may_pass(error):
        return BadInputError(f"{what} failed: {reason}. Check the URL and the bucket's settings.")
    return BusyError(
        f"{what} failed, the storage does not answer: {reason}. What was done stays; run it again to go on."
    )


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Within the block, what a storage refuses or does not answer is told by `storage_error`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, what) from error


def with_retry(fs: AbstractFileSystem, call: Callable[[], T]) -> T:
    """Call; on an object store try again with growing pauses while it fails for a reason that may pass.

    Raises:
        PermissionError: There are no credentials, they have expired, or do not allow this. Not tried again.
        OSError: Another final answer, or none for as long as `patience` says.
    """
    if is_local(fs):
        return call()
    allowed, pause_s = _PATIENCE.get(), _PAUSES_S[0]
    give_up = None
    while True:
        try:
            return call()
        except Exception as error:
            failure = as_os_error(error)
            if failure is None:
                raise
            now = time.monotonic()
            give_up = now + allowed.seconds if give_up is None else give_up
            if not _may_pass(failure) or now >= give_up:
                if failure is error:
                    raise
                raise failure from error
        logger.warning("storage call failed, trying again: %s", failure)
        allowed.wait(min(pause_s * random.uniform(0.5, 1.5), give_up - now), str(failure) or type(failure).__name__)
        pause_s = min(2 * pause_s, _PAUSES_S[1])


def _may_pass(error: OSError) -> bool:
    return not isinstance(error, _FINAL) and error.errno not in _FINAL_ERRNOS


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _write_aside(path: str, content: bytes | Path) -> Path:
    """A synced temporary file beside `path` with the content; gone again if writing fails."""
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if isinstance(content, Path):
                with content.open("rb") as source:
                    shutil.copyfileobj(source, file, _BLOCK_BYTES)
            else:
                file.write(content)
            file.flush()
            os.fchmod(descriptor, 0o644)
            os.fsync(descriptor)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise as_space_error(error, path) from error
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def _sync_folder(folder: Path) -> None:
    """Make a rename in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(fs: AbstractFileSystem, path: str, content: bytes | Path, **options: str) -> None:
    if isinstance(content, Path):
        fs.put_file(str(content), path, **options)
    else:
        fs.pipe_file(path, content, **options)


def _create_object(fs: AbstractFileSystem, path: str, content: bytes | Path) -> bool:
    """Conditional put where the store knows it (S3: If-None-Match)."""
    try:
        with_retry(fs, lambda: _put(fs, path, content, mode="create"))
    except FileExistsError:
        return False
    except OSError as error:
        if "PreconditionFailed" in repr(error) or "At least one of the pre-conditions" in str(error):
            return False
        raise
    return True
