"""What every model must do, whatever it is: run on a small form of each architecture, and on the registry's names."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.models import create_model, list_models, load_model, save_checkpoint
from pipeline.models._base import Encoding, InteractiveModel
from pipeline.models._checkpoint import _fill
from pipeline.training.losses import nfl
from schemas.clicks import Click
from schemas.errors import BadInputError, NotFoundError
from tests.pipeline.models.small import SMALL

CLICKS = [[Click(20.0, 30.0, True), Click(50.5, 8.25, False)], [Click(40.0, 40.0, True)]]
SIZE = (64, 64)
WITHOUT_GRADIENT = re.compile(r"^f2\.to_coarse|^f1\.backbone\.stage3\.\d\.fuse_layers\.1\.")
"""Parts that only a training loss reads, and the 1/8 branch of FDRN's published encoder after its last module, which
the paper counts and does not use."""


def make(name: str) -> InteractiveModel:
    torch.manual_seed(1)
    torch.set_num_threads(1)
    model = SMALL[name]()
    model.model_id = model.model_id or name
    return model.eval()


def inputs(model: InteractiveModel) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Images, crops, previous masks and regions of a batch of two."""
    generator = torch.Generator().manual_seed(2)
    if model.cut == "crop":
        images = torch.rand(2, 3, *model.input_size, generator=generator)
        return images, None, torch.rand(2, 1, *model.input_size, generator=generator), None
    images = torch.rand(2, 3, 96, 128, generator=generator)
    crops = torch.rand(2, 3, *SIZE, generator=generator)
    previous = torch.rand(2, 1, *SIZE, generator=generator)
    return images, crops, previous, torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.0, 0.25, 0.5, 1.0]])


@pytest.mark.parametrize("name", SMALL)
def test_logits_have_crop_size_and_scores_are_probabilities(name: str) -> None:
    model = make(name)
    images, crops, previous, rois = inputs(model)
    with torch.no_grad():
        prediction = model.refine(model.encode(images), CLICKS, previous, crops, rois)
    candidates = prediction.logits.shape[1]
    assert prediction.logits.shape == (2, candidates, *previous.shape[2:]) and prediction.logits.isfinite().all()
    assert prediction.scores.shape == (2, candidates)
    assert ((prediction.scores >= 0) & (prediction.scores <= 1)).all()
    assert len(prediction.query_ids) == len(set(prediction.query_ids)) == candidates


@pytest.mark.parametrize("name", SMALL)
def test_stored_encoding_gives_the_same_answer_under_regions(name: str, tmp_path: Path) -> None:
    model = make(name)
    images, crops, previous, rois = inputs(model)
    with torch.no_grad():
        fresh = model.encode(images)
        fresh.save(tmp_path / "encoding")
        at_once = model.refine(fresh, CLICKS, previous, crops, rois).logits
        cached = model.refine(Encoding.load(tmp_path / "encoding"), CLICKS, previous, crops, rois).logits
        half = model.refine(fresh.to(dtype=torch.float16).to(dtype=torch.float32), CLICKS, previous, crops, rois).logits
    assert torch.equal(at_once, cached)
    if model.cut == "image":  # others are never stored
        assert (at_once - half).abs().max() < 0.05


@pytest.mark.parametrize("name", SMALL)
def test_a_batch_answers_as_its_items_do(name: str) -> None:
    model = make(name)
    images, crops, previous, rois = inputs(model)
    with torch.no_grad():
        together = model.refine(model.encode(images), CLICKS, previous, crops, rois)
        for item in range(2):
            one = slice(item, item + 1)
            alone = model.refine(
                model.encode(images[one]),
                CLICKS[one],
                previous[one],
                None if crops is None else crops[one],
                None if rois is None else rois[one],
            )
            assert torch.allclose(alone.logits[:, 0], together.logits[one, 0], atol=2e-4)
            assert torch.allclose(alone.scores[:, 0], together.scores[one, 0], atol=2e-4)


@pytest.mark.parametrize("name", SMALL)
def test_gradient_reaches_every_parameter_that_acts(name: str) -> None:
    model = make(name).train()
    images, crops, previous, rois = inputs(model)
    prediction = model.refine(model.encode(images), CLICKS, previous, crops, rois)
    (prediction.logits.square().mean() + prediction.scores.square().mean()).backward()  # type: ignore[no-untyped-call]
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not {name for name in without if not WITHOUT_GRADIENT.match(name)}, without


