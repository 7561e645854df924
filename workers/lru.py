"""A cache bounded by the sum of its entries' sizes, for several threads. Knows nothing about what it keeps."""

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Lru(Generic[K, V]):
    """Keeps what was used last. The newest entry always stays, even when it alone is over the limit.

    Args:
        max_size: Limit of the sum of the entries' sizes: bytes, or a count when every size is 1.
    """

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self.size = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value, which counts as a use, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: K, value: V, size: int = 1) -> None:
        """Keep a value, dropping the longest unused ones where needed."""
        with self._lock:
            self._drop(key)
            self._entries[key] = (value, size)
            self.size += size
            while self.size > self.max_size and len(self._entries) > 1:
                self._drop(next(iter(self._entries)))

    def _drop(self, key: K) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size -= entry[1]

    def __len__(self) -> int:
        return len(self._entries)
