"""Weights on disk: read strictly, named by digest, never by running code found in a file.

Knows safetensors files with a metadata header; does not know training states (`training.checkpoint`) or where a
campaign keeps its files.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.models._base import InteractiveModel
from pipeline.models._registry import create_model, resolve_model_id
from schemas.errors import BadCheckpointError, NotFoundError

_WEIGHTS = Path(__file__).parent / "weights"
_LISTED = 5


def default_weights_path(model_id: str) -> Path:
    """The weights that ship with the package.

    Raises:
        NotFoundError: The model is unknown, or no weights ship with it.
    """
    path = _WEIGHTS / f"{resolve_model_id(model_id)}.safetensors"
    if not path.exists():
        raise NotFoundError(f"No weights ship with {model_id!r}. Pass the path of a checkpoint.")
    return path


def weights_digest(path: str | Path) -> str:
    """sha256 of the file, hexadecimal: what embeddings, events and masks are pinned to."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def save_checkpoint(
    model: InteractiveModel,
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write weights as safetensors, whole or not at all.

    Args:
        model: Whose weights (and whose id is noted in the header).
        path: Of the file; its folder exists.
        metadata: Further strings for the header.
        tensors: Written instead of the model's own, under the same names (averaged weights, say).
        dtype: Floating tensors are stored in it.
    """
    state = model.state_dict() if tensors is None else tensors
    stored = {
        name: (value.to(dtype) if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in state.items()
    }
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    header = {"format": "clickloop-weights-1", "model": model.model_id, **(metadata or {})}
    partial.write_bytes(save(stored, header))
    os.replace(partial, path)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The header of a checkpoint.

    Raises:
        BadCheckpointError: It is no safetensors file.
    """
    return _read(Path(path))[1]


def load_model(
    model_id: str,
    checkpoint: str | Path | None = None,
    adapter: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> InteractiveModel:
    """Make a model with its weights, in eval mode, float32.

    Args:
        model_id: Registered id, or "default".
        checkpoint: A .safetensors file; None takes what ships with the package.
        adapter: A small trained part laid over the weights (see `pipeline.adapters`).
        device: Where to put it.

    Raises:
        NotFoundError: Unknown model, or one that ships no weights and got no checkpoint.
        BadCheckpointError: A file is missing, corrupt, of another model, or does not fit.
    """
    resolved = resolve_model_id(model_id)
    model = create_model(resolved)
    path = Path(checkpoint) if checkpoint is not None else default_weights_path(resolved)
    tensors, metadata = _read(path)
    if metadata.get("model", resolved) != resolved:
        raise BadCheckpointError(f"{path} holds weights of {metadata['model']!r}, not {resolved!r}.")
    _fill(model, tensors, path)
    if adapter is not None:
        from pipeline.adapters.head import load_adapter  # here, as adapters know models, not the other way round

        load_adapter(model, Path(adapter))
    return model.to(device).eval()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise BadCheckpointError(f"There is no checkpoint {path}. Check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, json.JSONDecodeError) as error:
        raise BadCheckpointError(
            f"{path} is not a readable safetensors file ({error}). Pass a .safetensors file of this program; pickled "
            "files are not opened."
        ) from error


def _fill(model: InteractiveModel, tensors: Mapping[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - own.keys())
    misshapen = sorted(name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape)
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(wrong.values()):
        told = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}"
            for kind, names in wrong.items()
            if names
        )
        raise BadCheckpointError(f"{path} does not fit {model.model_id!r}: {told}.", **wrong)
    not_finite = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if not_finite:
        raise BadCheckpointError(f"{path} holds values that are not finite, in {not_finite[0]!r}. Export it again.")
    model.load_state_dict({name: value.to(own[name].dtype) for name, value in tensors.items()})
