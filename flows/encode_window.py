"""Keep encoder actors busy: two chunks in flight at each, the next one given out as soon as one is done.

Knows Ray handles and chunks; what a chunk's failure means is the caller's business.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from schemas.campaigns import ImageRecord

logger = logging.getLogger(__name__)

IN_FLIGHT = 2
"""Chunks at each actor: one that it works on and one that is ready."""
WAIT_S = 1.0

Chunk = list[ImageRecord]


@dataclass
class ChunkResult:
    """What became of a chunk.

    Attributes:
        answers: What the encoder said of each image; empty when it did not answer.
        crashed: The actor died over it.
        error: The actor refused the whole chunk (its weights, its storage): nothing is known about the images.
    """

    chunk: Chunk
    answers: Sequence[Any] = ()
    crashed: bool = False
    error: str = ""


@dataclass
class EncodeWindow:
    """Runs chunks on actors.

    Args:
        actors: Their handles.
        submit: (actor, chunk) -> the object ref of the answers.
        check: Called about once a second; raises to stop.
    """

    actors: Sequence[Any]
    submit: Callable[[Any, Chunk], Any]
    check: Callable[[], None]
    _flying: dict[Any, tuple[Chunk, int]] = field(default_factory=dict)

    def run(self, chunks: Iterable[Chunk]) -> Iterator[ChunkResult]:
        """Results in the order in which they are ready; chunks are drawn as they can be given out."""
        waiting = iter(chunks)
        while True:
            while len(self._flying) < IN_FLIGHT * len(self.actors):
                chunk = next(waiting, None)
                if chunk is None:
                    break
                self._give_out(chunk)
            if not self._flying:
                return
            self.check()
            ready, _ = ray.wait(list(self._flying), num_returns=1, timeout=WAIT_S)
            for ref in ready:
                yield _result(ref, self._flying.pop(ref)[0])

    def _give_out(self, chunk: Chunk) -> None:
        loads = [sum(1 for _, actor in self._flying.values() if actor == i) for i in range(len(self.actors))]
        target = loads.index(min(loads))
        self._flying[self.submit(self.actors[target], chunk)] = (chunk, target)


def _result(ref: Any, chunk: Chunk) -> ChunkResult:
    try:
        return ChunkResult(chunk, ray.get(ref))
    except RayActorError as error:
        logger.warning("an encoder died over %d images: %s", len(chunk), error)
        return ChunkResult(chunk, crashed=True)
    except RayTaskError as error:
        return ChunkResult(chunk, error=str(error.cause or error))
