"""An adapter on disk: named tensors and what they were trained on. What they do to a model is for `kinds` to know."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.adapters.kinds import adapted, adapter_tensors
from pipeline.models._base import InteractiveModel
from schemas.errors import BadCheckpointError, BadInputError

FORMAT = "clickloop-adapter-1"
_KEY = "clickloop"


@dataclass(frozen=True)
class AdapterMeta:
    """What an adapter file says about itself.

    Attributes:
        kind: Of `pipeline.adapters.kinds`.
        model_id: The model that it fits.
        model_digest: sha256 of that model's weights file; empty when unknown.
        model_key: Key of the embeddings that it was trained on and reads; empty when unknown.
        parent_digest: The adapter that its training started from, None for the bare model.
        snapshot_id: The snapshot of masks that it was trained on, None outside a campaign.
        seed: Of the training.
    """

    kind: str
    model_id: str
    model_digest: str = ""
    model_key: str = ""
    parent_digest: str | None = None
    snapshot_id: str | None = None
    seed: int = 0


def adapter_bytes(tensors: Mapping[str, Tensor], meta: AdapterMeta) -> bytes:
    """The file: safetensors whose bytes depend on tensors and meta only."""
    # One metadata entry: safetensors writes several in no fixed order, and the digest names the file.
    head = {_KEY: json.dumps({"format": FORMAT, **asdict(meta)}, sort_keys=True)}
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, head)


def save_adapter(path: str | Path, tensors: Mapping[str, Tensor], meta: AdapterMeta) -> str:
    """Write an adapter file, whole or not at all.

    Returns:
        The sha256 of the file, hex: the adapter's digest.
    """
    data = adapter_bytes(tensors, meta)
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, target)
    return hashlib.sha256(data).hexdigest()


def adapter_digest(path: str | Path) -> str:
    """sha256 of an adapter file, hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_adapter(path: str | Path) -> tuple[dict[str, Tensor], AdapterMeta]:
    """Read an adapter file without a model.

    Raises:
        BadCheckpointError: The file is missing, corrupt, no adapter, or holds numbers that are not finite.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if meta.pop("format") != FORMAT:
            raise BadCheckpointError(f"{path} is an adapter of another format than {FORMAT}.")
        known = AdapterMeta(**meta)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BadCheckpointError(
            f"{path} is no readable adapter file: {error!r}. Give one that retraining made."
        ) from error
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise BadCheckpointError(f"{path} holds numbers that are not finite, in {broken[0]}.")
    return tensors, known


def load_adapted(model: InteractiveModel, path: str | Path) -> tuple[InteractiveModel, AdapterMeta]:
    """A model with an adapter file laid over it, sharing all else; strict: exactly that kind's names and shapes.

    Raises:
        BadCheckpointError: The file is unreadable, or made for another model.
    """
    tensors, meta = read_adapter(path)
    check_fits(model, tensors, meta, str(path))
    return adapted(model, tensors), meta


def check_fits(model: InteractiveModel, tensors: Mapping[str, Tensor], meta: AdapterMeta, source: str) -> None:
    """Check an adapter against a model.

    Raises:
        BadCheckpointError: It was made for another model, or names and shapes are not those of the model.
    """
    if meta.model_id != model.model_id:
        raise BadCheckpointError(f"{source} was made for model {meta.model_id!r}, not for {model.model_id!r}.")
    try:
        expected = {name: tensor.shape for name, tensor in adapter_tensors(model, meta.kind).items()}
    except BadInputError as error:
        raise BadCheckpointError(f"{source}: {error.message}") from error
    if expected.keys() != tensors.keys():
        differing = sorted(expected.keys() ^ tensors.keys())[:5]
        raise BadCheckpointError(f"{source} does not fit {model.model_id!r}: missing or unexpected {differing}.")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise BadCheckpointError(
                f"{source} does not fit {model.model_id!r}: {name} is {tuple(tensors[name].shape)}, not {tuple(shape)}."
            )
