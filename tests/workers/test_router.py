"""Requests find an actor that answers; what is missing is encoded once; what dies comes back."""

import asyncio
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from pipeline.embeddings.codec import embedding_digest
from pipeline.embeddings.store import EmbeddingStore
from pipeline.masks.digest import mask_digest
from schemas.errors import BadImageError, BusyError, ClickOutsideImageError, CorruptDataError
from schemas.predictions import ImageRef, MaskReply, RefineRequest
from schemas.settings import Settings
from tests.workers.campaign import StoredCampaign, click, make_campaign, request, write_image
from tests.workers.test_refiner import EDITS, pure_mask
from workers.encoder import Encoder
from workers.refiner import Refiner
from workers.router import LocalRouter, Router, rendezvous

SEEDS = itertools.count(1000)


@pytest.fixture
def local(tmp_path: Path) -> tuple[LocalRouter, StoredCampaign, Encoder]:
    campaign = make_campaign(tmp_path)
    encoder = Encoder(storage_url=campaign.storage_url)
    return LocalRouter(Refiner(storage_url=campaign.storage_url), encoder), campaign, encoder


async def used(router: LocalRouter | Router, what: Callable[[Any], Awaitable[None]]) -> None:
    try:
        await what(router)
    finally:
        await router.close()


def test_missing_embeddings_are_encoded_once(local: tuple[LocalRouter, StoredCampaign, Encoder]) -> None:
    router, campaign, encoder = local

    async def scenario(router: LocalRouter) -> None:
        asked = [request(campaign, click(80 + n, 60)) for n in range(12)]
        replies = await asyncio.gather(*(router.refine(one) for one in asked))
        assert [r.mask_sha256 for r in replies] == [mask_digest(pure_mask(campaign, one)) for one in asked]
        assert encoder.stats()["encoded"] == 1
        assert replies[0].cache == "encoded"
        assert (await router.refine(asked[0])).cache == "memo"

    asyncio.run(used(router, scenario))


def corrupt(campaign: StoredCampaign, image: ImageRef) -> None:
    path = Path(EmbeddingStore(campaign.storage_url).path(campaign.pins.model_key, image.sha256))
    data = bytearray(path.read_bytes())
    data[-5] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize("is_pinned", [True, False])
def test_a_corrupt_embedding_is_recomputed(local: tuple[LocalRouter, StoredCampaign, Encoder], is_pinned: bool) -> None:
    router, campaign, encoder = local

    async def scenario(router: LocalRouter) -> None:
        first = await router.refine(request(campaign, click(80, 60)))
        corrupt(campaign, campaign.images[0])
        digest = first.embedding_digest if is_pinned else None
        pinned = replace(campaign, pins=campaign.pins.model_copy(update={"embedding_digest": digest}))
        fresh = LocalRouter(Refiner(storage_url=campaign.storage_url), encoder)
        again = await fresh.refine(request(pinned, click(80, 60)))
        assert again.model_copy(update={"latency_ms": {}}) == first.model_copy(update={"latency_ms": {}})
        assert encoder.stats()["encoded"] == 2

    asyncio.run(used(router, scenario))


def test_a_lost_pinned_embedding_goes_on_with_the_new_one(
    local: tuple[LocalRouter, StoredCampaign, Encoder],
) -> None:
    router, campaign, _ = local

    async def scenario(router: LocalRouter) -> None:
        pins = campaign.pins.model_copy(update={"embedding_digest": "3" * 64})
        reply = await router.refine(request(campaign, click(80, 60), pins=pins))
        data = EmbeddingStore(campaign.storage_url).get(pins.model_key, campaign.images[0].sha256)
        assert reply.embedding_digest == embedding_digest(data)

    asyncio.run(used(router, scenario))