@pytest.mark.parametrize("name", SMALL)
def test_weights_survive_the_round_trip(name: str, tmp_path: Path) -> None:
    model = make(name)
    save_checkpoint(model, tmp_path / "w.safetensors", {"steps": "3"}, dtype=torch.float32)
    again = SMALL[name]()
    _fill(again, load_file(tmp_path / "w.safetensors"), tmp_path / "w.safetensors")
    state = model.state_dict()
    assert {key: torch.equal(value, state[key]) for key, value in again.state_dict().items()} == dict.fromkeys(
        state, True
    )


@pytest.mark.parametrize("name", SMALL)
def test_clicks_may_be_none_or_hundreds_and_may_lie_outside_the_crop(name: str) -> None:
    model = make(name)
    images, crops, previous, rois = inputs(model)
    many = [Click(float(i % 90 - 10), float(i % 70 - 3), i % 3 > 0) for i in range(300)]
    with torch.no_grad():
        encoding = model.encode(images)
        prediction = model.refine(encoding, [[], many], previous, crops, rois)
    assert prediction.logits.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_clicks_change_the_answer(name: str) -> None:
    model = make(name)
    images, crops, previous, rois = inputs(model)
    with torch.no_grad():
        encoding = model.encode(images)
        some = model.refine(encoding, CLICKS, previous, crops, rois).logits
        moved = [[Click(c.y, c.x, not c.is_positive) for c in own] for own in CLICKS]
        assert not torch.allclose(some, model.refine(encoding, moved, previous, crops, rois).logits, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_crop_models_refuse_regions(name: str) -> None:
    model = make(name)
    images, crops, previous, _ = inputs(model)
    if model.cut == "image":
        pytest.skip("it takes regions")
    with pytest.raises(ValueError, match="crop"):
        model.refine(model.encode(images), CLICKS, previous, crops, torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2))


SLOW_TO_LEARN = {"fdrn-hrnet", "fdrn-timm", "ritm"}
"""Of the same parts as those that are faster; each learns a little in the fast tests (`test_iterative`)."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW_TO_LEARN else []) for n in SMALL if n != "toy"],
)
def test_one_image_can_be_learned_by_heart(name: str) -> None:
    model = make(name)
    images, crops, previous, rois = inputs(model)
    images, previous = images[:1], torch.zeros_like(previous[:1])
    crops, rois = (None if crops is None else crops[:1]), (None if rois is None else rois[:1])
    height, width = previous.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = (rows / height - 0.45) ** 2 + (columns / width - 0.5) ** 2 < 0.07
    target, iou = inside.float()[None, None], 0.0
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    clicks = [[Click(0.5 * width, 0.45 * height, True)]]
    for _ in range(300):
        logits = model.refine(model.encode(images), clicks, previous, crops, rois).logits[:, :1]
        predicted = logits > 0
        iou = float((predicted & (target > 0)).sum() / (predicted | (target > 0)).sum())
        if iou > 0.95:
            break
        optimizer.zero_grad()
        nfl(logits, target).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert iou > 0.95


@pytest.mark.parametrize("model_id", list_models())
def test_every_registered_model_is_made_by_its_name_and_has_a_small_form(model_id: str) -> None:
    with torch.device("meta"):
        model = create_model(model_id)
    assert model.model_id == model_id and not model.training
    assert type(model) in {type(build()) for build in SMALL.values()}


def test_an_input_that_a_plain_vit_cannot_take_is_named() -> None:
    with pytest.raises(BadInputError, match="multiples of 32"):
        create_model("simpleclick-xtiny-448").encode(torch.rand(1, 3, 450, 448))


@pytest.mark.parametrize("model_id", ["fdrn-compact"])
def test_shipped_weights_fit(model_id: str) -> None:
    assert load_model(model_id).model_id == model_id


def test_default_is_the_compact_model() -> None:
    assert load_model("default").model_id == "fdrn-compact"


def test_unknown_model_is_named() -> None:
    with pytest.raises(NotFoundError, match="nosuch"):
        load_model("nosuch")
