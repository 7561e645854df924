import numpy as np
import pytest

from pipeline.evaluation.metrics import iou
from pipeline.evaluation.robot import evaluate_sample
from pipeline.inference import Predictor
from pipeline.models import create_model
from schemas.clicks import Click
from tests.pipeline.scenes import ellipse_scene


def test_robot_begins_at_the_centre_and_stops_at_the_target() -> None:
    image, mask = ellipse_scene(0)
    curve = evaluate_sample(Predictor(create_model("toy-color")), image, mask, target=0.9)
    rows, columns = np.nonzero(mask)
    assert curve.clicks[0].is_positive
    assert abs(curve.clicks[0].x - columns.mean()) < 3 and abs(curve.clicks[0].y - rows.mean()) < 3
    assert curve.ious[-1] >= 0.9
    assert all(value < 0.9 for value in curve.ious[:-1])
    assert len(curve.ious) == len(curve.bious) == len(curve.clicks)
    assert curve.ious[-1] == iou(mask, curve.probability > 0.49)
    assert curve.seconds > 0


def test_every_click_lies_in_an_error_of_its_time() -> None:
    image, mask = ellipse_scene(1)
    predictor = Predictor(create_model("toy-color"))
    curve = evaluate_sample(predictor, image, mask, target=1.01, max_clicks=6)
    predictor.reset()
    predicted, spoilt = np.zeros_like(mask), list[float]()
    for click in curve.clicks:
        assert (mask & ~predicted if click.is_positive else predicted & ~mask)[int(click.y), int(click.x)]
        before, predicted = predicted, predictor.click(click) > 0.49
        spoilt.append(((before == mask) & (predicted != mask)).sum() / mask.sum())
    assert curve.spoilt == pytest.approx(spoilt) and max(spoilt) > 0
    assert len({(c.x, c.y) for c in curve.clicks}) == len(curve.clicks) == 6


def test_object_that_is_never_found_takes_all_clicks() -> None:
    image, _ = ellipse_scene(2)
    noise = np.random.default_rng(0).random(image.shape[:2]) > 0.5
    assert len(evaluate_sample(Predictor(create_model("toy-color")), image, noise, 0.9, max_clicks=4).ious) == 4


def test_second_object_of_an_image_starts_afresh() -> None:
    image, mask = ellipse_scene(3)
    predictor = Predictor(create_model("toy-color"))
    first = evaluate_sample(predictor, image, mask, 0.9)
    again = evaluate_sample(predictor, image, mask, 0.9)
    assert first.ious == again.ious and first.clicks == again.clicks
    other = image.copy()
    evaluate_sample(predictor, other, mask, 0.9)
    assert predictor.image is other
    assert isinstance(predictor.clicks[0], Click)
