"""Where a refine request goes, and what happens when it fails: the next refiner, an encoder for what is missing, busy.

Knows actors by name and how to attach to them again after their owner restarted; keeps no state that matters. Imports
no torch. `LocalRouter` does the same with a refiner and an encoder in this process.
"""

import asyncio
import hashlib
import logging
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from schemas.errors import BusyError, ClickloopError, CorruptDataError, EmbeddingMissingError
from schemas.predictions import Encoded, Engine, ImageRef, MaskReply, Pins, RefineRequest
from schemas.settings import Settings
from workers.cluster import connect, find_info, is_node_gone
from workers.line import Line
from workers.pool import Pool, cause_of

if TYPE_CHECKING:
    from workers.encoder import Encoder
    from workers.refiner import Refiner

logger = logging.getLogger(__name__)
T = TypeVar("T")

RESTART_WAIT_S = 30.0
"""A call whose refiner died waits so long for Ray to start it again: importing torch takes 3-5 s, 20 under load."""
RESTART_PERIOD_S = 60.0
"""A refiner is not restarted more often: a call to one that is starting is late, too."""
SECONDS_PER_EDIT = 0.05
"""Added to a call's deadline per edit: a refiner that was restarted computes them all again."""
_POLL_S = 0.1
_WATCH_PERIOD_S = 1.0


class _EncodeOnMiss(ABC):
    """What both routers share: an embedding that is missing or corrupt is encoded once, however many ask."""

    def __init__(self) -> None:
        self._encoding: dict[tuple[str, str], asyncio.Task[Encoded]] = {}

    @abstractmethod
    async def _ask(self, request: RefineRequest) -> MaskReply:
        """Ask a refiner."""

    @abstractmethod
    async def _encode(self, image: ImageRef, pins: Pins) -> Encoded:
        """Have an encoder publish the embedding."""

    async def refine(self, request: RefineRequest) -> MaskReply:
        """The mask of the request's edits.

        A corrupt embedding is computed again; where that gives other bytes than those pinned, the mask is computed with
        the new ones, and the reply's `embedding_digest` says so.

        Raises:
            BadInputError: An edit does not fit the image, or the image cannot be decoded.
            CorruptDataError: The image file is not the one that was ingested.
            BusyError: No refiner or encoder answers in time; try again.
        """
        try:
            return await self._ask(request)
        except (EmbeddingMissingError, CorruptDataError):
            encoded = await self._encode_once(request.image, request.pins)
        if request.pins.embedding_digest not in (None, encoded.digest):
            logger.warning(
                "the pinned embedding is lost, going on with a new one: sha256=%s pinned=%s new=%s",
                request.image.sha256, request.pins.embedding_digest, encoded.digest,
            )  # fmt: skip
            pins = request.pins.model_copy(update={"embedding_digest": encoded.digest})
            request = request.model_copy(update={"pins": pins})
        reply = await self._ask(request)
        return reply.model_copy(update={"cache": "encoded"})

    async def _encode_once(self, image: ImageRef, pins: Pins) -> Encoded:
        key = (pins.model_key, image.sha256)
        task = self._encoding.get(key)
        if task is None:
            task = asyncio.create_task(self._encode(image, pins))
            self._encoding[key] = task
            task.add_done_callback(lambda _: self._encoding.pop(key, None))
        return await asyncio.shield(task)


