"""What every registered model must do, whatever it is."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.models import create_model, list_models, load_model, save_checkpoint
from pipeline.models._base import Encoding, InteractiveModel
from schemas.clicks import Click
from schemas.errors import NotFoundError

CLICKS = [[Click(20.0, 30.0, True), Click(50.5, 8.25, False)], [Click(40.0, 40.0, True)]]
SIZE = (64, 64)


def make(model_id: str) -> InteractiveModel:
    torch.manual_seed(1)
    torch.set_num_threads(1)
    return create_model(model_id)


def inputs(model: InteractiveModel) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Images, crops, previous masks and regions of a batch of two."""
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(2, 3, 96, 128, generator=generator)
    previous = torch.rand(2, 1, *SIZE, generator=generator)
    if model.cut == "crop":
        return torch.rand(2, 3, *model.input_size, generator=generator), images, previous, None
    crops = torch.rand(2, 3, *SIZE, generator=generator)
    return images, crops, previous, torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.0, 0.25, 0.5, 1.0]])


@pytest.mark.parametrize("model_id", list_models())
def test_logits_have_crop_size_and_scores_are_probabilities(model_id: str) -> None:
    model = make(model_id)
    images, crops, previous, rois = inputs(model)
    with torch.no_grad():
        prediction = model.refine(model.encode(images), CLICKS, previous, crops, rois)
    candidates = prediction.logits.shape[1]
    assert prediction.logits.shape == (2, candidates, *SIZE) and prediction.logits.isfinite().all()
    assert prediction.scores.shape == (2, candidates)
    assert ((prediction.scores >= 0) & (prediction.scores <= 1)).all()
    assert len(prediction.query_ids) == len(set(prediction.query_ids)) == candidates


@pytest.mark.parametrize("model_id", list_models())
def test_stored_encoding_gives_the_same_answer_under_regions(model_id: str, tmp_path: Path) -> None:
    model = make(model_id)
    if model.cut != "image":
        pytest.skip("its encoding is never stored")
    images, crops, previous, rois = inputs(model)
    with torch.no_grad():
        fresh = model.encode(images)
        fresh.save(tmp_path / "encoding")
        at_once = model.refine(fresh, CLICKS, previous, crops, rois).logits
        cached = model.refine(Encoding.load(tmp_path / "encoding"), CLICKS, previous, crops, rois).logits
        half = model.refine(fresh.to(dtype=torch.float16).to(dtype=torch.float32), CLICKS, previous, crops, rois).logits
    assert torch.equal(at_once, cached)
    assert (at_once - half).abs().max() < 0.05


@pytest.mark.parametrize("model_id", list_models())
def test_a_batch_answers_as_its_items_do(model_id: str) -> None:
    model = make(model_id)
    images, crops, previous, rois = inputs(model)
    with torch.no_grad():
        together = model.refine(model.encode(images), CLICKS, previous, crops, rois)
        for item in range(2):
            one = slice(item, item + 1)
            alone = model.refine(
                model.encode(images[one]),
                CLICKS[one],
                previous[one],
                crops[one],
                None if rois is None else rois[one],
            )
            assert torch.allclose(alone.logits, together.logits[one], atol=2e-4)
            assert torch.allclose(alone.scores, together.scores[one], atol=2e-4)


@pytest.mark.parametrize("model_id", list_models())
def test_gradient_reaches_every_parameter_that_acts(model_id: str) -> None:
    model = make(model_id).train()
    images, crops, previous, rois = inputs(model)
    prediction = model.refine(model.encode(images), CLICKS, previous, crops, rois)
    (prediction.logits.square().mean() + prediction.scores.square().mean()).backward()  # type: ignore[no-untyped-call]
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not {name for name in without if not name.startswith("f2.to_coarse")}, without


@pytest.mark.parametrize("model_id", list_models())
def test_weights_survive_the_round_trip(model_id: str, tmp_path: Path) -> None:
    model = make(model_id)
    save_checkpoint(model, tmp_path / "w.safetensors", {"steps": "3"}, dtype=torch.float32)
    again = load_model(model_id, tmp_path / "w.safetensors")
    state = model.state_dict()
    assert {name: torch.equal(value, state[name]) for name, value in again.state_dict().items()} == dict.fromkeys(
        state, True
    )
    assert not again.training and again.model_id == model_id


@pytest.mark.parametrize("model_id", list_models())
def test_shipped_weights_fit(model_id: str) -> None:
    assert load_model(model_id).model_id == model_id


def test_default_is_the_compact_model() -> None:
    assert load_model("default").model_id == "fdrn-compact"


def test_unknown_model_is_named() -> None:
    with pytest.raises(NotFoundError, match="nosuch"):
        load_model("nosuch")
