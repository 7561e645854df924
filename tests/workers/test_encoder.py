"""Encode once, interactive first, and every failure with its reason."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from pipeline.embeddings.codec import decode_bytes, embedding_digest
from pipeline.embeddings.store import EmbeddingStore
from pipeline.inference.step import encode_image
from pipeline.ingest.decode import read_image
from pipeline.models import load_model
from schemas.errors import BadImageError, BusyError, CorruptDataError, OutOfSpaceError
from schemas.predictions import Encoded, EncodeFailure, ImageRef
from tests.workers.campaign import StoredCampaign, make_campaign, write_image
from workers.encoder import Encoder
from workers.lanes import Lane

WAIT_S = 30


@pytest.fixture
def campaign(tmp_path: Path) -> StoredCampaign:
    return make_campaign(tmp_path)


@pytest.fixture
def encoder(campaign: StoredCampaign) -> Iterator[Encoder]:
    encoder = Encoder(storage_url=campaign.storage_url)
    yield encoder
    encoder.close()


def submit(
    encoder: Encoder,
    campaign: StoredCampaign,
    image: ImageRef,
    lane: Lane = "interactive",
    expected_digest: str | None = None,
) -> "Future[Encoded]":
    return encoder.submit(image, campaign.pins.model_digest, campaign.pins.model_key, lane, expected_digest)


def stored(campaign: StoredCampaign, image: ImageRef) -> bytes:
    return EmbeddingStore(campaign.storage_url).get(campaign.pins.model_key, image.sha256)


def stored_path(campaign: StoredCampaign, image: ImageRef) -> Path:
    return Path(EmbeddingStore(campaign.storage_url).path(campaign.pins.model_key, image.sha256))


def test_the_stored_embedding_is_the_models(encoder: Encoder, campaign: StoredCampaign) -> None:
    image = campaign.images[0]
    encoded = submit(encoder, campaign, image).result(WAIT_S)
    data = stored(campaign, image)
    assert encoded == Encoded(sha256=image.sha256, digest=embedding_digest(data), size=len(data))
    expected = encode_image(load_model("toy-color"), read_image(image))
    assert expected is not None
    got = decode_bytes(data)
    assert got.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.allclose(got[name], tensor, atol=2e-3)
        assert not torch.allclose(got[name], torch.zeros_like(tensor), atol=2e-3)


def test_many_requests_for_one_image_cost_one_encode(encoder: Encoder, campaign: StoredCampaign) -> None:
    futures = [submit(encoder, campaign, campaign.images[0]) for _ in range(20)]
    assert len({future.result(WAIT_S) for future in futures}) == 1
    again = submit(encoder, campaign, campaign.images[0]).result(WAIT_S)
    assert not again.is_new
    stats = encoder.stats()
    assert (stats["encoded"], stats["present"], stats["in_flight"]) == (1, 1, 0)
    assert stats["batches"] == 1


def bulk_order(encoder: Encoder, campaign: StoredCampaign, images: list[ImageRef]) -> list[str]:
    """Queue all images as bulk; the list fills with their sha256 as they are done."""
    order: list[str] = []
    for image in images:
        future = submit(encoder, campaign, image, "bulk")
        future.add_done_callback(lambda done: order.append(done.result().sha256))
    return order


def test_the_interactive_lane_overtakes_bulk(encoder: Encoder, campaign: StoredCampaign, tmp_path: Path) -> None:
    images = [write_image(tmp_path, 100 + seed) for seed in range(80)]
    order = bulk_order(encoder, campaign, images)
    submit(encoder, campaign, campaign.images[0]).result(WAIT_S)
    assert len(order) <= 40, "an interactive request waits for what is decoded at most"


def test_a_bulk_image_that_is_asked_for_moves_up(encoder: Encoder, campaign: StoredCampaign, tmp_path: Path) -> None:
    images = [write_image(tmp_path, 100 + seed) for seed in range(80)]
    order = bulk_order(encoder, campaign, images)
    last = submit(encoder, campaign, images[-1]).result(WAIT_S)
    assert len(order) <= 41
    assert last.sha256 == images[-1].sha256
    assert encoder.stats()["coalesced"] == 1


def test_a_chunk_answers_in_order_and_says_what_is_wrong(encoder: Encoder, campaign: StoredCampaign) -> None:
    good, truncated, changed = campaign.images
    data = Path(truncated.uri).read_bytes()
    half = data[: len(data) // 2]
    Path(truncated.uri).write_bytes(half)
    truncated = truncated.model_copy(update={"sha256": sha256(half)})
    Path(changed.uri).write_bytes(data)
    gone = good.model_copy(update={"sha256": "f" * 64, "uri": good.uri + ".gone"})
    chunk = [truncated, good, changed, gone]
    answers = asyncio.run(encoder.encode_chunk(chunk, campaign.pins.model_digest, campaign.pins.model_key))
    assert [answer.sha256 for answer in answers] == [image.sha256 for image in chunk]
    failures = [answer for answer in answers if isinstance(answer, EncodeFailure)]
    assert [failure.code for failure in failures] == ["bad_image", "corrupt_data", "bad_image"]
    assert all(failure.is_image_fault and failure.reason for failure in failures)
    assert isinstance(answers[1], Encoded)


def sha256(data: bytes) -> str:
    return embedding_digest(data)


def test_whoever_stops_asking_takes_no_answer_from_others(encoder: Encoder, campaign: StoredCampaign) -> None:
    image, pins = campaign.images[0], campaign.pins

    async def stop_asking() -> Encoded:
        bulk = asyncio.ensure_future(encoder.encode_chunk([image], pins.model_digest, pins.model_key))
        await asyncio.sleep(0)  # it is queued
        click = asyncio.ensure_future(encoder.encode(image, pins.model_digest, pins.model_key))
        await asyncio.sleep(0)
        bulk.cancel()
        return await click

    assert asyncio.run(stop_asking()).sha256 == image.sha256
    assert asyncio.run(encoder.encode(image, pins.model_digest, pins.model_key)).sha256 == image.sha256


def test_interactive_errors_are_raised(encoder: Encoder, campaign: StoredCampaign) -> None:
    gone = campaign.images[0].model_copy(update={"uri": "/nowhere.png"})
    with pytest.raises(BadImageError, match="gone"):
        submit(encoder, campaign, gone).result(WAIT_S)
    other = campaign.images[0].model_copy(update={"uri": campaign.images[1].uri})
    with pytest.raises(CorruptDataError):
        submit(encoder, campaign, other).result(WAIT_S)
    assert submit(encoder, campaign, campaign.images[0]).result(WAIT_S).is_new, "a failure is not kept"


def test_a_corrupt_embedding_is_computed_again(encoder: Encoder, campaign: StoredCampaign) -> None:
    image = campaign.images[0]
    first = submit(encoder, campaign, image).result(WAIT_S)
    path = stored_path(campaign, image)
    data = bytearray(path.read_bytes())
    data[-5] ^= 255
    for broken in (bytes(data), b"", b"\xff" * 100, bytes(data[:-20])):
        path.write_bytes(broken)
        again = submit(encoder, campaign, image).result(WAIT_S)
        assert again == first, "the same bytes, newly made"
        assert embedding_digest(stored(campaign, image)) == first.digest


def test_an_embedding_that_is_not_the_pinned_one_is_computed_again(encoder: Encoder, campaign: StoredCampaign) -> None:
    image = campaign.images[0]
    first = submit(encoder, campaign, image).result(WAIT_S)
    submit(encoder, campaign, campaign.images[1]).result(WAIT_S)
    stored_path(campaign, image).write_bytes(stored(campaign, campaign.images[1]))
    again = submit(encoder, campaign, image, expected_digest=first.digest).result(WAIT_S)
    assert again == first


def test_a_full_disk_stops_storing_and_shows_nothing(campaign: StoredCampaign) -> None:
    encoder = Encoder(storage_url=campaign.storage_url, min_free_bytes=10**18)
    with pytest.raises(OutOfSpaceError):
        submit(encoder, campaign, campaign.images[0]).result(WAIT_S)
    chunk = asyncio.run(encoder.encode_chunk(campaign.images, campaign.pins.model_digest, campaign.pins.model_key))
    assert [isinstance(a, EncodeFailure) and a.is_image_fault for a in chunk] == [False] * 3
    assert not list(Path(campaign.storage_url).glob("embeddings/**/*.safetensors*"))
    encoder.close()


def test_a_lost_model_is_not_blamed_on_the_images(encoder: Encoder, campaign: StoredCampaign) -> None:
    chunk = asyncio.run(encoder.encode_chunk(campaign.images, "0" * 64, campaign.pins.model_key))
    assert [(a.code, a.is_image_fault) for a in chunk if isinstance(a, EncodeFailure)] == [("not_found", False)] * 3


def test_images_of_different_shapes_share_a_chunk(encoder: Encoder, campaign: StoredCampaign, tmp_path: Path) -> None:
    images = [write_image(tmp_path, 200 + n, (80 + 30 * (n % 3), 160)) for n in range(12)]
    chunk = asyncio.run(encoder.encode_chunk(images, campaign.pins.model_digest, campaign.pins.model_key))
    assert [answer.sha256 for answer in chunk if isinstance(answer, Encoded)] == [image.sha256 for image in images]


def test_closing_fails_what_waits(campaign: StoredCampaign, tmp_path: Path) -> None:
    encoder = Encoder(storage_url=campaign.storage_url)
    futures = [submit(encoder, campaign, write_image(tmp_path, 300 + n), "bulk") for n in range(40)]
    encoder.close()
    assert all(future.done() for future in futures)
    assert any(isinstance(future.exception(), BusyError) for future in futures)
    with pytest.raises(BusyError):
        submit(encoder, campaign, campaign.images[0])