class LocalRouter(_EncodeOnMiss):
    """A refiner and an encoder in this process, without Ray.

    Args:
        refiner: Asked in a thread.
        encoder: Asked for what is missing.
    """

    def __init__(self, refiner: "Refiner", encoder: "Encoder") -> None:
        super().__init__()
        self._refiner = refiner
        self._encoder = encoder

    async def _ask(self, request: RefineRequest) -> MaskReply:
        return await asyncio.to_thread(self._refiner.refine, request)

    async def _encode(self, image: ImageRef, pins: Pins) -> Encoded:
        return await self._encoder.encode(
            image, pins.model_digest, pins.model_key, expected_digest=pins.embedding_digest
        )

    async def warm(self, images: Sequence[ImageRef], pins: Pins) -> None:
        """See `Router.warm`."""
        for image in images:
            if not await asyncio.to_thread(self._refiner.warm, image, pins):
                await self._encode_once(image, pins)

    async def load(self, model_digest: str, adapter_digest: str | None) -> None:
        """See `Router.load`."""
        await asyncio.to_thread(self._refiner.load, model_digest, adapter_digest)

    async def engine(self, pins: Pins) -> Engine | None:
        """See `Router.engine`."""
        try:
            return await asyncio.to_thread(self._refiner.load, pins.model_digest, pins.adapter_digest)
        except ClickloopError:
            return None

    async def ready(self) -> dict[str, Any]:
        """See `Router.ready`."""
        return {"ray": True, "refiners": 1, "encoders": 1, "reason": ""}

    async def close(self) -> None:
        """End the encoder's threads."""
        await asyncio.to_thread(self._encoder.close)


