import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.run import evaluate, strata
from pipeline.models import create_model
from schemas.errors import BadInputError
from tests.pipeline.scenes import ellipse_scene


@dataclass
class Scene:
    seed: int
    sample_id: str = "s"
    category: str | None = "ellipse"

    def read_image(self) -> np.ndarray:
        return ellipse_scene(self.seed)[0]

    def read_gt(self) -> np.ndarray:
        return ellipse_scene(self.seed)[1].astype(np.int8)


class Empty(Scene):
    def read_gt(self) -> np.ndarray:
        return -ellipse_scene(self.seed)[1].astype(np.int8)


def test_report_has_the_promised_shape_and_plausible_figures() -> None:
    told: list[dict[str, object]] = []
    report = evaluate(
        create_model("toy-color"), [Scene(seed) for seed in range(4)], targets=(0.90, 0.85), flip=False,
        checkpoint_sha256="ab", data="scenes", progress=told.append,
    )  # fmt: skip
    record = json.loads(report.model_dump_json())
    assert set(record) >= {
        "model", "checkpoint_sha256", "data", "samples", "noc", "nof", "miou_at", "biou_at", "strata", "spc_ms",
        "protocol",
    }  # fmt: skip
    assert record["samples"] == 4 and record["model"] == "toy-color" and record["data"] == "scenes"
    assert set(record["noc"]) == {"85", "90"}
    assert 1 <= record["noc"]["85"] <= record["noc"]["90"] < 20
    assert record["nof"] == record["at_cap"] == {"85": 0, "90": 0}
    assert list(record["miou_at"]) == [str(k) for k in range(1, 21)]
    assert record["miou_at"]["20"] >= 0.9 and 0 < record["biou_at"]["1"] <= 1
    assert record["spc_ms"] > 0
    assert record["protocol"]["stops_at"] == 0.9 and record["protocol"]["flip"] is False
    assert record["strata"]["large"] == {"samples": 0, "noc": {"85": None, "90": None}, "nof": {"85": 0, "90": 0}}
    assert [facts["done"] for facts in told] == [1, 2, 3, 4]


def test_limit_and_objects_without_pixels() -> None:
    scenes = [Empty(0), Scene(1), Scene(2), Scene(3)]
    report = evaluate(create_model("toy-color"), scenes, targets=(0.5,), flip=False, limit=3)
    assert report.samples == 2
    assert report.protocol.skipped == 1


@dataclass
class Stopping(Scene):
    """Tells that it was read; one is where a person presses Ctrl-C."""

    read: list[str] = field(default_factory=list)
    stops: bool = False

    def read_image(self) -> np.ndarray:
        self.read.append(self.sample_id)
        if self.stops:
            raise KeyboardInterrupt
        return super().read_image()


def test_a_stopped_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    model, read, keep = create_model("toy-color"), list[str](), tmp_path / "report.json.partial"

    def scenes(stops: int = -1) -> list[Stopping]:
        read.clear()
        return [Stopping(seed, f"s{seed}", read=read, stops=seed == stops) for seed in range(4)]

    whole = evaluate(model, scenes(), flip=False)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, scenes(stops=2), flip=False, keep=keep)
    with keep.open("a") as file:
        file.write('{"settings": "torn')
    report = evaluate(model, scenes(), flip=False, keep=keep)
    assert read == ["s2", "s3"]
    assert report.model_copy(update={"spc_ms": None}) == whole.model_copy(update={"spc_ms": None})
    evaluate(model, scenes(), flip=True, keep=keep)
    assert read == ["s0", "s1", "s2", "s3"]
    evaluate(model, scenes(), flip=False, keep=keep, identity="other data")
    assert read == ["s0", "s1", "s2", "s3"]
    evaluate(model, scenes(), flip=False, keep=keep)
    assert read == []


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(BadInputError, match="no object"):
        evaluate(create_model("toy-color"), [Empty(0)])
    with pytest.raises(BadInputError, match="no object"):
        evaluate(create_model("toy-color"), [])


@pytest.mark.parametrize(("targets", "max_clicks"), [((), 20), ((0.0,), 20), ((90.0,), 20), ((0.9,), 0)])
def test_senseless_protocols_are_refused(targets: tuple[float, ...], max_clicks: int) -> None:
    with pytest.raises(BadInputError, match="Targets"):
        evaluate(create_model("toy-color"), [Scene(0)], targets=targets, max_clicks=max_clicks)


def test_strata_of_hand_made_objects() -> None:
    def of(height: int, width: int) -> list[str]:
        gt = np.zeros((200, 200), np.int8)
        gt[5 : 5 + height, 5 : 5 + width] = 1
        return list(strata(gt))

    assert of(31, 33) == ["small"]
    assert of(32, 32) == []
    assert of(10, 150) == ["thin"]
    assert of(1, 150) == ["small", "thin"]
    assert of(170, 170) == ["large"]
