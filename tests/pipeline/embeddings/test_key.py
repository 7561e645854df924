"""The model key of embeddings."""

import copy

import torch

from pipeline.embeddings.key import KEY_LENGTH, encoder_digest, key_of_model, model_key
from pipeline.models import create_model
from pipeline.models._base import InteractiveModel


def fdrn() -> InteractiveModel:
    """The compact model with fixed random weights."""
    torch.manual_seed(0)
    return create_model("fdrn-compact")


def test_weights_before_the_cut_change_the_key_and_those_after_it_do_not() -> None:
    model = fdrn()
    key = key_of_model(model)
    assert len(key) == KEY_LENGTH
    adapted = copy.deepcopy(model)
    with torch.no_grad():
        for name in adapted.adapter_parameter_names("head"):
            adapted.get_parameter(name).add_(1.0)
    assert key_of_model(adapted) == key
    with torch.no_grad():
        adapted.get_parameter("f1.to_high.bias").add_(1e-3)
    assert key_of_model(adapted) != key


def test_buffers_of_the_encoder_count() -> None:
    model = fdrn()
    before = encoder_digest(model)
    with torch.no_grad():
        next(buffer for name, buffer in model.named_buffers() if name.startswith("f1.")).add_(1)
    assert encoder_digest(model) != before


def test_image_size_and_model_count() -> None:
    model, larger = create_model("toy-color"), create_model("toy-color")
    larger.image_size = 2 * model.image_size
    assert len({key_of_model(model), key_of_model(larger), key_of_model(fdrn())}) == 3


def test_the_window_counts() -> None:
    model = create_model("toy-color")
    assert len({key_of_model(model, window) for window in (None, (0.0, 255.0), (0.0, 4095.0))}) == 3


def test_every_fact_counts_and_their_order_does_not() -> None:
    assert model_key("e", {"a": 1, "b": 2}) == model_key("e", {"b": 2, "a": 1})
    assert len({model_key("e", {"a": 1}), model_key("e", {"a": 2}), model_key("f", {"a": 1})}) == 3
