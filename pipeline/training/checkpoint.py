"""The full state of a training run on disk: written whole or not at all, read without running code."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from pipeline.storage.files import as_space_error
from schemas.errors import BadCheckpointError

FORMAT = "clickloop-training-1"
_INSTEAD = "Start without --resume, or from weights: a .safetensors file, or for published runs an official .pth."


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write atomically: a killed run leaves the old file or the new one.

    Raises:
        OutOfSpaceError: The disk is full; the old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__  # torch has words of its own for it
        if isinstance(cause, OSError):
            raise as_space_error(cause, path) from error
        raise


def load_state(path: Path, model_id: str | None = None) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Args:
        path: The file.
        model_id: Of the model that is trained on, where the state's configuration names its own.

    Raises:
        BadCheckpointError: The file is missing, corrupt, of another model or something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the unpickler met
        # torch's own words on what it refuses advise to run it
        why = "it is not one that this program wrote" if isinstance(error, pickle.UnpicklingError) else error
        raise BadCheckpointError(f"{path} is no readable training state: {why}. {_INSTEAD}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise BadCheckpointError(f"{path} is not a training state of this version ({FORMAT}). {_INSTEAD}")
    if model_id is not None and (own := state["config"]["model_id"]) != model_id:
        raise BadCheckpointError(f"{path} is the state of a training of {own!r}, not of {model_id!r}.")
    return state
