import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.evaluation.metrics import iou
from pipeline.inference import Predictor
from pipeline.models import create_model
from schemas.clicks import Click
from schemas.errors import BadInputError, ClickOutsideImageError
from tests.pipeline.scenes import ellipse_scene


def centre(mask: np.ndarray, is_positive: bool = True) -> Click:
    rows, columns = np.nonzero(mask)
    return Click(float(columns.mean().round()), float(rows.mean().round()), is_positive)


def predictor_on(seed: int, **options: bool) -> tuple[Predictor, np.ndarray]:
    image, mask = ellipse_scene(seed)
    predictor = Predictor(create_model("toy-color"), **options)
    predictor.set_image(image)
    return predictor, mask


@pytest.mark.parametrize("flip", [False, True])
def test_one_click_finds_a_plain_object(flip: bool) -> None:
    predictor, mask = predictor_on(0, flip=flip)
    probability = predictor.click(centre(mask))
    assert probability.shape == mask.shape and probability.dtype == np.float32
    assert iou(mask, probability > 0.5) > 0.85


def test_flip_averages_both_views_of_the_same_place() -> None:
    """A mirrored image with a mirrored click gives the mirrored map, up to the one-pixel offset of official flips."""
    image, mask = ellipse_scene(3)
    click = centre(mask)
    maps = []
    for pixels, x in ((image, click.x), (image[:, ::-1].copy(), image.shape[1] - 1 - click.x)):
        predictor = Predictor(create_model("toy-color"), flip=True)
        predictor.set_image(pixels)
        maps.append(predictor.click(Click(x, click.y, True)))
    assert iou(maps[0] > 0.5, maps[1][:, ::-1] > 0.5) > 0.97


def test_undo_restores_every_step_exactly() -> None:
    predictor, mask = predictor_on(1)
    clicks = [centre(mask), Click(2, 2, False), Click(150, 100, False), Click(80, 60, True)]
    maps, rois = [predictor.probability()], [predictor.roi]
    for click in clicks:
        maps.append(predictor.click(click))
        rois.append(predictor.roi)
    for expected_map, expected_roi in zip(maps[-2::-1], rois[-2::-1], strict=True):
        assert np.array_equal(predictor.undo(), expected_map)
        assert predictor.roi == expected_roi
    assert predictor.undo().sum() == 0
    for click, expected_map in zip(clicks, maps[1:], strict=True):
        assert np.array_equal(predictor.click(click), expected_map)


def test_second_click_zooms_in_and_is_zero_outside() -> None:
    image, mask = ellipse_scene(2, 480, 640)
    predictor = Predictor(create_model("toy-color"))
    predictor.set_image(image)
    predictor.click(centre(mask))
    assert predictor.roi == (0, 0, 480, 640)
    probability = predictor.click(centre(mask))
    assert predictor.roi is not None
    y0, x0, y1, x1 = predictor.roi
    assert (y1 - y0) * (x1 - x0) < 480 * 640 / 3
    outside = probability.copy()
    outside[y0:y1, x0:x1] = 0
    assert not outside.any()


def test_mask_that_was_set_is_looked_at_refined_and_undone() -> None:
    image, mask = ellipse_scene(2, 480, 640)
    predictor = Predictor(create_model("toy-color"))
    predictor.set_image(image)
    predictor.set_mask(mask)
    assert np.array_equal(predictor.probability(), mask.astype(np.float32))
    click = centre(mask)
    predictor.click(click)
    assert predictor.roi != (0, 0, 480, 640)
    assert iou(mask, predictor.probability() > 0.5) > 0.8
    predictor.undo()
    assert np.array_equal(predictor.probability() > 0.5, mask)
    assert predictor.undo().sum() == 0


def test_previous_mask_reaches_the_model() -> None:
    predictor, mask = predictor_on(4)
    click = centre(mask)
    fresh = predictor.click(click)
    predictor.set_mask(np.ones_like(mask))
    assert not np.array_equal(predictor.click(click), fresh)


def test_candidates_can_be_chosen_and_undone() -> None:
    predictor, mask = predictor_on(5)
    official = predictor.click(centre(mask))
    assert len(predictor.scores) == 3
    tight, loose = predictor.choose(1), predictor.choose(2)
    assert (tight > 0.5).sum() < (official > 0.5).sum() < (loose > 0.5).sum()
    assert np.array_equal(predictor.undo(), tight)
    with pytest.raises(BadInputError, match="no candidate 3"):
        predictor.choose(3)


def test_new_image_forgets_everything() -> None:
    predictor, mask = predictor_on(6)
    predictor.click(centre(mask))
    predictor.set_image(ellipse_scene(7)[0])
    assert predictor.clicks == () and predictor.roi is None
    assert predictor.undo().sum() == 0


@pytest.mark.parametrize(("x", "y"), [(-0.5, 5), (5, -1), (160, 5), (5, 120), (1e9, 5)])
def test_click_outside_is_refused_and_changes_nothing(x: float, y: float) -> None:
    predictor, _ = predictor_on(0)
    with pytest.raises(ClickOutsideImageError, match="120x160"):
        predictor.click(Click(x, y, True))
    assert predictor.clicks == ()


def test_clicking_without_an_image_or_with_a_foreign_mask_is_refused() -> None:
    predictor = Predictor(create_model("toy-color"))
    with pytest.raises(BadInputError, match="set_image"):
        predictor.click(Click(1, 1, True))
    predictor.set_image(ellipse_scene(0)[0])
    with pytest.raises(BadInputError, match="size"):
        predictor.set_mask(np.zeros((5, 5), np.bool_))


def test_a_soft_mask_or_an_image_that_is_no_array_is_refused() -> None:
    predictor = Predictor(create_model("toy-color"))
    with pytest.raises(ValueError, match=r"type Image: expected an array"):
        predictor.set_image(Image.new("RGB", (8, 8)))  # type: ignore[arg-type]
    predictor.set_image(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(BadInputError, match="threshold"):
        predictor.set_mask(np.full((8, 8), 0.1, np.float32))
    predictor.set_mask(np.eye(8, dtype=np.uint8) * 255)  # type: ignore[arg-type]
    assert predictor.probability().sum() == 8


def test_larger_target_size_changes_the_network_input_only() -> None:
    image, mask = ellipse_scene(0)
    predictor = Predictor(create_model("toy-color"), target_size=(192, 160))
    predictor.set_image(image)
    assert predictor.click(centre(mask)).shape == mask.shape
    assert iou(mask, predictor.probability() > 0.5) > 0.8


def test_half_precision_between_clicks_is_the_default_and_near_the_full() -> None:
    image, mask = ellipse_scene(8)
    maps = []
    for full in (False, True):
        predictor = Predictor(create_model("toy-color"), full_precision=full)
        predictor.set_image(image)
        predictor.click(centre(mask))
        maps.append(torch.from_numpy(predictor.click(Click(1, 1, False))))
    assert not torch.equal(maps[0], maps[1])
    assert torch.allclose(maps[0], maps[1], atol=0.01)
