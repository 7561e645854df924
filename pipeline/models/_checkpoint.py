"""Weights on disk: read strictly, named by digest, never by running code found in a file.

Knows safetensors files with a metadata header, and official checkpoints through `_official`; does not know training
states (`training.checkpoint`) or where a campaign keeps its files.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.models._base import InteractiveModel
from pipeline.models._official import (
    OfficialCheckpoint,
    check_settings,
    identify,
    is_encoder,
    is_pickled,
    misfits,
    official_weights,
    read_official,
    tell_misfits,
)
from pipeline.models._registry import create_model, outline_of
from pipeline.storage.files import as_space_error
from schemas.errors import BadCheckpointError, BadInputError, NotFoundError
from schemas.models import resolve_model_id

_WEIGHTS = Path(__file__).parent / "weights"
_OPTIONS = "options"
"""Entry of the header: the builder's options, as JSON."""
_MODEL = "model"
"""Entry of the header: the model's id; official weights that were saved as safetensors have none."""


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

    Raises:
        OutOfSpaceError: The disk is full; nothing is left of the file.
    """
    state = model.state_dict() if tensors is None else tensors
    stored = {
        name: (value.to(dtype) if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in state.items()
    }
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    header = {"format": "clickloop-weights-1", _MODEL: model.model_id, **(metadata or {})}
    try:
        partial.write_bytes(save(stored, header))
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise as_space_error(error, path) from error


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
        checkpoint: A .safetensors file, or an official checkpoint (.pth, read without running code from it, or its
            state dict as .safetensors); None takes what ships with the package.
        adapter: A small trained part laid over the weights (see `pipeline.adapters`).
        device: Where to put it.

    Raises:
        NotFoundError: Unknown model, or one that ships no weights and got no checkpoint.
        BadCheckpointError: A file is missing, corrupt, of another model, or does not fit.
    """
    resolved = resolve_model_id(model_id)
    path = Path(checkpoint) if checkpoint is not None else default_weights_path(resolved)
    model = _load_official(resolved, path) if _looks_pickled(path) else _load_own(resolved, path)
    if adapter is not None:
        from pipeline.adapters.files import load_adapted  # here, as adapters know models, not the other way round

        model, meta = load_adapted(model, Path(adapter))
        if meta.model_digest and not _looks_pickled(path) and meta.model_digest != (own := weights_digest(path)):
            raise BadCheckpointError(
                f"{adapter} was trained on weights {meta.model_digest[:12]}, and {path} is {own[:12]}. "
                "Name the checkpoint that it belongs to."
            )
    return model.to(device).eval()


def begin_model(model_id: str, weights: Path) -> InteractiveModel:
    """A model whose training is to begin with given weights, in training mode.

    Args:
        model_id: Registered id.
        weights: The model's own; or of a ClickAdapter its host's; or MAE's encoder for the plain ViT of a model.

    Raises:
        NotFoundError, BadCheckpointError: See `load_model`; or it is an encoder of another size.
    """
    from pipeline.models.clickadapter import ClickAdapter  # here, as models know this module
    from pipeline.models.simpleclick import PlainVit

    stated = None if _looks_pickled(weights) else read_metadata(weights).get(_MODEL)
    outline = outline_of(model_id)
    if isinstance(outline, ClickAdapter) and stated != model_id:
        model = create_model(model_id)
        model.get_submodule("host").load_state_dict(load_model(outline.host.model_id, weights).state_dict())
        return model.train()
    has_vit = isinstance(getattr(outline, "backbone", None), PlainVit)
    if stated is None and has_vit and is_encoder(checkpoint := read_official(weights)):
        model = create_model(model_id)
        vit = model.get_submodule("backbone")
        assert isinstance(vit, PlainVit)
        vit.load_mae(checkpoint.state, weights)
        return model.train()
    return load_model(model_id, weights).train()


def convert_checkpoint(source: Path, target: Path) -> str:
    """Write an official checkpoint as safetensors, float32, whole or not at all; the id of the model that it is of.

    Raises:
        BadCheckpointError: It is unreadable, of this program, of no model here, or holds values that are not finite.
        BadInputError: The target exists.
    """
    if target.exists():
        raise BadInputError(f"{target} exists. Choose another name, or remove it.")
    if not _looks_pickled(source) and _MODEL in read_metadata(source):
        raise BadCheckpointError(f"{source} is a .safetensors file of this program: they need no conversion.")
    checkpoint = read_official(source)
    model_id, options = identify(checkpoint)
    model = create_model(model_id, **options)
    check_settings(model, checkpoint)
    _fill(model, official_weights(model, checkpoint), source)
    header = {"source": source.name, "source_sha256": weights_digest(source)}
    save_checkpoint(model, target, header | ({_OPTIONS: json.dumps(options)} if options else {}), dtype=torch.float32)
    return model_id


