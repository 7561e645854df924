"""Adapter files are strict, content-addressed and cheap to hold several of."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.adapters.files import AdapterMeta, adapter_digest, load_adapted, read_adapter, save_adapter
from pipeline.adapters.kinds import adapted, adapter_tensors
from pipeline.models import create_model, default_weights_path, list_models, load_model, weights_digest
from pipeline.models._base import InteractiveModel
from schemas.errors import BadCheckpointError, BadInputError

META = AdapterMeta(kind="head", model_id="toy-color", model_digest="d" * 64, model_key="k", seed=7)


@pytest.fixture
def toy() -> InteractiveModel:
    return create_model("toy-color")


def changed(model: InteractiveModel) -> dict[str, torch.Tensor]:
    return {name: tensor + 0.5 for name, tensor in adapter_tensors(model, "head").items()}


@pytest.mark.parametrize("model_id", [m for m in list_models() if m in {"fdrn-compact", "toy-color"}])
def test_round_trip(model_id: str, tmp_path: Path) -> None:
    model, other = create_model(model_id), create_model(model_id)
    tensors, meta = changed(model), replace(META, model_id=model_id)
    digest = save_adapter(tmp_path / "a", tensors, meta)
    assert digest == adapter_digest(tmp_path / "a")
    assert digest == save_adapter(tmp_path / "b", dict(reversed(tensors.items())), meta), (
        "the bytes depend on the content"
    )
    laid, known = load_adapted(other, tmp_path / "a")
    assert known == meta
    loaded = laid.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded[name], tensors.get(name, loaded[name]))
        if name not in tensors:
            assert loaded[name].shape == value.shape


def test_head_of_the_shipped_model_is_after_the_cut() -> None:
    """F1 and all statistics stay, so no stored embedding is invalidated; the size is what RECIPE asks for."""
    model = create_model("fdrn-compact")
    names = model.adapter_parameter_names("head")
    assert names and all(name.startswith("f2.") for name in names)
    assert 0.3e6 <= sum(model.get_parameter(name).numel() for name in names) <= 0.6e6


def test_unknown_kind(toy: InteractiveModel) -> None:
    with pytest.raises(BadInputError, match="no adapter of kind 'nose'"):
        adapter_tensors(toy, "nose")


def test_adapted_shares_what_it_does_not_replace() -> None:
    model = create_model("fdrn-compact")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = changed(model)
    twin = adapted(model, tensors)
    for name, parameter in twin.named_parameters():
        assert (parameter.data_ptr() == model.get_parameter(name).data_ptr()) == (name not in tensors)
    for name, buffer in twin.named_buffers():
        assert buffer.data_ptr() == model.get_buffer(name).data_ptr()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(twin.get_parameter(name), tensor) for name, tensor in tensors.items())
    assert twin.model_id == model.model_id and not twin.training


def test_foreign_files_are_refused(toy: InteractiveModel, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    with pytest.raises(BadCheckpointError, match="no readable adapter"):
        load_adapted(toy, file)
    file.write_bytes(b"")
    with pytest.raises(BadCheckpointError, match="no readable adapter"):
        load_adapted(toy, file)
    save_file(adapter_tensors(toy, "head"), file)
    with pytest.raises(BadCheckpointError, match="no readable adapter"):
        load_adapted(toy, file)
    save_file(adapter_tensors(toy, "head"), file, {"clickloop": '{"format": "clickloop-adapter-9"}'})
    with pytest.raises(BadCheckpointError, match="another format"):
        load_adapted(toy, file)


def test_an_adapter_of_other_weights_is_refused(tmp_path: Path) -> None:
    model, path = load_model("toy-color"), tmp_path / "a.safetensors"
    own = weights_digest(default_weights_path("toy-color"))
    for digest in (own, ""):
        save_adapter(path, adapter_tensors(model, "head"), AdapterMeta("head", "toy-color", model_digest=digest))
        load_model("toy-color", adapter=path)
    save_adapter(path, adapter_tensors(model, "head"), AdapterMeta("head", "toy-color", model_digest="0" * 64))
    with pytest.raises(BadCheckpointError, match="trained on weights 0000"):
        load_model("toy-color", adapter=path)


def test_truncated_file_is_refused(toy: InteractiveModel, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    save_adapter(file, changed(toy), META)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(BadCheckpointError):
        load_adapted(toy, file)


def test_unfitting_adapters_leave_the_model_alone(toy: InteractiveModel, tmp_path: Path) -> None:
    file, good = tmp_path / "adapter.safetensors", changed(toy)
    before = adapter_tensors(toy, "head")
    cases = {
        "not for 'toy-color'": (good, replace(META, model_id="fdrn-compact")),
        "missing or unexpected": ({k: v for k, v in good.items() if k != "reach"}, META),
        "is (2,), not ()": (good | {"reach": torch.zeros(2)}, META),
        "not finite": (good | {"reach": torch.tensor(float("nan"))}, META),
    }
    for message, (tensors, meta) in cases.items():
        save_adapter(file, tensors, meta)
        with pytest.raises(BadCheckpointError) as caught:
            load_adapted(toy, file)
        assert message in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in adapter_tensors(toy, "head").items())


def test_read_adapter_needs_no_model(toy: InteractiveModel, tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", changed(toy), META)
    tensors, meta = read_adapter(tmp_path / "a")
    assert meta == META
    assert tensors.keys() == changed(toy).keys()
