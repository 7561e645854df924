"""Official checkpoints of the papers' public code: which model one is of, and its weights under our names.

The envelope is {"state_dict", "config": {"class", "params"}} (RITM's, which SimpleClick, iCMFormer and AdaptiveClick
share); a bare state dict will do, too, and names may begin with "module.", as torch's DataParallel saves them. Knows
models only through the registry and their `remap_official`.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.models._base import InteractiveModel
from pipeline.models._pickled import read_pickled
from pipeline.models._registry import create_model, list_models, outline_of
from schemas.errors import BadCheckpointError

_LISTED = 5
_PARALLEL = "module."
"""What DataParallel puts before each name."""


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
    if all(str(name).startswith(_PARALLEL) for name in state):
        state = {name.removeprefix(_PARALLEL): value for name, value in state.items()}
    return OfficialCheckpoint(path, class_path if isinstance(class_path, str) else None, state)


def identify(checkpoint: OfficialCheckpoint) -> tuple[str, dict[str, Any]]:
    """The model that a checkpoint is of, and the options under which it fits.

    Raises:
        BadCheckpointError: No registered model has this class, names and shapes.
    """
    tried: list[tuple[int, str, str]] = []
    for model_id in list_models():
        model = _outline(model_id)
        if not model.official_class or checkpoint.class_path not in (None, model.official_class):
            continue
        options = model.options_from_official(checkpoint.state)
        if options:
            with torch.device("meta"):
                model = create_model(model_id, **options)
        wrong = misfits(model, model.remap_official(checkpoint.state))
        if not wrong:
            return model_id, options
        tried.append((sum(len(names) for names in wrong.values()), model_id, tell_misfits(wrong)))
    if not tried:
        known = "no model here is of that class"
    else:
        _, closest, told = min(tried)
        known = f"it fits none of {len(tried)} models here. The closest is {closest!r}: {told}"
    raise BadCheckpointError(f"{checkpoint.path} is of class {checkpoint.class_path or '(not stated)'}: {known}.")


def official_weights(model: InteractiveModel, checkpoint: OfficialCheckpoint) -> dict[str, Tensor]:
    """The weights under our names, to be checked strictly against the model.

    Raises:
        BadCheckpointError: The file is of another class of model.
    """
    if not model.official_class:
        found, _ = identify(checkpoint)
        raise BadCheckpointError(
            f"{checkpoint.path} holds weights of {found!r}, and {model.model_id!r} has none that are public: name the "
            "model that they are of, or pass the .safetensors file that this program wrote."
        )
    if checkpoint.class_path not in (None, model.official_class):
        found, _ = identify(checkpoint)
        raise BadCheckpointError(f"{checkpoint.path} holds weights of {found!r}, not {model.model_id!r}.")
    return model.remap_official(checkpoint.state)


@functools.cache
def _outline(model_id: str) -> InteractiveModel:
    """`outline_of`, made once: all of them take seconds."""
    return outline_of(model_id)


def misfits(model: InteractiveModel, tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Names that keep tensors from being a model's weights, by what is wrong with them; empty where they fit."""
    own = model.state_dict()
    wrong = {
        "missing": sorted(own.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - own.keys()),
        "of another shape": sorted(n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape),
    }
    return {kind: names for kind, names in wrong.items() if names}


def tell_misfits(wrong: Mapping[str, list[str]]) -> str:
    """What `misfits` found, in words."""
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}"
        for kind, names in wrong.items()
    )