def test_what_is_wrong_with_the_image_or_click_is_said(
    local: tuple[LocalRouter, StoredCampaign, Encoder],
) -> None:
    router, campaign, _ = local
    Path(campaign.images[1].uri).unlink()
    Path(campaign.images[2].uri).write_bytes(Path(campaign.images[0].uri).read_bytes())

    async def scenario(router: LocalRouter) -> None:
        with pytest.raises(BadImageError, match="gone"):
            await router.refine(request(campaign, click(80, 60), image=1))
        with pytest.raises(CorruptDataError, match="changed"):
            await router.refine(request(campaign, click(80, 60), image=2))
        with pytest.raises(ClickOutsideImageError):
            await router.refine(request(campaign, click(-1, 60)))

    asyncio.run(used(router, scenario))


def test_rendezvous_moves_only_the_keys_of_the_name_that_left() -> None:
    names = [f"refiner-{n}" for n in range(5)]
    keys = [str(n) for n in range(500)]
    before = {key: rendezvous(key, names)[0] for key in keys}
    after = {key: rendezvous(key, names[:-1])[0] for key in keys}
    moved = [key for key in keys if before[key] != after[key]]
    assert all(before[key] == names[-1] for key in moved)
    assert 50 < len(moved) < 150
    assert min(list(before.values()).count(name) for name in names) > 50


def test_without_workers_it_is_busy(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, images=1)

    async def scenario(router: Router) -> None:
        with pytest.raises(BusyError, match="starting"):
            await router.refine(request(campaign, click(80, 60)))
        assert (await router.ready())["ray"] is False
        await router.warm(campaign.images, campaign.pins)

    asyncio.run(used(Router(Settings(workspace=tmp_path)), scenario))


# The rest needs Ray.


@pytest.fixture(scope="module")
def campaign(ray_workers: Settings) -> StoredCampaign:
    return make_campaign(ray_workers.workspace)


def fresh_image(settings: Settings) -> ImageRef:
    """One that nobody has encoded."""
    return write_image(settings.workspace, next(SEEDS))


async def encoder_stats(router: Router) -> dict[str, int]:
    pool = await router._attached()
    return dict(sum_counts([await encoder.stats.remote() for encoder in pool.encoders.values()]))


