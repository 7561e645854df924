"""Scenes come out of the storage, what is missing or damaged is made again, and adapters go in whole."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from pipeline.adapters.files import AdapterMeta
from pipeline.adapters.kinds import adapter_tensors
from pipeline.adapters.scenes import AdapterImage
from pipeline.adapters.stored import publish_adapter, stored_source
from pipeline.embeddings.codec import decode_bytes, encode_bytes
from pipeline.embeddings.store import EmbeddingStore
from pipeline.inference.step import encode_image
from pipeline.ingest.decode import read_image
from pipeline.models import load_model
from pipeline.storage.weights import load_model_by_digest
from schemas.errors import CorruptDataError
from tests.workers.campaign import StoredCampaign, make_campaign


@pytest.fixture
def campaign(tmp_path: Path) -> StoredCampaign:
    return make_campaign(tmp_path, images=1)


def test_a_stored_encoding_is_used(campaign: StoredCampaign, tmp_path: Path) -> None:
    model, ref = load_model("toy-color"), campaign.images[0]
    store, key = EmbeddingStore(campaign.storage_url), campaign.pins.model_key
    encoding = encode_image(model, read_image(ref))
    assert encoding is not None
    marked = type(encoding)({name: tensor + 1 for name, tensor in encoding.tensors.items()})
    store.put(key, ref.sha256, encode_bytes(marked))
    source = stored_source(model, campaign.storage_url, key, tmp_path / "work")
    found = source.scene(AdapterImage(ref, "g", ())).encoding
    assert found is not None
    assert all(torch.equal(found[name].float(), t.half().float()) for name, t in marked.tensors.items())


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_what_is_missing_or_damaged_is_made_again(campaign: StoredCampaign, tmp_path: Path, damage: str) -> None:
    model, ref = load_model("toy-color"), campaign.images[0]
    store, key = EmbeddingStore(campaign.storage_url), campaign.pins.model_key
    encoding = encode_image(model, read_image(ref))
    assert encoding is not None
    if damage == "cut off":
        store.put(key, ref.sha256, encode_bytes(encoding))
        path = Path(store.path(key, ref.sha256))
        path.write_bytes(path.read_bytes()[:-7])
        with pytest.raises(CorruptDataError):
            store.get(key, ref.sha256)
    stored_source(model, campaign.storage_url, key, tmp_path / "work").scene(AdapterImage(ref, "g", ()))
    again = decode_bytes(store.get(key, ref.sha256))
    assert all(torch.equal(again[name], t.half().float()) for name, t in encoding.tensors.items())


def test_mirrored_encodings_stay_out_of_the_campaigns_store(campaign: StoredCampaign, tmp_path: Path) -> None:
    model, ref, work = load_model("toy-color"), campaign.images[0], tmp_path / "work"
    image, key = AdapterImage(ref, "g", ()), campaign.pins.model_key
    scene = stored_source(model, campaign.storage_url, key, work).scene(image, mirrored=True)
    assert not EmbeddingStore(campaign.storage_url).exists(key, ref.sha256)
    assert (scene.image == read_image(ref)[:, ::-1]).all()
    kept = list(work.rglob("*.safetensors"))
    assert len(kept) == 1
    stamp = kept[0].stat().st_mtime_ns
    again = stored_source(model, campaign.storage_url, key, work).scene(image, mirrored=True)
    assert scene.encoding is not None and again.encoding is not None
    assert all(torch.equal(again.encoding[name], t) for name, t in scene.encoding.tensors.items())
    assert kept[0].stat().st_mtime_ns == stamp
    stored_source(model, campaign.storage_url, key).scene(image, mirrored=True)
    assert not EmbeddingStore(campaign.storage_url).exists(key, ref.sha256)


def test_a_published_adapter_loads_by_its_digest(campaign: StoredCampaign) -> None:
    model = load_model("toy-color")
    tensors = {name: tensor + 0.25 for name, tensor in adapter_tensors(model, "head").items()}
    meta = AdapterMeta(kind="head", model_id="toy-color", model_digest=campaign.pins.model_digest, seed=3)
    digest, uri, size = publish_adapter(campaign.storage_url, tensors, meta, {"metrics": {"steps": 1}})
    assert (digest, uri, size) == publish_adapter(campaign.storage_url, tensors, meta, {"metrics": {"steps": 1}})
    assert Path(uri).stat().st_size == size
    card = json.loads((Path(uri).parent / "card.json").read_text())
    assert card == {"digest": digest, **asdict(meta), "metrics": {"steps": 1}}
    loaded = load_model_by_digest(campaign.storage_url, campaign.pins.model_digest, digest)
    assert all(torch.equal(loaded.get_parameter(name).detach(), tensor) for name, tensor in tensors.items())
