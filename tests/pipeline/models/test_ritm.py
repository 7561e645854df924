"""RITM: sizes that the papers state, names of the official checkpoints, and its way of zooming in."""

import numpy as np
import pytest
import torch

from pipeline.inference.predictor import Predictor
from pipeline.inference.step import MAX_WHOLE_SIDE, CropPrediction, StepOptions, crop_size, zoom_and_carry
from pipeline.models import create_model
from pipeline.models._official import OfficialCheckpoint, identify
from pipeline.models.layers.hrnet import HighResolutionNet
from schemas.clicks import Click
from tests.pipeline.models.small import SMALL
from tests.pipeline.scenes import ellipse_scene

CLICK = Click(x=250.0, y=150.0, is_positive=True)


@pytest.mark.parametrize(("name", "millions"), [("hrnet18", 10.03), ("hrnet32", 30.95)])
def test_parameters_are_those_that_fdrns_table_2_states(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = create_model(f"ritm-{name}")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(("small", "count"), [(True, 1_281_896), (False, 2_760_024)])
def test_three_stages_have_the_parameters_that_fdrns_encoder_implies(small: bool, count: int) -> None:
    """MODELS 6: HRNets without stage 4 and object context."""
    with torch.device("meta"):
        assert sum(p.numel() for p in HighResolutionNet(18, small, 3).parameters()) == count


def test_names_are_those_of_official_checkpoints() -> None:
    with torch.device("meta"):
        model = create_model("ritm-hrnet18")
    names = set(model.state_dict())
    for name in (
        "maps_transform.0.weight", "maps_transform.2.bias", "maps_transform.3.scale",
        "feature_extractor.conv1.weight", "feature_extractor.bn2.running_var",
        "feature_extractor.layer1.0.downsample.0.weight", "feature_extractor.transition1.0.0.weight",
        "feature_extractor.transition1.1.0.0.weight", "feature_extractor.transition2.2.0.1.bias",
        "feature_extractor.stage3.3.fuse_layers.2.0.0.0.weight", "feature_extractor.stage4.0.fuse_layers.0.3.1.weight",
        "feature_extractor.stage2.0.branches.1.3.conv2.weight",
        "feature_extractor.ocr_distri_head.object_context_block.f_pixel.3.0.weight",
        "feature_extractor.ocr_distri_head.conv_bn_dropout.1.0.bias", "feature_extractor.aux_head.3.bias",
        "feature_extractor.cls_head.weight",
    ):  # fmt: skip
        assert name in names, name
    checkpoint = OfficialCheckpoint(__file__, model.official_class, dict(model.state_dict()))  # type: ignore[arg-type]
    assert identify(checkpoint) == ("ritm-hrnet18", {})


def test_the_first_click_sees_the_whole_image_and_later_ones_a_crop_that_keeps_its_shape() -> None:
    model = create_model("ritm-hrnet18s")
    size = (300, 420)
    roi, previous = zoom_and_carry(model, size, None, 0, None, [CLICK])
    assert roi == (0, 0, 300, 420) and previous.shape == (300, 420)
    found = np.zeros((1, 300, 420), np.float32)
    found[0, 100:200, 200:300] = 1.0
    before = CropPrediction(found, roi, (1.0,))
    second, carried = zoom_and_carry(model, size, before, 0, None, [CLICK, CLICK])
    assert second == (50, 150, 251, 351)  # 1.4 times the box, at least 200, and one more as both bounds count
    assert carried.shape == (400, 400) and carried[200, 200] == 1.0
    empty = CropPrediction(np.zeros((1, 300, 420), np.float32), roi, (1.0,))
    third, passed = zoom_and_carry(model, size, empty, 0, None, [CLICK] * 3)
    assert third == roi and passed.shape == (300, 420)


def test_the_longer_side_is_scaled_and_huge_images_are_not_passed_whole() -> None:
    model = create_model("ritm-hrnet18s")
    assert crop_size(model, (0, 0, 100, 300)) == (133, 400)
    assert crop_size(model, (0, 0, 300, 100), StepOptions(target_size=(600, 600))) == (600, 200)
    assert crop_size(model, (0, 0, 3000, 4000), whole=True) == (MAX_WHOLE_SIDE * 3 // 4, MAX_WHOLE_SIDE)


@pytest.mark.parametrize("flip", [False, True])
def test_the_predictor_takes_its_crops_of_any_shape(flip: bool) -> None:
    torch.manual_seed(0)
    predictor = Predictor(SMALL["ritm"](), flip=flip)
    image, mask = ellipse_scene(2)
    predictor.set_image(image)
    for x, y, sign in ((80.0, 60.0, True), (20.0, 20.0, False), (90.0, 50.0, True)):
        probability = predictor.click(Click(x, y, sign))
        assert probability.shape == mask.shape and np.isfinite(probability).all()
    before = predictor.probability()
    predictor.click(Click(60.0, 60.0, True))
    assert np.array_equal(predictor.undo(), before)


def test_the_coarse_mask_is_there_for_the_auxiliary_loss() -> None:
    model = create_model("ritm-hrnet18s")
    previous = torch.zeros(1, 1, 64, 96)
    with torch.no_grad():
        logits, coarse = model.refine_with_coarse(model.encode(torch.rand(1, 3, 64, 96)), [[CLICK]], previous)
    assert logits.shape == coarse.shape == (1, 1, 64, 96) and not torch.equal(logits, coarse)
