"""Engines are timed and held against float32 over sequences of clicks; one that spoils masks is not chosen."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.data.procedural import procedural_scene
from pipeline.evaluation.engines import DRAWN, PHOTOGRAPHS, Target, compare_engines, fastest
from pipeline.inference.engines import with_engine
from pipeline.models import load_model
from pipeline.models._base import InteractiveModel, Prediction
from schemas.engines import DEFAULT_ENGINE, EngineFigures, EngineName
from schemas.errors import BadInputError


def targets(count: int) -> list[Target]:
    scenes = [procedural_scene(np.random.default_rng(seed), (96, 128)) for seed in range(count)]
    return [(scene.image, scene.masks[0]) for scene in scenes]


def spoilt() -> InteractiveModel:
    """The default model in bfloat16 with an output layer that has lost its bias: masks a little too small."""
    model = load_model("default")
    bias = model.get_parameter("f2.to_logits.bias")
    bias.data -= 2.0
    return with_engine(model, "torch-bfloat16")


def test_an_engine_that_spoils_masks_does_not_agree() -> None:
    model = load_model("default")
    models: dict[EngineName, InteractiveModel] = {DEFAULT_ENGINE: model, "torch-bfloat16": spoilt()}
    (own, other), compared = compare_engines(models, targets(4), PHOTOGRAPHS, clicks=3)
    assert 4 <= compared <= 12
    assert (own.agreement, own.agreement_p5, own.agrees) == (1.0, 1.0, True)
    assert other.agreement < 0.98 and not other.agrees
    assert fastest([own, other.model_copy(update={"step_ms": own.step_ms / 100})]) == DEFAULT_ENGINE


def test_an_engine_that_gives_nothing_or_nan_does_not_agree() -> None:
    model = load_model("toy-color")
    broken = load_model("toy-color")

    refine = broken.refine

    def broken_refine(*args: Any) -> Prediction:
        made = refine(*args)
        return replace(made, logits=made.logits * float("nan"))

    broken.refine = broken_refine  # type: ignore[method-assign, assignment]
    figures, _ = compare_engines({DEFAULT_ENGINE: model, "torch-bfloat16": broken}, targets(2), PHOTOGRAPHS, clicks=2)
    assert [own.agrees for own in figures] == [True, False]


def test_drawn_scenes_forgive_less() -> None:
    models = {DEFAULT_ENGINE: load_model("default")}
    models["torch-bfloat16"] = with_engine(models[DEFAULT_ENGINE], "torch-bfloat16")
    figures, _ = compare_engines(models, targets(3), DRAWN, clicks=2)
    other = figures[1]
    assert other.agrees == (other.agreement >= 0.999 and other.agreement_p5 >= 0.999)
    assert other.agreement > 0.97 and figures[0].agrees


def test_the_fastest_that_agrees_and_is_worth_it_is_chosen() -> None:
    def figures(engine: EngineName, step_ms: float, agrees: bool = True) -> EngineFigures:
        return EngineFigures(engine=engine, step_ms=step_ms, agreement=1, agreement_p5=1, agrees=agrees)

    own = figures(DEFAULT_ENGINE, 50)
    assert fastest([own]) == DEFAULT_ENGINE
    assert fastest([own, figures("torch-bfloat16", 30), figures("onnx-float32", 40)]) == "torch-bfloat16"
    assert fastest([own, figures("torch-bfloat16", 30, agrees=False), figures("onnx-float32", 40)]) == "onnx-float32"
    assert fastest([own, figures("torch-bfloat16", 60)]) == DEFAULT_ENGINE
    assert fastest([own, figures("torch-bfloat16", 49)]) == DEFAULT_ENGINE, "2 % is not worth another engine"


def test_nothing_to_click_is_said() -> None:
    with pytest.raises(BadInputError, match="no object"):
        compare_engines({DEFAULT_ENGINE: load_model("toy-color")}, [], DRAWN)
