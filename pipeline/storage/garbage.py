"""What lies in a storage and is of no use: embeddings of no campaign's image, and what killed writers left.

Only names of these two forms are looked at; models, adapters, images and exports are never touched. Embeddings can be
made again, so one that comes into use in the very moment of its removal costs an encoding and nothing else.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Connection, delete, select

from pipeline.storage.database import Database
from pipeline.storage.files import files_below, join, open_storage, remove
from pipeline.storage.sql import batches
from pipeline.storage.stores import changed_at
from schemas.errors import StateError
from schemas.tables import Campaign, Embedding, Image

MIN_AGE = timedelta(days=1)
"""Younger files may be in the making."""

_EMBEDDING = re.compile(r"embeddings/([^/]+)/[0-9a-f]{2}/([0-9a-f]{64})\.safetensors")
_PARTIAL = re.compile(r"(?:embeddings|models|adapters)/(?:[^/]+/)*(?:\.[^/]+\.part|[^/]+\.partial)")
_BATCH = 500


class Garbage(BaseModel):
    """Files of one kind, and their bytes together."""

    files: int = 0
    size_bytes: int = 0


def collect(
    database: Database,
    storage_url: str,
    *,
    older_than: timedelta = MIN_AGE,
    dry_run: bool = False,
    now: datetime | None = None,
) -> dict[str, Garbage]:
    """Remove what nothing refers to; safe while others work, and to be repeated after a kill.

    Args:
        database: The catalogue that the storage belongs to.
        storage_url: The storage.
        older_than: Younger files stay; at least `MIN_AGE` counts.
        dry_run: Count only.
        now: From when the age counts, aware; None: this machine's clock.

    Returns:
        What was (or would be) removed, by kind: embeddings, partial.

    Raises:
        StateError: The catalogue has no campaign: it hardly is the one that the storage belongs to.
        OSError: The storage cannot be listed, or a file cannot be removed.
    """
    with database.connect() as conn:
        if not dry_run and conn.execute(select(Campaign.id).limit(1)).first() is None:
            raise StateError(
                "This database has no campaign, so every embedding would be removed. Check the workspace and "
                "CLICKLOOP_DATABASE_URL; an empty workspace's storage can be deleted as a folder."
            )
    fs, root = open_storage(storage_url)
    before = (now or datetime.now(UTC)) - max(older_than, MIN_AGE)
    done = {"embeddings": Garbage(), "partial": Garbage()}
    old: list[tuple[str, str, str, int]] = []
    for path, size in _files_before(fs, root, before):
        name = path.removeprefix(root).lstrip("/")
        if found := _EMBEDDING.fullmatch(name):
            old.append((found[1], found[2], path, size))
        elif _PARTIAL.fullmatch(name):
            _count(done["partial"], size)
            if not dry_run:
                remove(fs, path)
    for batch in batches(old, _BATCH):
        # Rows first: a kill in between leaves a file without a row, which the next run finds again.
        with database.connect() if dry_run else database.begin() as conn:
            used = _used(conn, [sha256 for _, sha256, _, _ in batch])
            useless = [entry for entry in batch if entry[:2] not in used]
            if not dry_run:
                for key, sha256, _, _ in useless:
                    row = (Embedding.model_key == key, Embedding.image_sha256 == sha256)
                    conn.execute(delete(Embedding).where(*row))
        for _, _, path, size in useless:
            _count(done["embeddings"], size)
            if not dry_run:
                remove(fs, path)
    return done


def _files_before(fs: Any, root: str, before: datetime) -> Iterator[tuple[str, int]]:
    """Path and bytes of every older file in the folders that are looked at."""
    fs.invalidate_cache()
    for folder in ("embeddings", "models", "adapters"):
        for path, facts in files_below(fs, join(root, folder)).items():
            changed = changed_at(facts)
            if changed is not None and changed < before:
                yield path, int(facts["size"])


def _used(conn: Connection, hashes: list[str]) -> set[tuple[str, str]]:
    """(model key, image sha256) that a campaign may ask for."""
    query = select(Campaign.model_key, Image.sha256).join(Image, Image.campaign_id == Campaign.id)
    return {(row[0], row[1]) for row in conn.execute(query.where(Image.sha256.in_(hashes)))}


def _count(garbage: Garbage, size: int) -> None:
    garbage.files += 1
    garbage.size_bytes += size
