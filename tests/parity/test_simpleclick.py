"""SimpleClick against the official code, with its official checkpoint: logits, predictor, simulated clicks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.clicks.simulate import next_click
from pipeline.evaluation.robot import evaluate_sample
from pipeline.inference.predictor import Predictor
from pipeline.models import load_model
from pipeline.models._base import InteractiveModel
from schemas.clicks import Click

Vectors = dict[str, NDArray[np.generic]]


@pytest.fixture(scope="module")
def vectors(shared_dir: Path) -> Vectors:
    with np.load(shared_dir / "vectors" / "simpleclick_xtiny.npz") as file:
        return {name: file[name] for name in file.files if name.startswith(("raw", "pred/", "eval/"))}


@pytest.fixture(scope="module")
def model(shared_dir: Path) -> InteractiveModel:
    return load_model("simpleclick-xtiny-448", shared_dir / "vectors" / "simpleclick_xtiny.pth")


def clicks_of(points: NDArray[np.generic]) -> list[Click]:
    """Rows (y, x, order), the first half positive, padded with -1."""
    half = len(points) // 2
    return [Click(x=float(x), y=float(y), is_positive=i < half) for i, (y, x, _) in enumerate(points) if max(y, x) >= 0]


@pytest.mark.parametrize("group", ["raw", "raw224x224"])
def test_logits_are_the_official_ones(vectors: Vectors, model: InteractiveModel, group: str) -> None:
    images = torch.from_numpy(vectors[f"{group}/image_u8"]).permute(0, 3, 1, 2).float() / 255
    clicks = [clicks_of(points) for points in vectors[f"{group}/points"]]
    with torch.inference_mode():
        logits = model.refine(model.encode(images), clicks, torch.from_numpy(vectors[f"{group}/prev_mask"])).logits
    assert np.abs(logits.numpy() - vectors[f"{group}/logits"]).max() <= 3e-4


def test_predictor_gives_the_official_maps_in_the_official_regions(vectors: Vectors, model: InteractiveModel) -> None:
    predictor = Predictor(model, flip=True, full_precision=True)
    predictor.set_image(np.asarray(vectors["pred/image_u8"], np.uint8))
    for step, (row, column, sign) in enumerate(vectors["pred/clicks"].tolist()):
        probability = predictor.click(Click(x=float(column), y=float(row), is_positive=bool(sign)))
        rmin, rmax, cmin, cmax = vectors[f"pred/step{step}_roi"].tolist()
        assert predictor.roi == (rmin, cmin, rmax + 1, cmax + 1)
        assert np.abs(probability - vectors[f"pred/step{step}_prob"]).max() <= 1e-4


def test_robot_clicks_where_the_official_one_does(vectors: Vectors, model: InteractiveModel) -> None:
    gt = np.asarray(vectors["eval/gt"], np.int8)
    predictor = Predictor(model, flip=True, full_precision=True)
    num = len(vectors["eval/clicks"])
    curve = evaluate_sample(predictor, np.asarray(vectors["eval/image_u8"], np.uint8), gt, 1.01, num)
    assert [[int(c.y), int(c.x), int(c.is_positive)] for c in curve.clicks] == vectors["eval/clicks"].tolist()
    assert np.abs(np.array(curve.ious) - vectors["eval/ious"]).max() < 1e-4
    assert np.abs(curve.probability - vectors["eval/final_prob"]).max() <= 1e-4
    assert next_click(gt, np.zeros(gt.shape, np.bool_)) == curve.clicks[0]
