"""Refining is a pure function: memo, restart, undo and replay agree to the bit."""

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pipeline.adapters.files import AdapterMeta, adapter_bytes
from pipeline.adapters.kinds import adapter_tensors
from pipeline.embeddings.codec import decode_bytes, embedding_digest, encode_bytes
from pipeline.embeddings.key import key_of_model
from pipeline.embeddings.store import EmbeddingStore
from pipeline.inference.instance import apply_edit, final_mask, start
from pipeline.inference.step import encode_image
from pipeline.ingest.decode import read_image
from pipeline.masks.digest import mask_digest
from pipeline.masks.packed import unpack
from pipeline.masks.rle import mask_to_rle, rle_to_mask
from pipeline.models import load_model
from pipeline.storage.weights import adapter_path
from schemas.engines import Tuning, cpu_name, runtime_versions
from schemas.errors import (
    BadCheckpointError,
    BusyError,
    ClickOutsideImageError,
    CorruptDataError,
    EmbeddingMissingError,
    NotFoundError,
)
from schemas.predictions import Engine, ImageRef, RefineRequest
from tests.workers.campaign import StoredCampaign, click, edit, make_campaign, request
from workers.refiner import Refiner

EDITS = (
    click(80, 60),
    click(5, 5, False),
    edit("candidate", index=1),
    click(90.5, 70.25),
    edit("box", x0=40, y0=20, x1=120, y1=100),
    edit(
        "brush", is_positive=False, box=[10, 10, 12, 13], rle=mask_to_rle(np.ones((3, 2), np.bool_)).model_dump()
    ),
)  # fmt: skip


@pytest.fixture
def campaign(tmp_path: Path) -> StoredCampaign:
    campaign = make_campaign(tmp_path)
    for index in range(2):
        store_embedding(campaign, index)
    return campaign


def store_embedding(campaign: StoredCampaign, index: int) -> str:
    image = campaign.images[index]
    encoding = encode_image(load_model("toy-color"), read_image(image))
    assert encoding is not None
    return EmbeddingStore(campaign.storage_url).put(campaign.pins.model_key, image.sha256, encode_bytes(encoding))


def refiner_of(campaign: StoredCampaign, cache_bytes: int = 10_000_000) -> Refiner:
    return Refiner(storage_url=campaign.storage_url, cache_bytes=cache_bytes)


def pure_mask(campaign: StoredCampaign, asked: RefineRequest) -> np.ndarray:
    """The mask by the pipeline alone, from the stored embedding."""
    model = load_model("toy-color")
    image = read_image(asked.image)
    data = EmbeddingStore(campaign.storage_url).get(asked.pins.model_key, asked.image.sha256)
    state = start(image)
    for one in asked.edits:
        state = apply_edit(model, image, decode_bytes(data), state, one)
    return final_mask(state, image.shape[:2])


def test_refine_equals_the_pure_computation(campaign: StoredCampaign) -> None:
    refiner = refiner_of(campaign)
    for count in range(len(EDITS) + 1):
        asked = request(campaign, *EDITS[:count])
        mask = pure_mask(campaign, asked)
        reply = refiner.refine(asked)
        assert reply.mask_sha256 == mask_digest(mask)
        assert reply.bits is not None
        assert np.array_equal(unpack(reply.bits), mask)
        assert reply.area == mask.sum()
    assert reply.area > 100
    rle = refiner.refine(request(campaign, *EDITS, mask_format="rle")).rle
    assert rle is not None
    assert np.array_equal(rle_to_mask(rle), mask)


@pytest.mark.parametrize("cache_bytes", [10_000_000, 1], ids=["roomy", "forgets everything"])
def test_memo_and_restart_give_the_same_masks(campaign: StoredCampaign, cache_bytes: int) -> None:
    live = refiner_of(campaign, cache_bytes)
    shown = [live.refine(request(campaign, *EDITS[:n])).mask_sha256 for n in range(len(EDITS) + 1)]
    restarted = [refiner_of(campaign).refine(request(campaign, *EDITS[:n])).mask_sha256 for n in range(len(EDITS) + 1)]
    assert shown == restarted
    undone = [live.refine(request(campaign, *EDITS[:n])).mask_sha256 for n in reversed(range(len(EDITS) + 1))]
    assert undone == shown[::-1]


