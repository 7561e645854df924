"""The embedding store on a folder and on S3: first bytes win, nothing partial, damage is found."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pipeline.embeddings.codec import embedding_digest, encode_bytes
from pipeline.embeddings.store import EmbeddingStore
from pipeline.models._base import Encoding
from pipeline.storage.files import remove, write_atomic
from schemas.errors import CorruptDataError, EmbeddingMissingError, OutOfSpaceError
from tests.disks import full_disk

KEY, SHA = "k" * 24, hashlib.sha256(b"image").hexdigest()


def embedding(value: float, size: int = 100) -> bytes:
    """Bytes of an embedding filled with a value."""
    return encode_bytes(Encoding({"low": torch.full((1, size), value)}))


def test_put_then_get(storage_url: str) -> None:
    store = EmbeddingStore(storage_url)
    data = embedding(1)
    assert not store.exists(KEY, SHA)
    with pytest.raises(EmbeddingMissingError):
        store.get(KEY, SHA)
    digest = store.put(KEY, SHA, data)
    assert digest == embedding_digest(data)
    assert store.exists(KEY, SHA)
    assert store.get(KEY, SHA) == store.get(KEY, SHA, digest) == data
    assert store.path(KEY, SHA).endswith(f"/embeddings/{KEY}/{SHA[:2]}/{SHA}.safetensors")


def test_the_first_bytes_win(storage_url: str) -> None:
    store = EmbeddingStore(storage_url)
    first = store.put(KEY, SHA, embedding(1))
    assert EmbeddingStore(storage_url).put(KEY, SHA, embedding(2)) == first
    assert store.get(KEY, SHA) == embedding(1)


def test_another_key_or_image_is_another_embedding(storage_url: str) -> None:
    store = EmbeddingStore(storage_url)
    store.put(KEY, SHA, embedding(1))
    store.put("other", SHA, embedding(2))
    assert (store.get(KEY, SHA), store.get("other", SHA)) == (embedding(1), embedding(2))


def test_delete_then_put_again(storage_url: str) -> None:
    store = EmbeddingStore(storage_url)
    store.put(KEY, SHA, embedding(1))
    store.delete(KEY, SHA)
    store.delete(KEY, SHA)
    assert not store.exists(KEY, SHA)
    store.put(KEY, SHA, embedding(2))
    assert store.get(KEY, SHA) == embedding(2)


@pytest.mark.parametrize("damaged", [b"", embedding(1)[:-7], embedding(1)[:-2] + b"xy"])
def test_damaged_bytes_are_refused_and_replaced_by_the_next_put(storage_url: str, damaged: bytes) -> None:
    store = EmbeddingStore(storage_url)
    digest = store.put(KEY, SHA, embedding(1))
    write_atomic(store.fs, store.path(KEY, SHA), damaged)
    for expected in (None, digest):
        with pytest.raises(CorruptDataError):
            store.get(KEY, SHA, expected)
    assert store.put(KEY, SHA, embedding(1)) == digest
    assert store.get(KEY, SHA, digest) == embedding(1)


def test_another_embedding_than_the_pinned_one_is_refused(storage_url: str) -> None:
    store = EmbeddingStore(storage_url)
    store.put(KEY, SHA, embedding(2))
    with pytest.raises(CorruptDataError, match="digest"):
        store.get(KEY, SHA, embedding_digest(embedding(1)))


def test_threads_that_put_at_once_all_get_the_digest_of_what_is_stored(storage_url: str) -> None:
    def put(number: int) -> str:
        return EmbeddingStore(storage_url).put(KEY, SHA, embedding(number, 5000))

    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(put, range(8)))
    assert digests == {embedding_digest(EmbeddingStore(storage_url).get(KEY, SHA))}


@pytest.mark.s3
def test_the_cache_serves_what_the_bucket_gave_and_drops_what_is_damaged(s3_bucket: str, tmp_path: Path) -> None:
    store = EmbeddingStore(s3_bucket, cache_dir=tmp_path)
    digest = store.put(KEY, SHA, embedding(1))
    assert store.get(KEY, SHA) == embedding(1)
    remove(store.fs, store.path(KEY, SHA))
    assert store.get(KEY, SHA, digest) == embedding(1)
    (cached,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    cached.write_bytes(b"damaged")
    with pytest.raises(EmbeddingMissingError):
        store.get(KEY, SHA)
    assert not cached.exists()


def test_put_stops_at_the_free_space_floor(tmp_path: Path) -> None:
    store = EmbeddingStore(str(tmp_path), min_free_bytes=1 << 60)
    with pytest.raises(OutOfSpaceError, match="MB"):
        store.put(KEY, SHA, embedding(1))
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_full_disk_leaves_nothing_visible(tmp_path: Path) -> None:
    store, data = EmbeddingStore(str(tmp_path)), embedding(1, 200_000)
    with full_disk(100_000), pytest.raises(OutOfSpaceError, match="No space left"):
        store.put(KEY, SHA, data)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    store.put(KEY, SHA, data)
    assert store.get(KEY, SHA) == data
