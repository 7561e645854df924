"""Official checkpoints of the papers' public code: which model one is of, and its weights under our names.

The envelope is {"state_dict", "config": {"class", "params"}} (RITM's, which SimpleClick, iCMFormer and AdaptiveClick
share); a bare state dict will do, too. Knows models only through the registry and their `remap_official`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.models._base import InteractiveModel
from pipeline.models._pickled import read_pickled
from pipeline.models._registry import create_model, list_models
from schemas.errors import BadCheckpointError


@dataclass(frozen=True)
class OfficialCheckpoint:
    """What a `.pth` file holds.

    Attributes:
        path: Of the file.
        class_path: Of the official model class, None where the file does not say.
        state: The official state dict.
    """

    path: Path
    class_path: str | None
    state: dict[str, Tensor] = field(repr=False)


def is_pickled(path: Path) -> bool:
    """Whether a file looks like a `.pth`, whatever its name: a zip file, or a pickle that is no safetensors header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start.startswith(b"PK\x03\x04") or (start.startswith(b"\x80") and start[8:] != b"{")


def read_official(path: Path) -> OfficialCheckpoint:
    """Read an official checkpoint without running code from it.

    Raises:
        BadCheckpointError: It is unreadable, or holds no state dict.
    """
    loaded = read_pickled(path)
    if not isinstance(loaded, dict):
        raise BadCheckpointError(f"{path} holds no state dict.")
    config = loaded.get("config")
    class_path = config.get("class") if isinstance(config, dict) else None
    state = loaded.get("state_dict", loaded.get("model", loaded))
    if not isinstance(state, dict) or not state or not all(isinstance(own, Tensor) for own in state.values()):
        raise BadCheckpointError(f"{path} holds no state dict: expected names and tensors under 'state_dict'.")
    return OfficialCheckpoint(path, class_path if isinstance(class_path, str) else None, state)


def identify(checkpoint: OfficialCheckpoint) -> tuple[str, dict[str, Any]]:
    """The model that a checkpoint is of, and the options under which it fits.

    Raises:
        BadCheckpointError: No registered model has this class, names and shapes.
    """
    tried = []
    for model_id in list_models():
        with torch.device("meta"):
            model = create_model(model_id)
        if not model.official_class or checkpoint.class_path not in (None, model.official_class):
            continue
        tried.append(model_id)
        options = model.options_from_official(checkpoint.state)
        if _fits(model_id, model, options, checkpoint.state):
            return model_id, options
    known = (
        f"its names or shapes are those of none of {', '.join(tried)}" if tried else "no model here is of that class"
    )
    raise BadCheckpointError(f"{checkpoint.path} is of class {checkpoint.class_path or '(not stated)'}: {known}.")


def official_weights(model: InteractiveModel, checkpoint: OfficialCheckpoint) -> dict[str, Tensor]:
    """The weights under our names, to be checked strictly against the model.

    Raises:
        BadCheckpointError: The file is of another class of model.
    """
    if not model.official_class:
        raise BadCheckpointError(
            f"{checkpoint.path} is a pickled checkpoint, and {model.model_id!r} has none that are public: pass the "
            ".safetensors file that this program wrote."
        )
    if checkpoint.class_path not in (None, model.official_class):
        found, _ = identify(checkpoint)
        raise BadCheckpointError(f"{checkpoint.path} holds weights of {found!r}, not {model.model_id!r}.")
    return model.remap_official(checkpoint.state)


def _fits(model_id: str, model: InteractiveModel, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    if options:
        with torch.device("meta"):
            model = create_model(model_id, **options)
    own = {name: value.shape for name, value in model.state_dict().items()}
    return own == {name: value.shape for name, value in model.remap_official(state).items()}
