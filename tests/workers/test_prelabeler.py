"""Passes beside an encoder: kept by model, adapter and grid, read again, made again where they are damaged."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.predictions import EncodeFailure, ImageRef, Pins, Prelabels
from tests.workers.campaign import StoredCampaign, make_campaign
from tests.workers.test_refiner import add_adapter
from workers.encoder import Encoder
from workers.prelabeler import Prelabeler, pass_key

GRID = 3


@pytest.fixture
def campaign(tmp_path: Path) -> StoredCampaign:
    return make_campaign(tmp_path)


@pytest.fixture
def prelabeler(campaign: StoredCampaign) -> Iterator[Prelabeler]:
    encoder = Encoder(storage_url=campaign.storage_url)
    yield Prelabeler(encoder, storage_url=campaign.storage_url)
    encoder.close()


def run(prelabeler: Prelabeler, pins: Pins, *images: ImageRef, grid: int = GRID) -> list[Prelabels | EncodeFailure]:
    return asyncio.run(prelabeler.run_chunk(images, pins, grid))


def one(prelabeler: Prelabeler, pins: Pins, image: ImageRef, grid: int = GRID) -> Prelabels:
    (answer,) = run(prelabeler, pins, image, grid=grid)
    assert isinstance(answer, Prelabels), answer
    return answer


def test_a_pass_is_made_once_per_model_adapter_and_grid(prelabeler: Prelabeler, campaign: StoredCampaign) -> None:
    image, pins = campaign.images[0], campaign.pins
    first = one(prelabeler, pins, image)
    assert first.is_new and first.masks and first.sha256 == image.sha256
    assert one(prelabeler, pins, image) == first.model_copy(update={"is_new": False})
    assert one(prelabeler, pins, image, grid=2).is_new
    adapted = pins.model_copy(update={"adapter_digest": add_adapter(campaign, -2.0)})
    other = one(prelabeler, adapted, image)
    assert other.is_new and other.masks[0].area < first.masks[0].area  # the adapter's masks are tighter


def test_a_damaged_pass_is_made_again(prelabeler: Prelabeler, campaign: StoredCampaign) -> None:
    image, pins = campaign.images[0], campaign.pins
    first = one(prelabeler, pins, image)
    folder = Path(campaign.storage_url) / "passes" / pass_key(pins, GRID) / image.sha256[:2]
    path = folder / f"{image.sha256}.json"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert one(prelabeler, pins, image) == first
    assert path.read_bytes() == whole


def test_a_chunk_answers_in_order_and_says_what_is_wrong(prelabeler: Prelabeler, campaign: StoredCampaign) -> None:
    Path(campaign.images[1].uri).write_bytes(b"no image")
    good, bad, also = run(prelabeler, campaign.pins, *campaign.images)
    assert isinstance(good, Prelabels) and isinstance(also, Prelabels)
    assert isinstance(bad, EncodeFailure) and bad.is_image_fault and bad.sha256 == campaign.images[1].sha256
    (lost,) = run(prelabeler, campaign.pins.model_copy(update={"adapter_digest": "0" * 64}), campaign.images[0])
    assert isinstance(lost, EncodeFailure) and (lost.code, lost.is_image_fault) == ("not_found", False)


def test_nothing_is_stored_on_a_full_disk(campaign: StoredCampaign) -> None:
    encoder = Encoder(storage_url=campaign.storage_url)
    prelabeler = Prelabeler(encoder, storage_url=campaign.storage_url, min_free_bytes=1 << 60)
    (answer,) = run(prelabeler, campaign.pins, campaign.images[0])
    encoder.close()
    assert isinstance(answer, EncodeFailure) and answer.code == "out_of_space"
    assert not (Path(campaign.storage_url) / "passes").exists()
