"""Keep encoder actors busy: two chunks in flight at each, the next one given out as soon as one is done.

Knows Ray handles and chunks; what a chunk's failure means is the caller's business.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

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
    """Runs chunks on actors. One that died gets no more until it answers again: after its node died it would refuse one
    chunk after the other, and each image would look as if it had killed it.

    Args:
        actors: Their handles.
        submit: (actor, chunk) -> the object ref of the answers.
        check: Called about once a second; raises to stop.
    """

    actors: Sequence[Any]
    submit: Callable[[Any, Chunk], Any]
    check: Callable[[], None]
    _flying: dict[Any, tuple[Chunk, int]] = field(default_factory=dict)
    _down: dict[int, Any] = field(default_factory=dict)
    """Actors that died, and the call that waits for their return."""
    _gone: set[int] = field(default_factory=set)
    """Actors that will not return; their owner makes new ones."""

    def run(self, chunks: Iterable[Chunk]) -> Iterator[ChunkResult]:
        """Results in the order in which they are ready; chunks are drawn as they can be given out."""
        waiting = iter(chunks)
        while len(self._gone) < len(self.actors) or self._flying:
            up = self._answering()
            while len(self._flying) < IN_FLIGHT * len(up):
                chunk = next(waiting, None)
                if chunk is None:
                    break
                self._give_out(chunk, up)
            if up and not self._flying:
                return
            self.check()
            if not self._flying:
                time.sleep(WAIT_S)
                continue
            ready, _ = ray.wait(list(self._flying), num_returns=1, timeout=WAIT_S)
            for ref in ready:
                chunk, actor = self._flying.pop(ref)
                result = _result(ref, chunk)
                if result.crashed and actor not in self._gone:
                    self._down[actor] = self.actors[actor].ping.remote()
                yield result
        for chunk in waiting:
            yield ChunkResult(chunk, error="The encoders are gone; waiting for new ones.")

    def _answering(self) -> list[int]:
        """The actors that can be given a chunk."""
        for actor, ping in list(self._down.items()):
            if not ray.wait([ping], timeout=0)[0]:
                continue
            try:
                ray.get(ping)
                del self._down[actor]
            except ActorDiedError:
                del self._down[actor]
                self._gone.add(actor)
            except RayActorError:
                self._down[actor] = self.actors[actor].ping.remote()
        return [actor for actor in range(len(self.actors)) if actor not in self._down.keys() | self._gone]

    def _give_out(self, chunk: Chunk, up: Sequence[int]) -> None:
        busy = Counter(actor for _, actor in self._flying.values())
        target = min(up, key=lambda actor: busy[actor])
        self._flying[self.submit(self.actors[target], chunk)] = (chunk, target)


def _result(ref: Any, chunk: Chunk) -> ChunkResult:
    try:
        return ChunkResult(chunk, ray.get(ref))
    except RayActorError as error:
        logger.warning("an encoder died over %d images: %s", len(chunk), error)
        return ChunkResult(chunk, crashed=True)
    except RayTaskError as error:
        return ChunkResult(chunk, error=str(error.cause or error))
