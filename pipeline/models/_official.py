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
from safetensors.torch import load_file
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
        settings: Parameters of the class's constructor that the file states; objects in them are placeholders.
    """

    path: Path
    class_path: str | None
    state: dict[str, Tensor] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict, repr=False)


def is_pickled(path: Path) -> bool:
    """Whether a file looks like a `.pth`, whatever its name: a zip file, or a pickle that is no safetensors header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start.startswith(b"PK\x03\x04") or (start.startswith(b"\x80") and start[8:] != b"{")


def read_official(path: Path) -> OfficialCheckpoint:
    """Read an official checkpoint without running code from it: a `.pth`, or a state dict as readable safetensors.

    Raises:
        BadCheckpointError: It is unreadable, or holds no state dict.
    """
    loaded = read_pickled(path) if is_pickled(path) else load_file(path)
    if not isinstance(loaded, dict):
        what = f"a list of {len(loaded)}" if isinstance(loaded, list) else "one object (a whole model, perhaps)"
        raise BadCheckpointError(
            f"{path} holds {what}, no state dict. Save one: torch.save({{'state_dict': model.state_dict()}}, ...)."
        )
    config = loaded.get("config")
    config = config if isinstance(config, dict) else {}
    class_path, params = config.get("class"), config.get("params")
    state = loaded.get("state_dict", loaded.get("model", loaded))
    if not isinstance(state, dict) or not state or not all(map(_is_entry, state.items())):
        raise BadCheckpointError(
            f"{path} holds no state dict: expected names and tensors under 'state_dict'{_instead(loaded, state)}."
        )
    if all(name.startswith(_PARALLEL) for name in state):
        state = {name.removeprefix(_PARALLEL): value for name, value in state.items()}
    params = params if isinstance(params, dict) else {}
    settings = {str(name): own["value"] for name, own in params.items() if isinstance(own, dict) and "value" in own}
    return OfficialCheckpoint(path, class_path if isinstance(class_path, str) else None, state, settings)


def _instead(loaded: dict[Any, Any], state: Any) -> str:
    """What there is instead of a state dict; which of several (averaged weights, say) is for the user to choose."""
    found = [name for name, own in loaded.items() if isinstance(own, dict) and own and all(map(_is_entry, own.items()))]
    if found:
        return f", and found them under {', '.join(map(repr, found))}: save that alone"
    odd = [name for name, own in state.items() if not _is_entry((name, own))] if isinstance(state, dict) else []
    return f", and {odd[0]!r} is not the name of one" if odd else ""


def _is_entry(entry: tuple[Any, Any]) -> bool:
    return isinstance(entry[0], str) and isinstance(entry[1], Tensor)


def identify(checkpoint: OfficialCheckpoint) -> tuple[str, dict[str, Any]]:
    """The model that a checkpoint is of, and the options under which it fits.

    Raises:
        BadCheckpointError: No registered model has this class, names and shapes.
    """
    _refuse_encoder(checkpoint)
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
        told = "; ".join([tell_misfits(wrong), *_other_settings(model, checkpoint)])
        tried.append((sum(len(names) for names in wrong.values()), model_id, told))
    if not tried:
        known = "no model here is of that class"
    else:
        _, closest, told = min(tried)
        known = f"it fits none of {len(tried)} models here. The closest is {closest!r}: {told}"
    raise BadCheckpointError(f"{checkpoint.path} is of class {checkpoint.class_path or '(not stated)'}: {known}.")


def official_weights(model: InteractiveModel, checkpoint: OfficialCheckpoint) -> dict[str, Tensor]:
    """The weights under our names, to be checked strictly against the model.

    Raises:
        BadCheckpointError: The file is of another class of model, or of no model that takes clicks.
    """
    _refuse_encoder(checkpoint)
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


def check_settings(model: InteractiveModel, checkpoint: OfficialCheckpoint) -> None:
    """Refuse weights of a network that differs in what no name or shape shows: it would load, and segment wrongly.

    Raises:
        BadCheckpointError: The file states so.
    """
    wrong = _other_settings(model, checkpoint)
    if wrong:
        raise BadCheckpointError(
            f"{checkpoint.path} was made with {'; '.join(wrong)}: {model.model_id!r} would misread what it learned. "
            "There is no model here for it."
        )


def _other_settings(model: InteractiveModel, checkpoint: OfficialCheckpoint) -> list[str]:
    """What a file states otherwise than the model's network has it, as "name=value, not value"."""
    found: list[str] = []

    def compare(own: Mapping[str, Any], stated: Mapping[str, Any], prefix: str) -> None:
        for name, value in own.items():
            other = stated.get(name)
            if isinstance(value, Mapping):
                compare(value, other if isinstance(other, dict) else {}, f"{prefix}{name}.")
            elif name in stated and _is_plain(other) and other != value:
                found.append(f"{prefix}{name}={other!r}, not {value!r}")

    compare(model.official_settings(), checkpoint.settings, "")
    return found


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str) or (isinstance(value, list) and all(map(_is_plain, value)))


def is_encoder(checkpoint: OfficialCheckpoint) -> bool:
    """Whether it is what MAE or timm save of a ViT, by its names: published trainings begin with it."""
    return {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= checkpoint.state.keys()


def _refuse_encoder(checkpoint: OfficialCheckpoint) -> None:
    if is_encoder(checkpoint):
        raise BadCheckpointError(
            f"{checkpoint.path} holds a ViT encoder alone, as MAE's files do, and no model that takes clicks. A "
            "training may begin with it: `clickloop train CONFIG --resume FILE`, of a model with a plain ViT."
        )


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
