"""Names of models and how to make them. Architectures register builders; weights are loaded by `_checkpoint`."""

from collections.abc import Callable
from typing import Any

import torch

from pipeline.models._base import InteractiveModel
from schemas.models import resolve_model_id

_BUILDERS: dict[str, Callable[..., InteractiveModel]] = {}
_FAMILIES: dict[str, Callable[..., InteractiveModel]] = {}


def register_model(model_id: str) -> Callable[[Callable[..., InteractiveModel]], Callable[..., InteractiveModel]]:
    """Decorator: register a builder (a function or class without required arguments) under an id."""

    def register(builder: Callable[..., InteractiveModel]) -> Callable[..., InteractiveModel]:
        if model_id in _BUILDERS:
            raise ValueError(f"Model id {model_id!r} is registered twice.")
        _BUILDERS[model_id] = builder
        return builder

    return register


def register_family(prefix: str) -> Callable[[Callable[..., InteractiveModel]], Callable[..., InteractiveModel]]:
    """Decorator: register a builder of all ids that begin with a prefix; it is given the rest of the id.

    Args:
        prefix: With its separator, such as "fdrn-timm:".
    """

    def register(builder: Callable[..., InteractiveModel]) -> Callable[..., InteractiveModel]:
        if prefix in _FAMILIES:
            raise ValueError(f"Family {prefix!r} is registered twice.")
        _FAMILIES[prefix] = builder
        return builder

    return register


def list_models() -> list[str]:
    """All single ids that `create_model` knows, sorted; aliases and families not included."""
    return sorted(_BUILDERS)


def list_families() -> list[str]:
    """Prefixes of ids that name a member, sorted."""
    return sorted(_FAMILIES)


def create_model(model_id: str, **options: Any) -> InteractiveModel:
    """Make a model with fresh weights, in eval mode; convolutions in channels-last memory, where CPUs are faster.

    Raises:
        NotFoundError: No such model, or no such member of its family.
    """
    resolved = resolve_model_id(model_id)
    prefix = _family_of(resolved)
    if resolved in _BUILDERS or prefix is None:
        model = _BUILDERS[resolved](**options)
    else:
        model = _FAMILIES[prefix](resolved.removeprefix(prefix), **options)
    model.model_id = resolved
    return model.to(memory_format=torch.channels_last).eval()


def outline_of(model_id: str) -> InteractiveModel:
    """A model without values, on torch's meta device: its shapes, in no time. See `create_model`."""
    with torch.device("meta"):
        return create_model(model_id)


def _family_of(model_id: str) -> str | None:
    return next((prefix for prefix in _FAMILIES if model_id.startswith(prefix) and model_id != prefix), None)