def sum_counts(stats: list[dict[str, int]]) -> dict[str, int]:
    return {key: sum(one[key] for one in stats) for key in stats[0]}


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_refine_through_actors_equals_the_pure_computation(ray_workers: Settings, campaign: StoredCampaign) -> None:
    async def scenario(router: Router) -> None:
        for count in range(1, len(EDITS) + 1):
            asked = request(campaign, *EDITS[:count])
            reply = await router.refine(asked)
            assert reply.mask_sha256 == mask_digest(pure_mask(campaign, asked))
            assert reply.steps == (2 if count == 1 else 1)
        # A refiner answers for itself: the second encoder may still be importing torch.
        deadline = time.monotonic() + 120
        while (ready := await router.ready())["encoders"] < 2 and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        assert (ready["ray"], ready["refiners"], ready["encoders"]) == (True, 1, 2)

    asyncio.run(used(Router(ray_workers), scenario))


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_errors_cross_the_process_whole(ray_workers: Settings, campaign: StoredCampaign) -> None:
    async def scenario(router: Router) -> None:
        with pytest.raises(ClickOutsideImageError) as caught:
            await router.refine(request(campaign, click(500, 60)))
        assert type(caught.value) is ClickOutsideImageError
        assert caught.value.details["width"] == 160

    asyncio.run(used(Router(ray_workers), scenario))


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_concurrent_requests_for_a_missing_image_cost_one_encode(
    ray_workers: Settings, campaign: StoredCampaign
) -> None:
    """Also when they come through two gateways: both hash the image to the same encoder."""
    missing = replace(campaign, images=(fresh_image(ray_workers),))

    async def scenario(router: Router) -> None:
        other = Router(ray_workers)
        before = await encoder_stats(router)
        calls = [each.refine(request(missing, click(80, 60))) for each in (router, other) for _ in range(8)]
        replies = await asyncio.gather(*calls)
        assert len({reply.mask_sha256 for reply in replies}) == 1
        assert (await encoder_stats(router))["encoded"] - before["encoded"] == 1
        other._watcher.cancel()

    asyncio.run(used(Router(ray_workers), scenario))


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_an_annotators_image_overtakes_a_precompute(ray_workers: Settings, campaign: StoredCampaign) -> None:
    missing = replace(campaign, images=(fresh_image(ray_workers),))
    bulk = [fresh_image(ray_workers) for _ in range(150)]

    async def scenario(router: Router) -> None:
        pool = await router._attached()
        before = await encoder_stats(router)
        chunks = [
            encoder.encode_chunk.remote(bulk, campaign.pins.model_digest, campaign.pins.model_key)
            for encoder in pool.encoders.values()
        ]
        await router.refine(request(missing, click(80, 60)))
        done = (await encoder_stats(router))["encoded"] - before["encoded"]
        assert done < 120, "the click waited for the precompute"
        await asyncio.gather(*chunks)

    asyncio.run(used(Router(ray_workers), scenario))


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_warmed_images_answer_from_memory(ray_workers: Settings, campaign: StoredCampaign) -> None:
    coming = replace(campaign, images=(fresh_image(ray_workers), fresh_image(ray_workers)))

    async def scenario(router: Router) -> None:
        assert await router.engine(coming.pins) is None, "nothing is loaded"
        await router.warm(coming.images, coming.pins)
        chosen = await router.engine(coming.pins)
        assert chosen is not None and chosen.dtype == "float32"
        await router.warm(coming.images, coming.pins)
        for index in range(2):
            assert (await router.refine(request(coming, click(80, 60), image=index))).cache == "memory"
        pins = coming.pins.model_copy(update={"engine": chosen.model_copy(update={"dtype": "bfloat16"})})
        reply = await router.refine(request(replace(coming, pins=pins), click(80, 60)))
        assert reply.engine == pins.engine
        assert await router.engine(coming.pins) == chosen, "an older instance's engine is not that of new ones"

    asyncio.run(used(Router(ray_workers), scenario))


