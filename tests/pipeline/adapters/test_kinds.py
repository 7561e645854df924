"""Every kind of adapter: untrained it changes nothing, trained it changes what it should and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.adapters.files import AdapterMeta, load_adapted, save_adapter
from pipeline.adapters.kinds import adapted, adapter_tensors, student_of
from pipeline.adapters.steps import AdapterConfig
from pipeline.adapters.train import train_adapter
from pipeline.models import create_model, list_models, load_model, outline_of
from pipeline.models._base import InteractiveModel
from pipeline.training.losses import nfl
from schemas.clicks import Click
from schemas.errors import BadCheckpointError, BadInputError
from schemas.requests import ADAPTER_KINDS
from tests.pipeline.adapters.worlds import memory_source, world
from tests.pipeline.models.small import SMALL

CLICKS = [[Click(20.0, 30.0, True), Click(50.0, 8.0, False)]]
MODELS = ("fdrn-compact", "fdrn-hrnet", "simpleclick", "ritm")


def make(name: str) -> InteractiveModel:
    torch.manual_seed(2)
    model = SMALL[name]().eval()
    model.model_id = model.model_id or name
    return model


def logits(model: InteractiveModel) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    size = (64, 64) if model.cut == "image" else model.input_size
    images = torch.rand(1, 3, *((96, 96) if model.cut == "image" else size), generator=generator)
    crops = torch.rand(1, 3, *size, generator=generator) if model.cut == "image" else None
    previous = torch.rand(1, 1, *size, generator=generator)
    return model.refine(model.encode(images), CLICKS, previous, crops).logits


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_untrained_it_changes_nothing_bit_for_bit(name: str, kind: str) -> None:
    model = make(name)
    with torch.no_grad():
        before = logits(model)
        assert torch.equal(logits(adapted(model, adapter_tensors(model, kind))), before)
        assert torch.equal(logits(student_of(model, adapter_tensors(model, kind))[0]), before)
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_training_moves_the_adapter_alone_and_what_was_trained_is_what_is_served(name: str, kind: str) -> None:
    model = make(name)
    start = adapter_tensors(model, kind)
    student, trained = student_of(model, start)
    assert trained.keys() == start.keys()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=2e-3, weight_decay=0.0)
    losses = []
    for _ in range(25):
        out = logits(student)
        target = torch.zeros_like(out)
        target[..., 10:40, 10:40] = 1.0
        loss = nfl(out[:, :1], target[:, :1]).mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert min(losses) < losses[0]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    frozen = [p for p in student.parameters() if not any(p is own for own in trained.values())]
    assert all(p.grad is None for p in frozen)
    tensors = {key: value.detach().clone() for key, value in trained.items()}
    with torch.no_grad():
        assert torch.allclose(logits(adapted(model, tensors)), logits(student), atol=2e-4)


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_files_of_every_kind_are_strict_and_share_the_rest(kind: str, tmp_path: Path) -> None:
    model = load_model("fdrn-compact")
    tensors = {name: value + 0.01 for name, value in adapter_tensors(model, kind).items()}
    meta = AdapterMeta(kind=kind, model_id="fdrn-compact")
    save_adapter(tmp_path / "a", tensors, meta)
    laid, known = load_adapted(model, tmp_path / "a")
    assert known == meta
    own = {id(p) for p in model.parameters()}
    shared = sum(p.numel() for p in laid.parameters() if id(p) in own)
    total = sum(p.numel() for p in model.parameters())
    assert shared >= total - sum(p.numel() for n, p in model.named_parameters() if n.startswith("f2."))
    assert all(id(p) in own for name, p in laid.named_parameters() if ".f1." in f".{name}")
    with torch.no_grad():
        assert not torch.equal(logits(laid), logits(model))
        assert torch.equal(logits(load_model("fdrn-compact", adapter=tmp_path / "a")), logits(laid))
    first = sorted(tensors)[0]
    save_adapter(tmp_path / "b", {name: value for name, value in tensors.items() if name != first}, meta)
    with pytest.raises(BadCheckpointError, match="missing or unexpected"):
        load_adapted(model, tmp_path / "b")


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_nothing_before_the_cut_is_trained(kind: str) -> None:
    model = create_model("fdrn-compact")
    _, trained = student_of(model, adapter_tensors(model, kind))
    assert trained and not any(name.startswith("f1.") for name in trained)


def test_sizes_of_the_kinds_on_the_shipped_model() -> None:
    model = create_model("fdrn-compact")
    sizes = {kind: sum(t.numel() for t in adapter_tensors(model, kind).values()) for kind in ADAPTER_KINDS}
    assert sizes["affine"] < sizes["clickadapter"] < sizes["lora"] < sizes["head"] < sizes["full"]
    assert sizes["full"] == sum(p.numel() for n, p in model.named_parameters() if n.startswith("f2."))


@pytest.mark.parametrize("kind", ["lora", "clickadapter"])
def test_retraining_goes_on_from_the_live_adapter(kind: str) -> None:
    model = load_model("fdrn-compact")
    images, pixels = world(2, objects=1)
    config = AdapterConfig(
        kind=kind, max_steps=2, objects_per_step=1, max_clicks=1, validate_every=2, mirror=False, hold_share=0.0
    )
    first = train_adapter(model, images, memory_source(model, pixels), config)
    assert any(not torch.equal(value, adapter_tensors(model, kind)[name]) for name, value in first.tensors.items())
    second = train_adapter(
        model, images, memory_source(model, pixels), replace(config, learning_rate=0.0), parent=first.tensors
    )
    assert all(torch.allclose(value, first.tensors[name], atol=1e-6) for name, value in second.tensors.items())


@pytest.mark.parametrize("model_id", list_models())
def test_every_model_has_the_kind_that_retraining_makes_unless_told_otherwise(model_id: str) -> None:
    model = outline_of(model_id)
    assert model.adapter_parameter_names(model.default_adapter)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInputError, match=r"'nose'.*clickadapter"):
        adapter_tensors(create_model("fdrn-compact"), "nose")
