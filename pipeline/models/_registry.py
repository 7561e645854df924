"""Names of models and how to make them. Architectures register builders; weights are loaded by `_checkpoint`."""

from collections.abc import Callable
from typing import Any

from pipeline.models._base import InteractiveModel
from schemas.errors import NotFoundError

_BUILDERS: dict[str, Callable[..., InteractiveModel]] = {}
_ALIASES = {"default": "fdrn-compact"}


def register_model(model_id: str) -> Callable[[Callable[..., InteractiveModel]], Callable[..., InteractiveModel]]:
    """Decorator: register a builder (a function or class without required arguments) under an id."""

    def register(builder: Callable[..., InteractiveModel]) -> Callable[..., InteractiveModel]:
        if model_id in _BUILDERS:
            raise ValueError(f"Model id {model_id!r} is registered twice.")
        _BUILDERS[model_id] = builder
        return builder

    return register


def list_models() -> list[str]:
    """All ids that `create_model` knows, sorted; aliases not included."""
    return sorted(_BUILDERS)


def resolve_model_id(model_id: str) -> str:
    """The registered id behind an id or alias.

    Raises:
        NotFoundError: No such model.
    """
    resolved = _ALIASES.get(model_id, model_id)
    if resolved not in _BUILDERS:
        raise NotFoundError(f"Unknown model {model_id!r}. Known: {', '.join([*sorted(_ALIASES), *list_models()])}.")
    return resolved


def create_model(model_id: str, **options: Any) -> InteractiveModel:
    """Make a model with fresh weights, in eval mode.

    Raises:
        NotFoundError: No such model.
    """
    resolved = resolve_model_id(model_id)
    model = _BUILDERS[resolved](**options)
    model.model_id = resolved
    return model.eval()