@pytest.mark.ray
def test_loaded_weights_are_not_tried_again_for_the_first_click(
    ray_workers: Settings, campaign: StoredCampaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    async def scenario(router: Router) -> None:
        await router.load(campaign.pins.model_digest, None)
        pins = campaign.pins.model_copy(update={"engine": await router.engine(campaign.pins)})
        assert pins.engine is not None
        call = router._call
        monkeypatch.setattr(
            router, "_call", lambda method, *args: called.append(method._method_name) or call(method, *args)
        )
        await router.refine(request(replace(campaign, pins=pins), click(80, 60)))
        assert "refine" in called and "load" not in called

    asyncio.run(used(Router(ray_workers), scenario))


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_killed_refiner_costs_a_delay_and_no_answer(ray_workers: Settings, campaign: StoredCampaign) -> None:
    async def scenario(router: Router) -> None:
        shown = await router.refine(request(campaign, *EDITS[:3]))
        kill_actor("_RefinerShell")
        again = await router.refine(request(campaign, *EDITS[:3]))
        assert again.mask_sha256 == shown.mask_sha256
        assert again.steps > 1, "a new process knows nothing"
        assert (await router.refine(request(campaign, *EDITS[:4]))).steps == 1

    asyncio.run(used(Router(ray_workers), scenario))


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_refiner_that_hangs_is_restarted(ray_workers: Settings, campaign: StoredCampaign) -> None:
    hasty = ray_workers.model_copy(update={"refine_timeout_s": 0.5})

    async def scenario(router: Router) -> None:
        await answered(router, request(campaign, click(80, 60)))
        pid = actor_process("_RefinerShell").pid
        os.kill(pid, signal.SIGSTOP)
        for n in range(3):
            started = time.monotonic()
            with pytest.raises(BusyError):
                await router.refine(request(campaign, click(80, 61 + n)))
            assert time.monotonic() - started < 3
        reply = await answered(router, request(campaign, click(80, 60)))
        assert reply.area > 0
        assert actor_process("_RefinerShell").pid != pid

    asyncio.run(used(Router(hasty), scenario))


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_more_than_a_refiner_can_do_is_refused_early_and_the_rest_is_answered(
    ray_workers: Settings, campaign: StoredCampaign
) -> None:
    hasty = ray_workers.model_copy(update={"refine_timeout_s": 0.2})

    def asked(first: int, burst: int) -> RefineRequest:
        return request(campaign, *(click(1 + first, 9 + 10 * burst + n) for n in range(8)))

    async def scenario(router: Router) -> None:
        await answered(router, request(campaign, click(80, 60)))
        pid = actor_process("_RefinerShell").pid
        counts: Counter[bool] = Counter()
        for burst in range(6):
            calls = [router.refine(asked(n, burst)) for n in range(64)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            counts.update(isinstance(answer, BusyError) for answer in answers)
        assert counts[True] > 0
        assert counts[False] > 0
        assert actor_process("_RefinerShell").pid == pid, "it was busy, not dead"

    asyncio.run(used(Router(hasty), scenario))


async def answered(router: Router, asked: RefineRequest) -> MaskReply:
    """The reply, however often the refiner is busy before."""
    while True:
        try:
            return await router.refine(asked)
        except BusyError:
            await asyncio.sleep(0.2)


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_full_queue_is_busy(ray_workers: Settings, campaign: StoredCampaign) -> None:
    narrow = ray_workers.model_copy(update={"refine_queue": 2})

    async def scenario(router: Router) -> None:
        await router.refine(request(campaign, click(80, 60)))
        calls = [router.refine(request(campaign, click(1 + n, 7))) for n in range(12)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert any(isinstance(answer, BusyError) for answer in answers)
        assert any(not isinstance(answer, Exception) for answer in answers)
        assert (await router.refine(request(campaign, click(80, 60)))).area > 0
        assert not router._calls

    asyncio.run(used(Router(narrow), scenario))


def actor_process(name: str) -> psutil.Process:
    """The newest process of an actor class."""
    found = [p for p in psutil.process_iter(["name", "cmdline"]) if f"ray::{name}" in " ".join(p.info["cmdline"] or [])]
    return max(found, key=lambda p: p.create_time())


def kill_actor(name: str) -> None:
    actor_process(name).kill()


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_call_while_ray_is_let_go_of_is_busy_and_starts_no_other_ray(
    ray_workers: Settings, campaign: StoredCampaign
) -> None:
    """As when the owner of the workers died, and another click is just being placed."""

    async def scenario(router: Router) -> None:
        asked = request(campaign, click(80, 60))
        await router.refine(asked)
        pool = await router._attached()
        leaving = asyncio.create_task(router._detach())
        await asyncio.sleep(0)
        for _ in range(2):  # while it is let go of, and afterwards
            with pytest.raises(BusyError, match="restarted"):
                await router._ask_refiner(pool, "refiner-0", asked, 10.0)
            await leaving
        with pytest.raises(BusyError, match="restarted"):
            await router._in_thread(ray.get_actor, "refiner-0")
        assert not ray.is_initialized()
        with pytest.raises(AttributeError):
            pool.refiners["refiner-0"].ping.remote()
        assert not ray.is_initialized(), "a Ray of its own was started"
        assert (await router.refine(asked)).steps == 0

    asyncio.run(used(Router(ray_workers), scenario))


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_router_leaves_a_ray_whose_actors_it_never_found(ray_workers: Settings, campaign: StoredCampaign) -> None:
    """Connected to another cluster than the owner's: of an owner that died before its actors were there."""

    async def scenario(router: Router) -> None:
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        other = ray.get_runtime_context().gcs_address
        await router.refine(request(campaign, click(80, 60)))
        assert ray.get_runtime_context().gcs_address != other

    asyncio.run(used(Router(ray_workers), scenario))