def _looks_pickled(path: Path) -> bool:
    return path.is_file() and is_pickled(path)


def _load_official(model_id: str, path: Path) -> InteractiveModel:
    checkpoint = read_official(path)
    outline = outline_of(model_id)
    options: dict[str, Any] = {}
    if checkpoint.class_path in (None, outline.official_class):
        options = outline.options_from_official(checkpoint.state)
        if options:
            with torch.device("meta"):  # without memory first: they follow from a shape in the file
                outline = create_model(model_id, **options)
    weights = official_weights(outline, checkpoint)
    try:
        _check_fit(outline, weights, path)
        model = create_model(model_id, **options)
        _fill(model, weights, path)
    except BadCheckpointError as error:
        found = _other_model(checkpoint, model_id)
        if found is None:
            check_settings(outline, checkpoint)  # names and shapes follow from them
        raise BadCheckpointError(f"{path} holds weights of {found!r}, not {model_id!r}.") if found else error from None
    check_settings(model, checkpoint)
    return model


def _other_model(checkpoint: OfficialCheckpoint, model_id: str) -> str | None:
    """The model that a checkpoint is of, if it is another one that is known."""
    try:
        found, _ = identify(checkpoint)
    except BadCheckpointError:
        return None
    return None if found == model_id else found


def _load_own(model_id: str, path: Path) -> InteractiveModel:
    tensors, metadata = _read(path)
    if metadata.get(_MODEL, model_id) != model_id:
        raise BadCheckpointError(f"{path} holds weights of {metadata[_MODEL]!r}, not {model_id!r}.")
    if _MODEL not in metadata and (outline := outline_of(model_id)).official_class and misfits(outline, tensors):
        return _load_official(model_id, path)  # saved as safetensors by somebody else
    model = create_model(model_id, **_checked_options(model_id, metadata.get(_OPTIONS, "{}"), tensors, path))
    _fill(model, tensors, path)
    return model


def _checked_options(model_id: str, text: str, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The builder's options by a file's header, tried without memory first: they may ask for any."""
    if text == "{}":
        return {}
    try:
        options: dict[str, Any] = json.loads(text)
        with torch.device("meta"):
            model = create_model(model_id, **options)
    except Exception as error:  # whatever a builder raises for what its type hints exclude
        raise BadCheckpointError(f"{path}: its header names options that {model_id!r} has not: {error}.") from error
    _check_fit(model, tensors, path)
    return options


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise BadCheckpointError(f"There is no checkpoint {path}. Check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, json.JSONDecodeError) as error:
        raise BadCheckpointError(
            f"{path} is not a readable safetensors file ({error}), and no official .pth either. Check the path, and "
            "that the file was downloaded whole."
        ) from error


def _check_fit(model: InteractiveModel, tensors: Mapping[str, Tensor], path: Path) -> None:
    wrong = misfits(model, tensors)
    if wrong:
        raise BadCheckpointError(f"{path} does not fit {model.model_id!r}: {tell_misfits(wrong)}.", **wrong)


def _fill(model: InteractiveModel, tensors: Mapping[str, Tensor], path: Path) -> None:
    _check_fit(model, tensors, path)
    own = model.state_dict()
    other = [name for name, value in tensors.items() if value.is_floating_point() != own[name].is_floating_point()]
    if other:
        raise BadCheckpointError(f"{path} holds {tensors[other[0]].dtype} in {other[0]!r}. Export it again.")
    quantised = [name for name, value in tensors.items() if value.is_floating_point() and value.dtype.itemsize < 2]
    if quantised:
        raise BadCheckpointError(
            f"{path} holds {tensors[quantised[0]].dtype} in {quantised[0]!r}: quantised weights, which are nothing "
            "without their scales. Export it again, as float16 or float32."
        )
    cast = {name: value.to(own[name].dtype) for name, value in tensors.items()}
    not_finite = [name for name, value in cast.items() if value.is_floating_point() and not value.isfinite().all()]
    if not_finite:
        raise BadCheckpointError(f"{path} holds values that are not finite, in {not_finite[0]!r}. Export it again.")
    model.load_state_dict(cast)
