"""Garbage collection of a storage."""

import os
import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from pipeline.embeddings.store import EmbeddingStore
from pipeline.storage import garbage
from pipeline.storage.database import Database
from pipeline.storage.files import write_atomic
from schemas.columns import db_now
from schemas.errors import StateError
from schemas.tables import Embedding, Image
from tests.pipeline.storage.catalogues import Catalogue, sha
from tests.s3 import object_names

DAY = 86400


def _age(path: str | Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then))


def _put(database: Database, store: EmbeddingStore, key: str, sha256: str) -> str:
    write_atomic(store.fs, store.path(key, sha256), b"1234")
    values = {"image_sha256": sha256, "model_key": key, "digest": sha(sha256), "size_bytes": 4, "created_at": db_now()}
    with database.begin() as conn:
        conn.execute(insert(Embedding).values(**values))
    return store.path(key, sha256)


@pytest.mark.parametrize("seed", range(3))
def test_only_old_embeddings_of_no_campaign_go(database: Database, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    Catalogue(database, images=4)
    with database.connect() as conn:
        needed = list(conn.execute(select(Image.sha256)).scalars())
    store = EmbeddingStore(str(tmp_path))
    stay, go = set(), set()
    for sha256 in [*needed, *(sha(f"gone-{i}") for i in range(6))]:
        for key in ("key", "other"):
            path, days = _put(database, store, key, sha256), draw.choice([0.5, 3.0])
            _age(path, days)
            (stay if days < 1 or (key == "key" and sha256 in needed) else go).add(path)
    others = [tmp_path / name for name in ("models/a.safetensors", "adapters/b/weights.safetensors", "notes.part")]
    fresh, left = tmp_path / "models/.new.part", tmp_path / "models/.old.part"
    for path in (*others, fresh, left):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12")
        _age(path, 0.5 if path == fresh else 3)
    everything = {str(p) for p in tmp_path.rglob("*") if p.is_file()}
    counted = garbage.collect(database, str(tmp_path), dry_run=True)
    assert {str(p) for p in tmp_path.rglob("*") if p.is_file()} == everything
    assert garbage.collect(database, str(tmp_path)) == counted
    assert {str(p) for p in tmp_path.rglob("*") if p.is_file()} == everything - go - {str(left)}
    assert (counted["embeddings"].files, counted["embeddings"].size_bytes) == (len(go), 4 * len(go))
    assert (counted["partial"].files, counted["partial"].size_bytes) == (1, 2)
    with database.connect() as conn:
        rows = conn.execute(select(Embedding.model_key, Embedding.image_sha256)).all()
    assert {store.path(row[0], row[1]) for row in rows} == stay
    assert garbage.collect(database, str(tmp_path))["embeddings"].files == 0


def test_a_bucket_is_listed_with_its_times(database: Database, s3_bucket: str) -> None:
    Catalogue(database, images=1)
    with database.connect() as conn:
        needed = conn.execute(select(Image.sha256)).scalar_one()
    store = EmbeddingStore(f"{s3_bucket}/prefix")
    _put(database, store, "key", needed)
    _put(database, store, "key", sha("gone"))
    before = object_names(s3_bucket)
    assert garbage.collect(database, f"{s3_bucket}/prefix")["embeddings"].files == 0
    assert object_names(s3_bucket) == before
    later = datetime.now(UTC) + timedelta(days=2)  # an object's time cannot be set
    assert garbage.collect(database, f"{s3_bucket}/prefix", now=later)["embeddings"].files == 1
    assert [name for name in before if needed in name] == object_names(s3_bucket)


def test_a_catalogue_without_campaigns_removes_nothing(database: Database, tmp_path: Path) -> None:
    store = EmbeddingStore(str(tmp_path))
    path = _put(database, store, "key", sha("of another catalogue"))
    _age(path, 3)
    with pytest.raises(StateError, match="no campaign"):
        garbage.collect(database, str(tmp_path))
    assert Path(path).exists()
    assert garbage.collect(database, str(tmp_path), dry_run=True)["embeddings"].files == 1