class Router(_EncodeOnMiss):
    """Sends requests to the actors of a workspace or cluster.

    The image decides which refiner is asked first (rendezvous hashing), so that its memory is warm; any can answer.

    Args:
        settings: Where the actors are, deadlines and queue bounds.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._pool: Pool | None = None
        self._is_connected = False
        self._generation = ""
        self._on_cluster = False
        self._attaching: asyncio.Task[Pool] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Future[Any]] = set()
        self._lines: defaultdict[str, Line] = defaultdict(Line)
        self._restarted: dict[str, float] = {}
        self._loaded: dict[tuple[str, str, str | None, Engine | None], Engine] = {}

    async def warm(self, images: Sequence[ImageRef], pins: Pins) -> None:
        """Prepare first clicks on images that will come soon: weights, decoded image, embedding. Never raises."""
        try:
            pool = await self._attached()
            for image in images:
                name = rendezvous(image.sha256, pool.refiners)[0]
                await self._ensure_loaded(name, pool.refiners[name], pins)
                call = self._call(pool.refiners[name].warm, image, pins)
                if not await self._answer(call, self._settings.encode_timeout_s):
                    await self._encode_once(image, pins)
        except Exception as error:
            logger.warning("could not warm the next images: %s", error)

    async def load(self, model_digest: str, adapter_digest: str | None) -> None:
        """Have every refiner load and try weights; done before a promotion.

        Raises:
            NotFoundError: The storage has no such file.
            BadCheckpointError: A file is corrupt or does not fit.
            BusyError: A refiner does not answer.
        """
        pool = await self._attached()
        engines = await self._in_thread(pool.load_everywhere, model_digest, adapter_digest)
        for name, engine in zip(pool.refiners, engines, strict=True):
            self._note_loaded(name, model_digest, adapter_digest, None, engine)

    async def engine(self, pins: Pins) -> Engine | None:
        """What new instances are to be pinned to; None while no refiner has loaded the weights. Waits for nothing."""
        wanted = (pins.model_digest, pins.adapter_digest, None)
        return next((engine for key, engine in self._loaded.items() if key[1:] == wanted), None)

    async def ready(self) -> dict[str, Any]:
        """Whether Ray, refiners and encoders answer: {"ray", "refiners", "encoders", "reason"}."""
        try:
            pool = await self._attached()
            answering = await self._in_thread(pool.answering, self._settings.refine_timeout_s)
        except BusyError as error:
            return {"ray": False, "refiners": 0, "encoders": 0, "reason": error.message}
        refiners, encoders = len(answering & pool.refiners.keys()), len(answering & pool.encoders.keys())
        if not (refiners and encoders):
            self._look_again()
        reason = "" if refiners and encoders else "no refiner or no encoder answers"
        return {"ray": True, "refiners": refiners, "encoders": encoders, "reason": reason}

    async def close(self) -> None:
        """Stop watching and let go of Ray."""
        if self._watcher:
            self._watcher.cancel()
        if self._pool is not None:
            await self._detach()

    async def _ask(self, request: RefineRequest) -> MaskReply:
        give_up = time.monotonic() + RESTART_WAIT_S
        deadline = self._settings.refine_timeout_s + SECONDS_PER_EDIT * len(request.edits)
        while True:
            pool = await self._attached()
            is_restarting = False
            for name in rendezvous(request.image.sha256, pool.refiners):
                try:
                    if not self._lines[name].is_full(self._settings.refine_queue, deadline):
                        return await self._ask_refiner(pool, name, request, deadline)
                except TimeoutError:
                    pass
                except RayActorError as error:
                    is_restarting = True
                    self._forget(name)
                    if isinstance(error, ActorDiedError):
                        self._look_again()
                await self._restart_if_silent(pool, name)
            if not is_restarting or time.monotonic() > give_up:
                raise BusyError("No refiner answers in time. Try again.", retry_after_s=1)
            await asyncio.sleep(_POLL_S)

    async def _ask_refiner(self, pool: Pool, name: str, request: RefineRequest, deadline_s: float) -> MaskReply:
        refiner = pool.refiners[name]
        await self._ensure_loaded(name, refiner, request.pins)
        call = self._call(refiner.refine, request)
        self._lines[name].add(call, deadline_s)
        reply: MaskReply = await self._answer(call, deadline_s)
        return reply

    async def _restart_if_silent(self, pool: Pool, name: str) -> None:
        now = time.monotonic()
        if self._lines[name].is_silent() and now - self._restarted.get(name, -RESTART_PERIOD_S) >= RESTART_PERIOD_S:
            self._restarted[name] = now
            self._forget(name)
            await self._in_thread(pool.restart, name)

    async def _ensure_loaded(self, name: str, refiner: ActorHandle, pins: Pins) -> None:
        """Have weights loaded and tried before the click's deadline begins, once per refiner, weights and engine."""
        key = (name, pins.model_digest, pins.adapter_digest, pins.engine)
        if key not in self._loaded:
            call = self._call(refiner.load, pins.model_digest, pins.adapter_digest, pins.engine)
            self._note_loaded(*key, await self._answer(call, self._settings.encode_timeout_s))

    def _note_loaded(
        self, name: str, model_digest: str, adapter_digest: str | None, wanted: Engine | None, engine: Engine
    ) -> None:
        """Weights loaded for whatever is wanted were tried on what new instances are pinned to: not again for these."""
        for key in (wanted, engine):
            self._loaded[name, model_digest, adapter_digest, key] = engine

    def _look_again(self) -> None:
        """Have a cluster's actors looked up again: nothing else says that another owner made new ones."""
        if self._on_cluster:
            self._pool = None
            self._loaded.clear()

    def _forget(self, name: str) -> None:
        """A refiner starts anew: nothing is loaded, no call waits."""
        self._lines.pop(name, None)
        self._loaded = {key: engine for key, engine in self._loaded.items() if key[0] != name}

    async def _encode(self, image: ImageRef, pins: Pins) -> Encoded:
        give_up = time.monotonic() + self._settings.encode_timeout_s
        while True:
            pool = await self._attached()
            for name in rendezvous(image.sha256, pool.encoders):
                call = self._call(
                    pool.encoders[name].encode,
                    image, pins.model_digest, pins.model_key, "interactive", pins.embedding_digest,
                )  # fmt: skip
                try:
                    encoded: Encoded = await self._answer(call, max(0.1, give_up - time.monotonic()))
                    return encoded
                except TimeoutError:
                    continue
                except RayActorError as error:
                    if isinstance(error, ActorDiedError):
                        self._look_again()
            if time.monotonic() > give_up:
                raise BusyError("No encoder answers in time. Try again.", retry_after_s=2)
            await asyncio.sleep(_POLL_S)

    def _call(self, method: Any, *args: Any) -> "asyncio.Future[Any]":
        """Call an actor.

        Raises:
            BusyError: Ray was let go of since the actor was looked up.
        """
        if not self._is_connected:
            raise _restarting()
        return asyncio.wrap_future(method.remote(*args).future())

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Something that waits for Ray.

        Raises:
            BusyError: Ray was let go of meanwhile.
        """
        try:
            return await asyncio.to_thread(work, *args)
        except (RayError, AttributeError) as error:  # Ray has no other one for what it has let go of
            if self._is_connected:
                raise
            raise _restarting() from error

    async def _answer(self, call: "asyncio.Future[Any]", timeout_s: float) -> Any:
        """The result of a call to an actor; the call itself goes on when it is late.

        Raises:
            TimeoutError: It is late.
            RayActorError: The actor died or is being restarted.
            BusyError: Ray itself is gone.
            ClickloopError: What the actor raised.
        """
        self._calls.add(call)
        call.add_done_callback(self._done)
        done, _ = await asyncio.wait({call}, timeout=timeout_s)
        if not done:
            raise TimeoutError
        try:
            return call.result()
        except RayTaskError as error:
            raise cause_of(error) from None
        except RayActorError:
            raise
        except (RayError, asyncio.CancelledError) as error:
            raise _restarting() from error

    def _done(self, call: "asyncio.Future[Any]") -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # seen: a late one has no reader

    async def _attached(self) -> Pool:
        """The actors, attached to when needed.

        Raises:
            BusyError: They are not there (yet).
        """
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())
        if self._pool is not None:
            return self._pool
        if self._attaching is None:
            self._attaching = asyncio.create_task(self._attach())
            self._attaching.add_done_callback(self._attach_ended)
        return await asyncio.shield(self._attaching)  # whoever gives up waiting leaves it to the others

    async def _attach(self) -> Pool:
        info = find_info(self._settings)
        if info is None:
            raise BusyError("The workers are starting. Try again.", retry_after_s=2)
        if self._is_connected and is_node_gone():
            await self._detach()
        await asyncio.to_thread(connect, info)
        self._is_connected = True
        self._pool = await asyncio.to_thread(Pool.find, self._settings, info.namespace)
        self._generation, self._on_cluster = info.generation, not info.owner_pid
        logger.info("attached to the workers: generation=%s", info.generation)
        return self._pool

    def _attach_ended(self, task: "asyncio.Task[Pool]") -> None:
        self._attaching = None
        if not task.cancelled():
            task.exception()  # seen, also when nobody waits any more

    async def _watch(self) -> None:
        """Let go of Ray when its owner is gone, before Ray ends this process for the loss of its head."""
        while True:
            await asyncio.sleep(_WATCH_PERIOD_S)
            info = find_info(self._settings)
            if self._pool is not None and (info is None or info.generation != self._generation or is_node_gone()):
                logger.warning("the workers' owner, or the Ray node of this process, is gone")
                await self._detach()

    async def _detach(self) -> None:
        self._pool, self._is_connected = None, False
        for call in list(self._calls):
            call.cancel()  # Ray will not answer it any more
        self._lines.clear()
        self._loaded.clear()
        await asyncio.to_thread(ray.shutdown)


def _restarting() -> BusyError:
    return BusyError("The workers are being restarted. Try again.", retry_after_s=2)


def rendezvous(key: str, names: Sequence[str] | dict[str, Any]) -> list[str]:
    """Names in the order in which they are to be asked for a key.

    Adding or taking away a name moves only the keys that it wins (highest random weight, Thaler and Ravishankar 1998).
    """
    return sorted(names, key=lambda name: hashlib.sha256(f"{key}:{name}".encode()).digest(), reverse=True)
