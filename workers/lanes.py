"""Two lanes of waiting work: what an annotator waits for comes before bulk. Knows nothing about the work."""

from collections import deque
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
Lane = Literal["interactive", "bulk"]


class Lanes(Generic[T]):
    """First in, first out within a lane. Not locked: the owner does that."""

    def __init__(self) -> None:
        self._items: dict[Lane, deque[T]] = {"interactive": deque(), "bulk": deque()}

    def add(self, lane: Lane, item: T) -> None:
        """Put an item at the end of its lane."""
        self._items[lane].append(item)

    def waiting(self, lane: Lane) -> int:
        """Items in a lane."""
        return len(self._items[lane])

    def first(self, lane: Lane) -> T:
        """The next item of a lane that is not empty."""
        return self._items[lane][0]

    def promote(self, item: T) -> None:
        """Move an item to the interactive lane, if it waits in the bulk lane."""
        try:
            self._items["bulk"].remove(item)
        except ValueError:
            return
        self._items["interactive"].append(item)

    def take(self, lane: Lane, limit: int = 1, like: Callable[[T, T], bool] | None = None) -> list[T]:
        """Take the first item of a lane, and up to `limit` in all that are `like` it, in order."""
        first, rest = self._items[lane][0], list(self._items[lane])[1:]
        taken = [first, *[item for item in rest if like is None or like(first, item)][: limit - 1]]
        kept = [item for item in self._items[lane] if item not in taken]
        self._items[lane] = deque(kept)
        return taken

    def drain(self) -> list[T]:
        """Take everything."""
        everything = [*self._items["interactive"], *self._items["bulk"]]
        self._items = {"interactive": deque(), "bulk": deque()}
        return everything