def test_a_click_costs_one_step_and_an_undo_none(campaign: StoredCampaign) -> None:
    refiner = refiner_of(campaign)
    replies = [refiner.refine(request(campaign, *[click(80 + i, 60) for i in range(n)])) for n in range(1, 11)]
    assert [reply.steps for reply in replies] == [2] + [1] * 9
    undone = refiner.refine(request(campaign, *[click(80 + i, 60) for i in range(4)]))
    assert undone.steps == 0
    assert undone.cache == "memo"
    assert undone.mask_sha256 == replies[3].mask_sha256


def test_what_is_shared_never_mixes(campaign: StoredCampaign) -> None:
    """Other image, other order, other sign: each its own state."""
    refiner = refiner_of(campaign)
    first, second = click(80, 60), click(20, 20, False)
    requests = [
        request(campaign, first, second),
        request(campaign, second, first),
        request(campaign, first, click(20, 20)),
        request(campaign, first, second, image=1),
    ]
    replies = [refiner.refine(asked) for asked in requests]
    assert [reply.mask_sha256 for reply in replies] == [mask_digest(pure_mask(campaign, asked)) for asked in requests]
    assert len({reply.mask_sha256 for reply in replies}) == 4


def test_two_campaigns_see_the_same_file_each_through_its_window(campaign: StoredCampaign, tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    assert cv2.imwrite(str(path), np.tile(np.linspace(0, 40_000, 160).astype(np.uint16), (120, 1)))
    facts = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "uri": str(path), "width": 160, "height": 120}
    refiner, model, masks = refiner_of(campaign), load_model("toy-color"), set()
    for window in (None, (0.0, 500.0), (0.0, 40_000.0)):
        pins = campaign.pins.model_copy(update={"model_key": key_of_model(model, window)})
        seen = replace(campaign, pins=pins, images=(ImageRef(**facts, window=window),))
        store_embedding(seen, 0)
        asked = request(seen, click(150, 60))
        reply = refiner.refine(asked)
        assert reply.mask_sha256 == mask_digest(pure_mask(seen, asked))
        masks.add(reply.mask_sha256)
    assert len(masks) == 3


def test_an_instance_can_be_opened_from_a_mask(campaign: StoredCampaign) -> None:
    mask = np.zeros((120, 160), np.bool_)
    mask[30:50, 40:90] = True
    asked = request(campaign, initial_mask=mask_to_rle(mask))
    refiner = refiner_of(campaign)
    assert refiner.refine(asked).mask_sha256 == mask_digest(mask)
    assert refiner.refine(request(campaign)).area == 0


def test_missing_and_foreign_things_have_names(campaign: StoredCampaign) -> None:
    refiner = refiner_of(campaign)
    with pytest.raises(EmbeddingMissingError):
        refiner.refine(request(campaign, click(1, 1), image=2))
    with pytest.raises(ClickOutsideImageError, match="120x160"):
        refiner.refine(request(campaign, click(160, 5)))
    unknown = campaign.pins.model_copy(update={"model_digest": "0" * 64})
    with pytest.raises(NotFoundError):
        refiner.refine(request(campaign, click(1, 1), pins=unknown))
    with pytest.raises(NotFoundError):
        refiner.load(campaign.pins.model_digest, "1" * 64)
    wrong = campaign.pins.model_copy(update={"embedding_digest": "2" * 64})
    with pytest.raises(CorruptDataError):
        refiner.refine(request(campaign, click(1, 1), pins=wrong))


def test_warm_loads_what_a_click_needs(campaign: StoredCampaign) -> None:
    refiner = refiner_of(campaign)
    assert refiner.warm(campaign.images[0], campaign.pins)
    assert not refiner.warm(campaign.images[2], campaign.pins)
    Path(campaign.images[0].uri).unlink()
    reply = refiner.refine(request(campaign, click(80, 60)))
    assert reply.cache == "memory"
    assert reply.area > 0


