"""Weights by digest: what is read is what was published, on a folder and on an object store."""

from pathlib import Path

import fsspec
import pytest
import torch

from pipeline.models import create_model, default_weights_path, load_model, save_checkpoint, weights_digest
from pipeline.storage.weights import load_model_by_digest, publish_model
from schemas.errors import BadCheckpointError, NotFoundError


@pytest.fixture(params=["folder", "object store"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "storage") if request.param == "folder" else f"memory://{tmp_path.name}"


def test_a_published_model_is_the_shipped_one(storage_url: str, tmp_path: Path) -> None:
    digest, uri = publish_model(storage_url, "toy-color")
    assert (digest, uri) == publish_model(storage_url, "toy-color")
    assert digest == weights_digest(default_weights_path("toy-color"))
    model = load_model_by_digest(storage_url, digest, cache_dir=str(tmp_path / "cache"))
    shipped = load_model("toy-color").state_dict()
    assert model.model_id == "toy-color"
    assert all(torch.equal(tensor, shipped[name]) for name, tensor in model.state_dict().items())


def test_a_campaign_brings_its_own_weights(storage_url: str, tmp_path: Path) -> None:
    model = create_model("simpleclick-xtiny-448")
    save_checkpoint(model, tmp_path / "own.safetensors", dtype=torch.float32)
    digest, _ = publish_model(storage_url, "simpleclick-xtiny-448", tmp_path / "own.safetensors")
    assert digest == weights_digest(tmp_path / "own.safetensors")
    loaded = load_model_by_digest(storage_url, digest, cache_dir=str(tmp_path / "cache"))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    with pytest.raises(BadCheckpointError, match="simpleclick"):
        publish_model(storage_url, "toy-color", tmp_path / "own.safetensors")
    with pytest.raises(BadCheckpointError, match="There is no checkpoint"):
        publish_model(storage_url, "toy-color", tmp_path / "own.pth")
    (tmp_path / "own.pth").write_bytes(b"")
    with pytest.raises(BadCheckpointError, match="model convert"):
        publish_model(storage_url, "toy-color", tmp_path / "own.pth")


def test_changed_bytes_are_refused(storage_url: str, tmp_path: Path) -> None:
    digest, uri = publish_model(storage_url, "toy-color")
    fs, _ = fsspec.core.url_to_fs(storage_url)
    data = bytearray(fs.cat_file(uri))
    data[-1] ^= 1
    fs.pipe_file(uri, bytes(data))
    with pytest.raises(BadCheckpointError, match="changed"):
        load_model_by_digest(storage_url, digest, cache_dir=str(tmp_path / "cache"))
    assert not list(tmp_path.glob("cache/*"))


def test_a_lost_file_is_named(storage_url: str, tmp_path: Path) -> None:
    digest, uri = publish_model(storage_url, "toy-color")
    with pytest.raises(NotFoundError, match=r"0000.*CLICKLOOP_STORAGE_URL"):
        load_model_by_digest(storage_url, "0" * 64)
    fs, _ = fsspec.core.url_to_fs(storage_url)
    fs.rm(uri)
    with pytest.raises(NotFoundError, match=digest):
        load_model_by_digest(storage_url, digest, cache_dir=str(tmp_path / "cache"))


def test_a_damaged_local_copy_is_fetched_again(tmp_path: Path) -> None:
    url, cache = f"memory://{tmp_path.name}-copy", tmp_path / "cache"
    digest, _ = publish_model(url, "toy-color")
    load_model_by_digest(url, digest, cache_dir=str(cache))
    (copy,) = cache.iterdir()
    copy.write_bytes(b"broken")
    load_model_by_digest(url, digest, cache_dir=str(cache))
    assert weights_digest(copy) == digest
