"""Models and adapters in a campaign's storage, named by the sha256 of their files.

A campaign keeps its own copy of the weights, so that a newer package changes new campaigns only. What is read is
checked against its name. Knows nothing about the catalogue.
"""

import json
import os
import tempfile
from pathlib import Path

from fsspec import AbstractFileSystem
from torch import Tensor
from torch import device as Device

from pipeline.adapters.files import AdapterMeta, check_fits, read_adapter
from pipeline.adapters.kinds import adapted
from pipeline.models import default_weights_path, load_model, resolve_model_id, weights_digest
from pipeline.models._base import InteractiveModel
from pipeline.storage.files import exists, is_local, join, open_storage, put_if_absent, read_bytes, sha256_file
from schemas.errors import BadCheckpointError, NotFoundError


def publish_model(storage_url: str, model_id: str, checkpoint: Path | None = None) -> tuple[str, str]:
    """Copy a model's weights into a storage; harmless when they are there.

    Args:
        storage_url: Of the campaign.
        model_id: Or an alias.
        checkpoint: A .safetensors file; None: the shipped weights.

    Returns:
        Digest of the file, and where it is.

    Raises:
        NotFoundError: Unknown model, or one without weights.
        BadCheckpointError: The checkpoint is missing, corrupt, of another model, or not .safetensors.
    """
    if checkpoint is None:
        return _publish(storage_url, resolve_model_id(model_id), default_weights_path(model_id))
    if not checkpoint.is_file():
        raise BadCheckpointError(f"There is no checkpoint {checkpoint}. Check the path.")
    if checkpoint.suffix != ".safetensors":
        raise BadCheckpointError(
            f"{checkpoint} is no .safetensors file. Convert official weights with `clickloop model convert`."
        )
    load_model(model_id, checkpoint)  # refuses what is not this model's
    return _publish(storage_url, resolve_model_id(model_id), checkpoint)


def _publish(storage_url: str, model_id: str, path: Path) -> tuple[str, str]:
    digest = weights_digest(path)
    fs, root = open_storage(storage_url)
    target = _model_path(root, digest)
    put_if_absent(fs, target, path)
    put_if_absent(fs, _facts_path(root, digest), json.dumps({"model_id": model_id}).encode())
    return digest, target


def load_model_by_digest(
    storage_url: str,
    model_digest: str,
    adapter_digest: str | None = None,
    *,
    cache_dir: str | None = None,
    device: Device | str = "cpu",
) -> InteractiveModel:
    """The model of a campaign, with an adapter laid over it if one is named.

    Args:
        storage_url: Of the campaign.
        model_digest: Of `publish_model`.
        adapter_digest: Of a file below adapters/.
        cache_dir: Local folder that keeps copies of a remote storage's files; None: the system's temporary folder.
        device: Where to put it.

    Raises:
        NotFoundError: The storage has no such file.
        BadCheckpointError: A file's bytes are not those of its name, or do not fit.
    """
    fs, root = open_storage(storage_url)
    try:
        model_id = json.loads(read_bytes(fs, _facts_path(root, model_digest)))["model_id"]
    except FileNotFoundError as error:
        raise NotFoundError(
            f"No model {model_digest} in {storage_url}. Is CLICKLOOP_STORAGE_URL what it was when the campaign was "
            "created? If the storage lost it, bring a backup back with `clickloop restore`."
        ) from error
    checkpoint = _local_copy(fs, _model_path(root, model_digest), model_digest, cache_dir)
    model = load_model(model_id, checkpoint=checkpoint, device=device)
    return model if adapter_digest is None else with_adapter(storage_url, model, adapter_digest, cache_dir=cache_dir)


def with_adapter(
    storage_url: str, model: InteractiveModel, adapter_digest: str, *, cache_dir: str | None = None
) -> InteractiveModel:
    """A model that shares all weights with `model` but those of a stored adapter.

    Raises:
        NotFoundError: The storage has no such adapter.
        BadCheckpointError: Its bytes are not those of its name, or do not fit the model.
    """
    return adapted(model, stored_adapter(storage_url, model, adapter_digest, cache_dir=cache_dir)[0])


def stored_adapter(
    storage_url: str, model: InteractiveModel, adapter_digest: str, *, cache_dir: str | None = None
) -> tuple[dict[str, Tensor], AdapterMeta]:
    """The tensors of a stored adapter, checked against the bare model, and what the file says about itself.

    Raises:
        NotFoundError: The storage has no such adapter.
        BadCheckpointError: Its bytes are not those of its name, or do not fit the model.
    """
    fs, root = open_storage(storage_url)
    path = _local_copy(fs, adapter_path(root, adapter_digest), adapter_digest, cache_dir)
    tensors, meta = read_adapter(path)
    check_fits(model, tensors, meta, f"Adapter {adapter_digest}")
    return tensors, meta


def has_model(storage_url: str, model_digest: str) -> bool:
    """Whether a model's weights and what is said of them are stored, asked anew."""
    fs, root = open_storage(storage_url)
    return exists(fs, _model_path(root, model_digest)) and exists(fs, _facts_path(root, model_digest))


def adapter_path(root: str, digest: str) -> str:
    """Where an adapter's file is below a storage's root."""
    return join(root, "adapters", digest, "weights.safetensors")


def _model_path(root: str, digest: str) -> str:
    return join(root, "models", f"{digest}.safetensors")


def _facts_path(root: str, digest: str) -> str:
    return join(root, "models", f"{digest}.json")


def _local_copy(fs: AbstractFileSystem, path: str, digest: str, cache_dir: str | None) -> Path:
    """The file on this machine, with the bytes that its name says."""
    if is_local(fs):
        local = Path(path)
        if not local.is_file():
            raise NotFoundError(f"There is no {path}. Was the storage moved or cleaned?")
        if sha256_file(local) != digest:
            raise BadCheckpointError(f"{path} has changed: its bytes are not those of its name. Restore the file.")
        return local
    folder = Path(cache_dir) if cache_dir else Path(tempfile.gettempdir()) / f"clickloop-{os.getuid()}-weights"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    local = folder / f"{digest}.safetensors"
    if local.is_file() and sha256_file(local) == digest:
        return local
    partial = local.with_name(f"{local.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(read_bytes(fs, path))
        if sha256_file(partial) != digest:
            raise BadCheckpointError(f"{path} has changed: its bytes are not those of its name. Restore the file.")
        os.replace(partial, local)
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no {path}. Was the storage moved or cleaned?") from error
    finally:
        partial.unlink(missing_ok=True)
    return local
