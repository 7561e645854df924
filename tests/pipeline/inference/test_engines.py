"""Engines share weights and encodings, agree with float32, and are refused where they cannot run."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.adapters.kinds import adapted, adapter_tensors
from pipeline.data.procedural import procedural_scene
from pipeline.evaluation.metrics import iou
from pipeline.inference.engines import engine_name, engine_record, training_engine, tuned_engine, with_engine
from pipeline.inference.predictor import Predictor
from pipeline.models import load_model
from pipeline.models._base import InteractiveModel
from schemas import engines
from schemas.clicks import Click
from schemas.engines import ENGINES, EngineName, Tuning, check_available, cpu_name, runtime_versions
from schemas.errors import BadInputError
from schemas.predictions import Engine

needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="clickloop[onnx] is not installed")
OTHERS = [pytest.param("torch-bfloat16"), pytest.param("onnx-float32", marks=[needs_onnx, pytest.mark.slow])]


def probability(model: InteractiveModel, num_clicks: int = 2) -> np.ndarray:
    scene = procedural_scene(np.random.default_rng(3))
    predictor = Predictor(model)
    predictor.set_image(scene.image)
    rows, columns = np.nonzero(scene.masks[0])
    for place in np.linspace(0.3, 0.7, num_clicks):
        index = int(place * len(rows))
        predictor.click(Click(x=float(columns[index]), y=float(rows[index]), is_positive=True))
    return predictor.probability()


@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.parametrize("kind", [None, "clickadapter", "lora"])
def test_an_engine_agrees_with_float32_and_leaves_the_model_as_it_is(engine: EngineName, kind: str | None) -> None:
    model = load_model("default")
    if kind is not None:
        model = adapted(model, adapter_tensors(model, kind))
    expected = probability(model)
    other = with_engine(model, engine)
    found = probability(other)
    assert {id(p) for p in model.parameters()} >= {id(p) for p in other.parameters()}
    assert iou(expected > 0.5, found > 0.5) > 0.97 and (expected > 0.5).any()
    assert not np.array_equal(found, expected), "it was the engine that ran"
    assert np.array_equal(probability(model), expected)
    image = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        tensors, own = (m.encode(image).tensors for m in (model, other))
    assert all(torch.equal(tensors[name], own[name]) and own[name].dtype == torch.float32 for name in tensors)


@needs_onnx
def test_onnx_gives_the_masks_of_float32() -> None:
    model = load_model("default")
    expected, found = probability(model, 3), probability(with_engine(model, "onnx-float32"), 3)
    assert np.abs(expected - found).max() < 5e-3
    assert iou(expected > 0.5, found > 0.5) > 0.999


def test_the_default_engine_is_the_model_itself() -> None:
    model = load_model("toy-color")
    assert with_engine(model, "torch-float32") is model


def test_models_of_any_cut_run_in_bfloat16() -> None:
    found = probability(with_engine(load_model("toy-color"), "torch-bfloat16"))
    assert np.isfinite(found).all() and found.dtype == np.float32


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the kernel's own list of what the processor can do")
def test_training_is_in_bfloat16_where_the_processor_multiplies_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Path("/proc/cpuinfo").read_text().split()
    fast = not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(listed)
    assert training_engine(torch.device("cpu")) == ("torch-bfloat16" if fast else "torch-float32")
    for found in ({"avx512_f": True, "avx512_bf16": False}, {"avx512_bf16": True}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        expected = "torch-bfloat16" if found.get("avx512_bf16") else "torch-float32"
        assert training_engine(torch.device("cpu")) == expected
    assert training_engine(torch.device("mps")) == "torch-float32"


def test_a_missing_package_or_a_gpu_refuses_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_ONNX_PACKAGES", ("nosuchpackage",))
    with pytest.raises(BadInputError, match=r"nosuchpackage. Install clickloop\[onnx\]"):
        check_available("onnx-float32")
    monkeypatch.setattr(engines, "_ONNX_PACKAGES", ())
    with pytest.raises(BadInputError, match="CPUs only"):
        check_available("onnx-float32", "cuda")
    with pytest.raises(BadInputError, match="toy-color cannot run on onnx-float32"):
        with_engine(load_model("toy-color"), "onnx-float32")
    for engine in ("auto", *ENGINES):
        check_available(engine)


def test_a_record_names_its_engine_whatever_its_version() -> None:
    for engine in ("torch-float32", "torch-bfloat16"):
        record = engine_record(engine, "cpu")
        assert engine_name(record.model_copy(update={"version": "1.0", "runtime": "torch-cuda"})) == engine
    assert engine_name(None) == "torch-float32"
    assert engine_name(Engine(runtime="abacus-cpu", version="1", dtype="int4")) == "torch-float32"


def test_a_tuning_holds_only_where_it_was_made() -> None:
    tuning = Tuning(
        machine=cpu_name(), packages=runtime_versions(), model_digest="a" * 64, engine="torch-bfloat16",
        threads=1, images="", clicks=0, figures=(),
    )  # fmt: skip
    assert tuned_engine(tuning, "a" * 64, "cpu") == "torch-bfloat16"
    assert tuned_engine(None, "a" * 64, "cpu") == "torch-float32"
    assert tuned_engine(tuning, "b" * 64, "cpu") == "torch-float32"
    for stale in ({"machine": "another"}, {"packages": {"torch": "0"}}):
        assert tuned_engine(tuning.model_copy(update=stale), "a" * 64, "cpu") == "torch-float32"
