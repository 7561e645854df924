"""Loading weights everywhere before a promotion, with real actors."""

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from pipeline.storage.weights import adapter_path
from schemas.errors import BadCheckpointError, BusyError, NotFoundError
from schemas.settings import Settings
from tests.workers.campaign import StoredCampaign, click, make_campaign, request
from tests.workers.test_refiner import add_adapter, store_embedding
from workers.cluster import attach
from workers.pool import Pool

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture
def pool(ray_workers: Settings) -> Iterator[Pool]:
    yield attach(ray_workers)
    ray.shutdown()


@pytest.fixture(scope="module")
def campaign(ray_workers: Settings) -> StoredCampaign:
    campaign = make_campaign(ray_workers.workspace)
    store_embedding(campaign, 0)
    return campaign


def test_two_adapters_answer_side_by_side(pool: Pool, campaign: StoredCampaign) -> None:
    digests = [add_adapter(campaign, 1.5), add_adapter(campaign, -1.5)]
    for digest in digests:
        (engine,) = pool.load_everywhere(campaign.pins.model_digest, digest)
        assert engine.runtime.startswith("torch")
    refiner = pool.refiners["refiner-0"]
    asked = [campaign.pins.model_copy(update={"adapter_digest": digest}) for digest in digests * 2]
    calls = [refiner.refine.remote(request(campaign, click(80, 60), pins=pins)) for pins in asked]
    areas = [reply.area for reply in ray.get(calls, timeout=60)]
    assert areas[:2] == areas[2:]
    assert areas[1] < areas[0]


def test_weights_that_cannot_be_used_are_refused(pool: Pool, campaign: StoredCampaign) -> None:
    with pytest.raises(NotFoundError):
        pool.load_everywhere(campaign.pins.model_digest, "a" * 64)
    digest = add_adapter(campaign, 0.25)
    path = Path(adapter_path(campaign.storage_url, digest))
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BadCheckpointError, match="changed"):
        pool.load_everywhere(campaign.pins.model_digest, digest)


def test_an_actor_that_is_not_there_is_busy(pool: Pool, ray_workers: Settings) -> None:
    more = ray_workers.model_copy(update={"refiners": 2})
    with pytest.raises(BusyError, match="refiner-1"):
        Pool.find(more, pool.namespace)


def test_a_restarted_actor_answers_again(pool: Pool) -> None:
    assert not pool.replace_dead()
    before = encoder_pids()
    pool.restart("encoder-1")
    end = time.monotonic() + 100
    while pool.answering(5) != {"encoder-0", "encoder-1", "refiner-0"} or encoder_pids() == before:
        assert time.monotonic() < end, "it did not come back"
        time.sleep(0.2)


def encoder_pids() -> set[int]:
    return {
        p.pid for p in psutil.process_iter(["cmdline"]) if "ray::_EncoderShell" in " ".join(p.info["cmdline"] or [])
    }
