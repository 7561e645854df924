"""The list of ids without torch says what the registry makes."""

import pytest

from pipeline.models import default_weights_path, list_families, list_models, resolve_model_id
from schemas.errors import NotFoundError
from schemas.models import MODEL_ALIASES, MODEL_FAMILIES, MODEL_IDS, SHIPPED_MODELS, checked_model_id


def test_the_list_is_the_registry() -> None:
    assert list(MODEL_IDS) == list_models() and list(MODEL_FAMILIES) == list_families()
    assert {resolve_model_id(alias) for alias in MODEL_ALIASES} <= set(MODEL_IDS)


def test_shipped_models_are_those_with_weights() -> None:
    weights = default_weights_path("default").parent
    assert {path.stem for path in weights.glob("*.safetensors")} == set(SHIPPED_MODELS)


def test_a_model_needs_weights_that_ship_or_come_along() -> None:
    assert checked_model_id("default", False) == "fdrn-compact"
    assert checked_model_id("simpleclick-base-448", True) == "simpleclick-base-448"
    assert checked_model_id("fdrn-timm:vit_base_patch16_224", True) == "fdrn-timm:vit_base_patch16_224"
    with pytest.raises(NotFoundError, match="No weights ship"):
        checked_model_id("simpleclick-base-448", False)
    for unknown in ("nope", "fdrn-timm:", "clickadapter-"):
        with pytest.raises(NotFoundError, match="Unknown model"):
            checked_model_id(unknown, True)
