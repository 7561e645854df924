"""What a model knows is held where it was; what ships says so of the weights that ship."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.adapters.importance import (
    importance_path,
    measure_importance,
    save_importance,
    shipped_importance,
)
from pipeline.adapters.train import train_adapter
from pipeline.masks.rle import rle_to_mask
from pipeline.models import default_weights_path, load_model, weights_digest
from tests.pipeline.adapters.worlds import QUICK, memory_source, spoiled_toy, toy, world


def test_what_ships_is_of_the_weights_that_ship() -> None:
    model = load_model("default")
    importance = shipped_importance(model.model_id, weights_digest(default_weights_path("default")))
    names = model.adapter_parameter_names("full")
    assert importance.keys() == set(names), "measure it again: write_importance in pipeline/configs/fdrn_compact.py"
    total = count = 0.0
    for name in names:
        parameter, values = model.get_parameter(name), importance[name]
        assert values.shape == parameter.shape[:1] and values.isfinite().all() and (values >= 0).all()
        total += float(values.sum()) * parameter.numel() / values.numel()
        count += parameter.numel()
    assert total / count == pytest.approx(1, rel=1e-3)


def test_other_weights_have_none() -> None:
    assert shipped_importance("fdrn-compact", "0" * 64) == {}
    assert shipped_importance("toy-color", weights_digest(default_weights_path("toy-color"))) == {}
    assert shipped_importance("simpleclick-base-448", "0" * 64) == {}


def test_what_matters_on_the_objects_is_measured(tmp_path: Path) -> None:
    model = load_model("default")
    images, pixels = world(2)
    source = memory_source(model, pixels)
    objects = [(source.scene(image), rle_to_mask(image.targets[0].rle)) for image in images]
    importance = measure_importance(model, objects)
    assert importance.keys() == set(model.adapter_parameter_names("full"))
    assert all(values.isfinite().all() and (values >= 0).all() for values in importance.values())
    assert sum(bool(values.any()) for values in importance.values()) > len(importance) / 2
    path = importance_path(tmp_path / "w.safetensors")
    save_importance(importance, path, model.model_id, "d" * 64)
    assert path.name == "w.importance.safetensors" and path.stat().st_size < 200_000


def test_important_parameters_stay_and_others_learn() -> None:
    model = spoiled_toy()
    images, pixels = world(4)
    source = memory_source(model, pixels)
    config = replace(QUICK, max_steps=5, pull=1e9)
    free = train_adapter(model, images, source, config).tensors
    held = sorted(free)[0]
    values = torch.ones(model.get_parameter(held).shape[:1])
    result = train_adapter(model, images, source, config, importance={held: values, "not trained": values})
    for name, tensor in result.tensors.items():
        has_moved = not torch.allclose(tensor, model.get_parameter(name).detach(), atol=1e-6)
        assert has_moved == (name != held), name
    assert not torch.allclose(free[held], model.get_parameter(held).detach(), atol=1e-6), "it would have learned"


def test_a_live_adapter_does_not_move_the_place_that_is_pulled_to() -> None:
    model = toy()
    images, pixels = world(3)
    config = replace(QUICK, max_steps=2, pull=1e9, stride=1.0, ema=0.0)
    parent = {name: p.detach() + 0.25 for name, p in model.named_parameters()}
    parent = {name: parent[name] for name in model.adapter_parameter_names("head")}
    everything = {name: torch.ones(value.shape[:1]) for name, value in parent.items()}
    source = memory_source(model, pixels)
    config = replace(config, validation_share=0.0)
    result = train_adapter(model, images, source, config, parent=parent, importance=everything)
    for name, tensor in result.tensors.items():
        assert torch.allclose(tensor, model.get_parameter(name).detach(), atol=0.05), name
