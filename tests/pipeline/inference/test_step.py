from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.inference import Predictor
from pipeline.inference.instance import apply_edit, final_mask, start
from pipeline.inference.sampling import CornerAligned, PixelEdges
from pipeline.inference.step import CropPrediction, StepOptions, encode_image, predict, zoom_and_carry
from pipeline.models import create_model
from pipeline.models._base import Encoding, InteractiveModel, Prediction
from schemas.clicks import Click
from schemas.predictions import Edit
from tests.pipeline.scenes import ellipse_scene

IMAGE, TRUTH = ellipse_scene(2, 300, 420)
ROW, COLUMN = (int(v) for v in np.argwhere(TRUTH).mean(0).round())


class RedOnCrop(InteractiveModel):
    """A model with cut "crop": red is inside; it notes what it is given."""

    input_size = (96, 128)

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(40.0))
        self.seen: list[dict[str, object]] = []

    def encode(self, images: Tensor) -> Encoding:
        return Encoding({"crop": images})

    def refine(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> Prediction:
        assert crops is None and rois is None
        self.seen.append({"clicks": [list(own) for own in clicks], "previous": previous, "crop": encoding["crop"]})
        logits = self.gain * (encoding["crop"][:, :1] - encoding["crop"][:, 2:3] - 0.25)
        return Prediction(logits, torch.ones(logits.shape[0], 1))


def test_crop_models_get_crops_scaled_clicks_and_the_carried_mask() -> None:
    model = RedOnCrop()
    predictor = Predictor(model)
    predictor.set_image(IMAGE)
    first = predictor.click(Click(COLUMN, ROW, True))
    assert np.mean((first > 0.5) == TRUTH) > 0.99
    predictor.click(Click(COLUMN + 2, ROW, True))
    begin, later = model.seen
    assert begin["clicks"] == [[Click(COLUMN * 128 / 420, ROW * 96 / 300, True)]]
    assert not begin["previous"].any()  # type: ignore[attr-defined]
    assert predictor.roi is not None and predictor.roi != (0, 0, 300, 420)
    expected = CornerAligned().crop_mask(first, predictor.roi, (96, 128))  # type: ignore[arg-type]
    assert np.abs(later["previous"][0, 0].numpy() - expected).max() < 1e-3  # type: ignore[index]
    assert torch.equal(later["crop"], CornerAligned().crop_image(IMAGE, predictor.roi, (96, 128)))  # type: ignore[arg-type]


def test_crop_models_run_in_the_live_path_without_an_encoding() -> None:
    assert encode_image(RedOnCrop(), IMAGE) is None
    payload = {"x": COLUMN, "y": ROW, "is_positive": True}
    state = apply_edit(RedOnCrop(), IMAGE, None, start(IMAGE), Edit(kind="click", payload=payload, payload_sha256=""))
    assert np.mean(final_mask(state, (300, 420)) == TRUTH) > 0.99


def test_mirrored_view_gets_everything_mirrored() -> None:
    model = RedOnCrop()
    Predictor(model, flip=True).set_image(IMAGE)
    predictor = Predictor(model, flip=True)
    predictor.set_image(IMAGE)
    flipped = predictor.click(Click(COLUMN, ROW, True))
    (views,) = model.seen
    plain, mirrored = views["clicks"]  # type: ignore[misc]
    assert mirrored[0].x == 128 - plain[0].x - 1 and mirrored[0].y == plain[0].y
    assert torch.equal(views["crop"][1], views["crop"][0].flip(-1))  # type: ignore[index]
    straight = Predictor(RedOnCrop())
    straight.set_image(IMAGE)
    assert np.allclose(flipped, straight.click(Click(COLUMN, ROW, True)), atol=1e-3)


@pytest.mark.parametrize("model", [create_model("toy-color"), RedOnCrop()])
def test_crop_is_used_again_only_while_the_roi_stays(model: InteractiveModel) -> None:
    encoding, before, crops = encode_image(model, IMAGE), None, []
    clicks: list[Click] = []
    for x in (COLUMN, COLUMN + 1, COLUMN, 3):
        clicks.append(Click(x, ROW, True))
        roi, previous = zoom_and_carry(model, (300, 420), before, 0, None, clicks)
        own = predict(model, IMAGE, encoding, clicks, roi, previous, before=before)
        fresh = predict(model, IMAGE, encoding, clicks, roi, previous)
        assert np.array_equal(own.probabilities, fresh.probabilities)
        crops.append((roi, own.crop))
        before = own
    assert crops[1][0] == crops[2][0] and crops[1][1] is crops[2][1]
    assert len({roi for roi, _ in crops}) >= 2


def test_previous_map_is_the_rounded_one_unless_told_otherwise() -> None:
    model = create_model("toy-color")
    encoding = encode_image(model, IMAGE)
    zeros = np.zeros(model.input_size, np.float32)
    for full, dtype in ((False, np.float16), (True, np.float32)):
        options = StepOptions(full_precision=full)
        made = predict(model, IMAGE, encoding, [Click(COLUMN, ROW, True)], (0, 0, 300, 420), zeros, options)
        assert made.probabilities.dtype == dtype
        assert made.size_bytes == made.probabilities.nbytes + 3 * 128 * 128


def test_chosen_candidate_decides_where_to_look() -> None:
    model = create_model("toy-color")
    probabilities = np.zeros((2, 128, 128), np.float16)
    probabilities[0, 60:70, 60:70], probabilities[1, 5:20, 5:20] = 1, 1
    before = CropPrediction(probabilities, (0, 0, 1000, 1000), (0.9, 0.8))
    rois = [zoom_and_carry(model, (1000, 1000), before, index, None, [])[0] for index in (0, 1)]
    assert rois[0][0] > 300 and rois[1][0] == 0
    carried = zoom_and_carry(model, (1000, 1000), before, 1, None, [])[1]
    expected = PixelEdges().carry(before.candidate(1), before.roi, rois[1], (1000, 1000))
    assert np.array_equal(carried, expected)
