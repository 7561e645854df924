"""Images whose file was moved, renamed, removed or replaced: from then on they are read from another file with the same
bytes, if a pass has found one. Their numbers, splits and labels stay.
"""

import logging
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor

from pipeline.ingest.sources import Listing
from pipeline.storage import images
from pipeline.storage.database import Database
from pipeline.storage.files import exists, open_storage, patience
from pipeline.storage.images import Duplicate
from pipeline.storage.sql import batches
from schemas.errors import BadInputError

logger = logging.getLogger(__name__)

_ASKED_AT_ONCE = 16


def move_images(database: Database, campaign_id: str, listing: Listing, read: Collection[str]) -> set[str]:
    """Give images whose file is not there any more another one; call it when a pass has written down what it read.

    A pass that changes nothing looks at no file: those of its source it has listed, and of files elsewhere only whether
    their folder is there.

    Args:
        database: The catalogue.
        campaign_id: The campaign.
        listing: Of the source.
        read: URIs of the files that the pass has read. Files elsewhere that have the bytes of one of them are looked
            for, too: it may have been one of these.

    Returns:
        The URIs that images had.
    """
    with database.connect() as conn:
        duplicates = images.duplicate_files(conn, campaign_id)
    if not duplicates:
        return set()
    names = {file.uri: file.file_name for file in listing.files}

    def is_elsewhere(uri: str) -> bool:
        return listing.scope.fullmatch(uri) is None

    lost = {file.image_uri for file in duplicates if file.image_uri not in names and not is_elsewhere(file.image_uri)}
    elsewhere = [file for file in duplicates if not file.is_replaced and is_elsewhere(file.image_uri)]
    folders = _absent({_folder(file.image_uri) for file in elsewhere})
    lost |= {file.image_uri for file in elsewhere if _folder(file.image_uri) in folders}
    lost |= _absent({file.image_uri for file in elsewhere if file.uri in read} - lost)
    waiting = [file for file in duplicates if file.is_replaced or file.image_uri in lost]
    absent = _absent({file.uri for file in waiting if is_elsewhere(file.uri)})
    found: dict[str, Duplicate] = {}
    for file in waiting:
        if file.uri in names or (is_elsewhere(file.uri) and file.uri not in absent):
            found.setdefault(file.image_id, file)
    moved = set[str]()
    for files in batches(found.values()):
        with database.begin() as conn:
            moved.update(
                file.image_uri for file in files if images.move_image(conn, campaign_id, file, names.get(file.uri))
            )
    logger.info("moved images campaign_id=%s images=%d", campaign_id, len(moved))
    return moved


def _folder(uri: str) -> str:
    return uri.rpartition("/")[0]


def _absent(uris: Iterable[str]) -> set[str]:
    """Those that are surely not there: a storage that refuses, or does not answer, says nothing."""

    def is_absent(uri: str) -> bool:
        try:
            with patience(0):
                return not exists(*open_storage(uri))
        except (OSError, BadInputError):
            return False

    asked = list(uris)
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        return {uri for uri, is_gone in zip(asked, pool.map(is_absent, asked), strict=True) if is_gone}
