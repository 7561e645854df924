"""Registering a source's images: list, read, check, hash, decode once, and write them down in short transactions.

Nothing is copied: images stay where they are. Files whose listing is unchanged since the last pass are not read again,
so a pass that was stopped goes on where it ended; but what is quarantined is, since permissions, limits or formats may
have changed. Database transactions never span a read.
"""

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec import AbstractFileSystem
from pydantic import BaseModel

from pipeline.ingest.decode import MAX_PIXELS, decode_image
from pipeline.ingest.dedupe import GroupIndex, perceptual_hash
from pipeline.ingest.moved import move_images
from pipeline.ingest.sources import Listing, SourceFile, list_files
from pipeline.memory import keep_freed_memory
from pipeline.storage import images
from pipeline.storage.database import Database
from pipeline.storage.files import is_local, open_storage, read_bytes, storage_error, with_retry
from schemas.campaigns import CampaignRecord
from schemas.errors import BadImageError, BadInputError
from schemas.predictions import Window

logger = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], None]
BATCH_ROWS = 200
GONE_NAMED = 20
_BATCH_S = 2.0
_AHEAD = 16
"""Files read ahead of what was written down."""


class IngestReport(BaseModel):
    """What a pass over a source came to.

    Attributes:
        files: Image files listed.
        registered: New images.
        duplicates: Files whose bytes an image already has.
        quarantined: Files that cannot be used, with the reason in the catalogue.
        unchanged: Files known from an earlier pass, not read again.
        purged: Files whose image was purged from the campaign; they are skipped.
        vanished: Files that were listed and gone when they were to be read.
        moved: Images that are read from another file with the same bytes now, since their own was not there any more;
            that file is among the duplicates or the unchanged.
        gone: Files of an earlier pass that are not there any more; their images stay, with what was labelled on them.
        gone_files: The first of them.
        ignored: Files that are no images by their names.
        stopped: Ended early because it was asked to; run it again to go on.
    """

    files: int = 0
    registered: int = 0
    duplicates: int = 0
    quarantined: int = 0
    unchanged: int = 0
    purged: int = 0
    vanished: int = 0
    moved: int = 0
    gone: int = 0
    gone_files: list[str] = []
    ignored: int = 0
    seconds: float = 0.0
    stopped: bool = False


@dataclass(frozen=True)
class _Read:
    """A file that was read: an image's facts, or why it is none."""

    file: SourceFile
    sha256: str = ""
    phash: str = ""
    width: int = 0
    height: int = 0
    format: str = ""
    size_bytes: int = 0
    problem: str | None = None
    vanished: bool = False


def ingest(
    database: Database,
    campaign: CampaignRecord,
    url: str,
    *,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    roots: Sequence[str] | None = None,
    max_pixels: int = MAX_PIXELS,
    threads: int = 2,
    readmit: bool = False,
) -> IngestReport:
    """Register what is new or changed at a source.

    Args:
        database: The catalogue.
        campaign: Whose images they become.
        url: Folder, glob or file; see `sources.list_files`.
        progress: Called with counts after each batch.
        should_stop: Asked between files; what was done until then stays.
        roots: See `sources.list_files`.
        max_pixels: Larger images are quarantined.
        threads: Files read and decoded at once.
        readmit: Take images again that were purged.

    Returns:
        Counts. Images get their numbers in the order of the files' names.

    Raises:
        BadInputError: There is nothing at the URL, or it disappeared meanwhile.
        BusyError: The storage cannot be reached. What was registered so far stays; run it again to go on.
        ForbiddenError: The storage refuses the credentials; likewise.
    """
    keep_freed_memory()  # else most of the time goes into pages for the next image
    began = time.monotonic()
    with ThreadPoolExecutor(1) as beside:
        known = beside.submit(_settled, database, campaign.id)
        listing = list_files(url, roots)
        settled, purged_before = known.result()
    changed, gone = _compare(listing, settled)
    todo = changed
    if purged_before and not readmit:
        todo = [file for file in changed if purged_before.get(file.uri_sha256) != file.version]
    purged = len(changed) - len(todo)
    with database.connect() as conn:
        hashes = images.image_hashes(conn, campaign.id) if todo else []
    index = GroupIndex((phash, group) for _, phash, group in hashes)
    report = IngestReport(
        files=len(listing.files),
        ignored=listing.ignored,
        unchanged=len(listing.files) - len(todo) - purged,
        purged=purged,
    )
    stop = should_stop or (lambda: False)
    batch: list[_Read] = []
    last_commit = time.monotonic()

    def commit() -> None:
        nonlocal last_commit
        if batch:
            _write_down(database, campaign.id, batch, index, report, readmit)
            batch.clear()
        last_commit = time.monotonic()
        if progress:
            progress({"done": _handled(report), "total": report.files})

    try:
        for read in _read_all(todo, url, campaign.settings.window, max_pixels, threads, stop):
            batch.append(read)
            if len(batch) >= BATCH_ROWS or time.monotonic() - last_commit > _BATCH_S:
                commit()
    finally:
        commit()
    report.stopped = stop() and report.files > _handled(report)
    if not report.stopped:
        moved = move_images(database, campaign.id, listing, {file.uri for file in todo})
        gone = [uri for uri in gone if uri not in moved]
        report.moved = len(moved)
    report.gone, report.gone_files = len(gone), gone[:GONE_NAMED]
    report.seconds = round(time.monotonic() - began, 3)
    logger.info("ingested campaign_id=%s url=%s %s", campaign.id, url, report)
    return report


