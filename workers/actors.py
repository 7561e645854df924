"""The refiner and the encoder as Ray actors: shells that make the real thing in their own process.

Whoever looks up an actor imports its class; that must not bring torch (half a gigabyte) into the gateway and the owner.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import ray

from schemas.predictions import Encoded, EncodeFailure, Engine, ImageRef, MaskReply, Pins, Prelabels, RefineRequest

if TYPE_CHECKING:
    from workers.lanes import Lane

Method = TypeVar("Method", bound=Callable[..., object])


def _beside_clicks(method: Method) -> Method:
    """Run in threads of their own, so that clicks do not wait for it."""
    decorated: Method = ray.method(concurrency_group="io")(method)
    return decorated


class _RefinerShell:
    """See `workers.refiner.Refiner`. Clicks are answered one at a time, in the order asked."""

    def __init__(self, **options: Any) -> None:
        from workers.refiner import Refiner

        self._refiner = Refiner(**options)

    def refine(self, request: RefineRequest) -> MaskReply:
        return self._refiner.refine(request)

    @_beside_clicks
    def warm(self, image: ImageRef, pins: Pins) -> bool:
        return self._refiner.warm(image, pins)

    @_beside_clicks
    def load(self, model_digest: str, adapter_digest: str | None = None, engine: Engine | None = None) -> Engine:
        return self._refiner.load(model_digest, adapter_digest, engine)

    @_beside_clicks
    def stats(self) -> dict[str, int]:
        return self._refiner.stats()

    @_beside_clicks
    def ping(self) -> bool:
        return True


class _EncoderShell:
    """See `workers.encoder.Encoder`."""

    def __init__(self, **options: Any) -> None:
        from workers.encoder import Encoder
        from workers.prelabeler import Prelabeler

        self._encoder = Encoder(**options)
        self._prelabeler = Prelabeler(self._encoder, **options)

    async def encode(
        self,
        image: ImageRef,
        model_digest: str,
        model_key: str,
        lane: "Lane" = "interactive",
        expected_digest: str | None = None,
    ) -> Encoded:
        return await self._encoder.encode(image, model_digest, model_key, lane, expected_digest)

    async def encode_chunk(
        self, images: Sequence[ImageRef], model_digest: str, model_key: str
    ) -> list[Encoded | EncodeFailure]:
        return await self._encoder.encode_chunk(images, model_digest, model_key)

    async def prelabel_chunk(
        self, images: Sequence[ImageRef], pins: Pins, grid: int
    ) -> list[Prelabels | EncodeFailure]:
        return await self._prelabeler.run_chunk(images, pins, grid)

    async def stats(self) -> dict[str, int]:
        return self._encoder.stats()

    async def ping(self) -> bool:
        return True


RefinerActor = ray.remote(concurrency_groups={"io": 2})(_RefinerShell)
EncoderActor = ray.remote(_EncoderShell)
