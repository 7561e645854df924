"""The embedding store: one file per image and model key, on a local folder or an object store.

The first bytes stored under a key win, whoever comes second gets their digest. Knows nothing about the catalogue.
"""

import logging
from pathlib import Path

from pipeline.embeddings.codec import check_bytes, embedding_digest
from pipeline.storage.files import (
    exists,
    is_local,
    join,
    open_storage,
    put_if_absent,
    read_bytes,
    remove,
    require_free_space,
    write_atomic,
)
from schemas.errors import CorruptDataError, EmbeddingMissingError

logger = logging.getLogger(__name__)


class EmbeddingStore:
    """Embeddings below a storage URL.

    Args:
        storage_url: Folder or URL of the storage.
        cache_dir: Local folder that keeps what was read from an object store; unused for a local storage.
        min_free_bytes: `put` stops before a local disk has less than this.
    """

    def __init__(self, storage_url: str, cache_dir: str | Path | None = None, min_free_bytes: int = 0) -> None:
        self.fs, self.root = open_storage(storage_url)
        self.min_free_bytes = min_free_bytes
        self._cache = None if cache_dir is None or is_local(self.fs) else Path(cache_dir)

    def path(self, model_key: str, sha256: str) -> str:
        """Name of an embedding in the store's file system."""
        return join(self.root, "embeddings", model_key, sha256[:2], f"{sha256}.safetensors")

    def put(self, model_key: str, sha256: str, data: bytes) -> str:
        """Store an embedding unless there is one.

        Args:
            model_key: See `pipeline.embeddings.key`.
            sha256: Of the image.
            data: Of `codec.encode_bytes`.

        Returns:
            Digest of the bytes that are stored now: of `data`, or of those that were there first.

        Raises:
            OutOfSpaceError: The disk is full or near its floor; nothing is visible.
        """
        path = self.path(model_key, sha256)
        require_free_space(self.fs, path, self.min_free_bytes)
        if put_if_absent(self.fs, path, data):
            return embedding_digest(data)
        try:
            first = read_bytes(self.fs, path)
            check_bytes(first)
        except (CorruptDataError, FileNotFoundError) as error:
            logger.warning("replacing an embedding: model_key=%s sha256=%s: %s", model_key, sha256, error)
            write_atomic(self.fs, path, data)
            return embedding_digest(data)
        return embedding_digest(first)

    def get(self, model_key: str, sha256: str, expected_digest: str | None = None) -> bytes:
        """The stored bytes, checked.

        Args:
            model_key: See `pipeline.embeddings.key`.
            sha256: Of the image.
            expected_digest: Of the pins; None: any undamaged embedding.

        Raises:
            EmbeddingMissingError: There is none; encode the image.
            CorruptDataError: The bytes are damaged or not those that are expected; delete, then encode again.
        """
        cached = self._read_cached(model_key, sha256, expected_digest)
        if cached is not None:
            return cached
        try:
            data = read_bytes(self.fs, self.path(model_key, sha256))
        except FileNotFoundError as error:
            raise EmbeddingMissingError(f"No embedding of image {sha256} for model key {model_key}.") from error
        _check(data, expected_digest)
        if self._cache is not None:
            self._keep(self._cache_path(model_key, sha256), data)
        return data

    def exists(self, model_key: str, sha256: str) -> bool:
        """Whether one is stored (it may be damaged)."""
        return exists(self.fs, self.path(model_key, sha256))

    def delete(self, model_key: str, sha256: str) -> None:
        """Remove an embedding, cached copy included; it need not exist."""
        if self._cache is not None:
            self._cache_path(model_key, sha256).unlink(missing_ok=True)
        remove(self.fs, self.path(model_key, sha256))

    def _cache_path(self, model_key: str, sha256: str) -> Path:
        assert self._cache is not None
        return self._cache / "embeddings" / model_key / sha256[:2] / f"{sha256}.safetensors"

    def _read_cached(self, model_key: str, sha256: str, expected_digest: str | None) -> bytes | None:
        """The cached copy if it is there and sound; an unsound one is dropped."""
        if self._cache is None:
            return None
        path = self._cache_path(model_key, sha256)
        try:
            data = path.read_bytes()
            _check(data, expected_digest)
        except FileNotFoundError:
            return None
        except CorruptDataError:
            path.unlink(missing_ok=True)
            return None
        return data

    @staticmethod
    def _keep(path: Path, data: bytes) -> None:
        """Cache a copy; a full disk costs the copy only."""
        local, _ = open_storage(str(path.parent))
        try:
            write_atomic(local, str(path), data)
        except Exception as error:  # the caller has the bytes already
            logger.warning("cannot cache an embedding at %s: %s", path, error)


def _check(data: bytes, expected_digest: str | None) -> None:
    if expected_digest is None:
        check_bytes(data)
        return
    digest = embedding_digest(data)
    if digest != expected_digest:
        raise CorruptDataError(f"The stored embedding has digest {digest}, expected {expected_digest}.")
