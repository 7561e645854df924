import numpy as np
import torch

from pipeline.evaluation.robot import evaluate_sample
from pipeline.inference import Predictor
from pipeline.models import create_model
from schemas.clicks import Click
from tests.pipeline.scenes import ellipse_scene


def test_robot_user_converges_on_simple_pictures() -> None:
    predictor = Predictor(create_model("toy-color"))
    curves = [evaluate_sample(predictor, *ellipse_scene(seed), target=0.9) for seed in range(6)]
    assert max(len(curve.ious) for curve in curves) < 20
    assert np.mean([len(curve.ious) for curve in curves]) < 6


def test_candidates_are_nested_and_scored() -> None:
    model = create_model("toy-color")
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prediction = model.refine(model.encode(image), [[Click(20, 30, True)]], torch.zeros(1, 1, 64, 64))
    official, tight, loose = prediction.logits[0]
    assert (tight < official).all() and (official < loose).all()
    assert prediction.scores.tolist()[0] == sorted(prediction.scores.tolist()[0], reverse=True)
    assert prediction.query_ids == (0, 1, 2)


def test_clicked_pixels_go_to_their_sign() -> None:
    model = create_model("toy-color")
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    clicks = [Click(20, 30, True), Click(40, 10, False)]
    logits = model.refine(model.encode(image), [clicks], torch.zeros(1, 1, 64, 64), crops=image).logits[0, 0]
    assert logits[30, 20] > 0 > logits[10, 40]