def _settled(database: Database, campaign_id: str) -> tuple[pa.Table, dict[str, str]]:
    with database.connect() as conn:
        return images.settled_sources(conn, campaign_id), images.purged_sources(conn, campaign_id)


def _compare(listing: Listing, settled: pa.Table) -> tuple[list[SourceFile], list[str]]:
    """The files that are new or changed, and the URIs of settled files that would be listed if they were there.

    In Arrow: most files are neither.
    """
    uris = pa.array([file.uri for file in listing.files], pa.string())
    versions = pa.array([file.version for file in listing.files], pa.string())
    places = pc.index_in(uris, settled["uri"])  # null where a file was never settled
    same = pc.equal(settled["version"].take(places), versions).fill_null(False)
    is_missing = np.ones(settled.num_rows, np.bool_)
    is_missing[places.drop_null().to_numpy()] = False
    missing = settled["uri"].filter(pa.array(is_missing)).to_pylist()
    gone = sorted(uri for uri in missing if listing.scope.fullmatch(uri))
    return [listing.files[place] for place in np.flatnonzero(~same.to_numpy())], gone


def _handled(report: IngestReport) -> int:
    new = report.registered + report.duplicates + report.quarantined
    return report.unchanged + new + report.vanished + report.purged


def _read_all(
    todo: Sequence[SourceFile],
    url: str,
    window: Window | None,
    max_pixels: int,
    threads: int,
    should_stop: Callable[[], bool],
) -> Iterator[_Read]:
    """Read files in order, some ahead in threads."""
    waiting: deque[Future[_Read]] = deque()
    files = iter(todo)
    with ThreadPoolExecutor(threads, thread_name_prefix="ingest") as pool:
        try:
            while True:
                while len(waiting) < _AHEAD and not should_stop() and (file := next(files, None)) is not None:
                    waiting.append(pool.submit(copy_context().run, _read, file, url, window, max_pixels))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _read(file: SourceFile, url: str, window: Window | None, max_pixels: int) -> _Read:
    """Read, check and hash one file.

    Raises:
        BadInputError: The source as a whole is gone.
        BusyError: The storage cannot be reached.
        ForbiddenError: It refuses the credentials.
    """
    if file.problem:
        return _Read(file, problem=file.problem)
    fs, path = open_storage(file.uri)
    try:
        data = read_bytes(fs, path)
        pixels, info = decode_image(data, max_pixels, window=window)
    except (FileNotFoundError, NotADirectoryError) as error:
        _require_source(url, error)
        logger.warning("file vanished uri=%s", file.uri)
        return _Read(file, vanished=True)
    except PermissionError as error:
        if not is_local(fs) and not _may_look(fs, path):
            raise storage_error(error, f"Reading {file.uri}") from error
        return _Read(file, problem="Not allowed to read the file. Check its permissions.")
    except BadImageError as error:
        return _Read(file, problem=error.message)
    except OSError as error:
        raise storage_error(error, f"Reading {file.uri}") from error
    return _Read(
        file,
        sha256=hashlib.sha256(data).hexdigest(),
        phash=perceptual_hash(pixels),
        width=info.width,
        height=info.height,
        format=info.format,
        size_bytes=len(data),
    )


def _may_look(fs: AbstractFileSystem, path: str) -> bool:
    """Whether the store answers these credentials at all: then it is the one object that may not be read."""
    fs.invalidate_cache()
    try:
        with_retry(fs, lambda: fs.info(path.rpartition("/")[0]))
    except OSError:
        return False
    return True


def _require_source(url: str, cause: OSError) -> None:
    """One file may vanish, the whole source may not."""
    try:
        list_files(url)
    except BadInputError as error:
        raise BadInputError(
            f"The source {url!r} disappeared while it was read. What was registered so far stays; "
            "run it again when the source is back."
        ) from (error if error.__cause__ else cause)


def _write_down(
    database: Database,
    campaign_id: str,
    batch: Sequence[_Read],
    index: GroupIndex,
    report: IngestReport,
    readmit: bool,
) -> None:
    """One transaction for a batch."""
    registered = duplicates = quarantined = vanished = purged = 0
    with database.begin() as conn:
        for read in batch:
            file = {"uri": read.file.uri, "uri_sha256": read.file.uri_sha256, "version": read.file.version}
            if read.vanished:
                vanished += 1
            elif read.problem is not None:
                images.add_quarantined(conn, campaign_id, **file, reason=read.problem)
                quarantined += 1
            else:
                added = images.add_image(
                    conn,
                    campaign_id,
                    **file,
                    file_name=read.file.file_name,
                    sha256=read.sha256,
                    phash=read.phash,
                    group_key=index.assign(read.phash, read.sha256),
                    width=read.width,
                    height=read.height,
                    format=read.format,
                    size_bytes=read.size_bytes,
                    readmit=readmit,
                )
                purged += added.image_id is None
                duplicates += added.duplicate
                registered += added.image_id is not None and not added.duplicate
    report.registered += registered
    report.duplicates += duplicates
    report.quarantined += quarantined
    report.vanished += vanished
    report.purged += purged