def test_a_click_waits_for_the_image_that_is_being_read(
    campaign: StoredCampaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[ImageRef] = []
    go_on = threading.Event()

    def slowly(ref: ImageRef, **options: Any) -> np.ndarray:
        reads.append(ref)
        go_on.wait(10)
        return read_image(ref, **options)

    monkeypatch.setattr("workers.refiner.read_image", slowly)
    refiner = refiner_of(campaign)
    with ThreadPoolExecutor(2) as pool:
        warmed = pool.submit(refiner.warm, campaign.images[0], campaign.pins)
        asked = pool.submit(refiner.refine, request(campaign, click(80, 60)))
        while not reads:
            time.sleep(0.01)
        time.sleep(0.3)  # the other one gets to the image, too
        go_on.set()
        assert warmed.result() and asked.result().area > 0
    assert len(reads) == 1


def test_a_click_does_not_hold_up_others_while_its_image_is_read(
    campaign: StoredCampaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refiner that answers nobody for seconds is restarted, and would begin to read the same large image again."""
    refiner = Refiner(storage_url=campaign.storage_url, image_wait_s=0.05)
    others = request(campaign, click(80, 60), image=1)
    go_on, reads = threading.Event(), []

    def slow(ref: ImageRef, **options: Any) -> np.ndarray:
        if ref == campaign.images[0]:
            reads.append(ref)
            assert go_on.wait(20)
        return read_image(ref, **options)

    monkeypatch.setattr("workers.refiner.read_image", slow)
    for _ in range(3):
        with pytest.raises(BusyError, match="still being read"):
            refiner.refine(request(campaign, click(80, 60)))
    assert refiner.refine(others).area > 0
    go_on.set()
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up:
        try:
            assert refiner.refine(request(campaign, click(80, 60))).area > 0
            break
        except BusyError:
            continue
    assert len(reads) == 1


def test_a_changed_image_is_noticed(campaign: StoredCampaign) -> None:
    Path(campaign.images[0].uri).write_bytes(Path(campaign.images[1].uri).read_bytes())
    with pytest.raises(CorruptDataError, match="changed"):
        refiner_of(campaign).refine(request(campaign, click(80, 60)))


def test_the_pinned_embedding_is_used(campaign: StoredCampaign) -> None:
    data = EmbeddingStore(campaign.storage_url).get(campaign.pins.model_key, campaign.images[0].sha256)
    pins = campaign.pins.model_copy(update={"embedding_digest": embedding_digest(data)})
    pinned = refiner_of(campaign).refine(request(campaign, click(80, 60), pins=pins))
    assert pinned.embedding_digest == embedding_digest(data)
    assert pinned.mask_sha256 == refiner_of(campaign).refine(request(campaign, click(80, 60))).mask_sha256


def add_adapter(campaign: StoredCampaign, change: float) -> str:
    """Store an adapter that adds `change` to the head's bias, and give its digest."""
    model = load_model("toy-color")
    tensors = {
        name: tensor + change if name.endswith("bias") else tensor
        for name, tensor in adapter_tensors(model, "head").items()
    }
    data = adapter_bytes(tensors, AdapterMeta(kind="head", model_id="toy-color"))
    digest = embedding_digest(data)
    path = Path(adapter_path(campaign.storage_url, digest))
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return digest


def test_two_adapters_and_the_bare_model_answer_at_once(campaign: StoredCampaign) -> None:
    refiner = refiner_of(campaign)
    digests = [None, add_adapter(campaign, 1.0), add_adapter(campaign, -1.0)]
    areas: list[list[int]] = []
    for _ in range(2):
        asked = [campaign.pins.model_copy(update={"adapter_digest": digest}) for digest in digests]
        areas.append([refiner.refine(request(campaign, click(80, 60), pins=pins)).area for pins in asked])
    assert areas[0] == areas[1]
    assert areas[0][2] < areas[0][0] < areas[0][1]
    assert refiner.stats()["models"] == 3
    alone = refiner_of(campaign).refine(
        request(campaign, click(80, 60), pins=campaign.pins.model_copy(update={"adapter_digest": digests[1]}))
    )
    assert alone.area == areas[0][1]


def test_load_refuses_files_that_are_not_what_they_are_called(campaign: StoredCampaign) -> None:
    digest = add_adapter(campaign, 1.0)
    refiner = refiner_of(campaign)
    assert refiner.load(campaign.pins.model_digest, digest).version == torch.__version__
    path = Path(adapter_path(campaign.storage_url, digest))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadCheckpointError, match="changed"):
        refiner_of(campaign).load(campaign.pins.model_digest, digest)
    with pytest.raises(BadCheckpointError, match="finite"):
        refiner_of(campaign).load(campaign.pins.model_digest, add_adapter(campaign, 1e38 * 10))


def test_memory_is_bounded_over_many_clicks(campaign: StoredCampaign) -> None:
    refiner = refiner_of(campaign, cache_bytes=2_000_000)
    for index in range(120):
        refiner.refine(request(campaign, click(1 + index, 60), image=index % 2))
    assert refiner.stats()["bytes"] <= 2_000_000
    assert refiner.stats()["requests"] == 120


def test_an_unreachable_storage_is_busy_not_missing(campaign: StoredCampaign) -> None:
    refiner = refiner_of(campaign)
    assert refiner.warm(campaign.images[0], campaign.pins)
    folder = Path(campaign.storage_url) / "embeddings"
    folder.rename(folder.with_name("away"))
    folder.write_text("a file where a folder was")
    with pytest.raises(BusyError):
        refiner.refine(request(campaign, click(80, 60), image=1))
    assert refiner.refine(request(campaign, click(80, 60))).area > 0


def on(asked: RefineRequest, engine: Engine | None) -> RefineRequest:
    """The request with its instance pinned to an engine."""
    return asked.model_copy(update={"pins": asked.pins.model_copy(update={"engine": engine})})


def test_the_pinned_engine_computes_whatever_is_chosen_now(campaign: StoredCampaign) -> None:
    asked = request(campaign, *EDITS[:4])
    digest = campaign.pins.model_digest
    fast = Refiner(storage_url=campaign.storage_url, engine="torch-bfloat16")
    chosen = fast.load(digest)
    assert chosen.dtype == "bfloat16" and chosen.runtime == "torch-cpu"
    first = fast.refine(on(asked, chosen))
    assert first.engine == chosen
    for pins in (None, refiner_of(campaign).load(digest)):  # opened before there was a choice, or with another one
        assert fast.refine(on(asked, pins)).engine.dtype == "float32"
    later = refiner_of(campaign)  # chooses float32 by now
    replayed = later.refine(on(asked, chosen))
    assert (replayed.engine, replayed.mask_sha256, replayed.scores) == (chosen, first.mask_sha256, first.scores)
    float32 = later.refine(asked)
    assert float32.engine.dtype == "float32" and float32.steps == len(asked.edits), "no state of another engine"
    assert float32.scores == refiner_of(campaign).refine(asked).scores
    again = later.refine(on(asked, chosen))
    assert (again.cache, again.engine, again.mask_sha256) == ("memo", chosen, first.mask_sha256)


def test_an_engine_that_fails_here_costs_speed_not_clicks(campaign: StoredCampaign) -> None:
    asked = request(campaign, *EDITS[:2])
    for record in (
        Engine(runtime="onnx-cpu", version="1", dtype="float32"),  # toy-color does not run on it
        Engine(runtime="abacus-cpu", version="1", dtype="int4"),
    ):
        refiner = refiner_of(campaign)
        assert refiner.load(campaign.pins.model_digest, None, record).runtime == "torch-cpu"
        reply = refiner.refine(on(asked, record))
        assert reply.engine.runtime == "torch-cpu" and reply.engine.dtype == "float32"
        assert reply.mask_sha256 == refiner_of(campaign).refine(asked).mask_sha256


def test_auto_is_what_was_found_for_this_machine_and_model(campaign: StoredCampaign) -> None:
    digest = campaign.pins.model_digest
    found = Tuning(
        machine=cpu_name(), packages=runtime_versions(), model_digest=digest, engine="torch-bfloat16",
        threads=1, images="", clicks=0, figures=(),
    )  # fmt: skip
    stale = found.model_copy(update={"packages": {"torch": "0.1"}})
    for tuning, dtype in ((found, "bfloat16"), (stale, "float32"), (None, "float32")):
        refiner = Refiner(storage_url=campaign.storage_url, engine="auto", tuning=tuning)
        assert refiner.load(digest).dtype == dtype
