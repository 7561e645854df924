"""Bad checkpoints are refused with a reason, and nothing in them is run."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.models import (
    create_model,
    default_weights_path,
    load_model,
    read_metadata,
    save_checkpoint,
    weights_digest,
)
from schemas.errors import BadCheckpointError, NotFoundError, OutOfSpaceError
from tests.disks import full_disk


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.safetensors"
    save_checkpoint(create_model("toy-color"), path, {"steps": "7"}, dtype=torch.float32)
    return path


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, ("evil-was-here",))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpointError, match="no checkpoint"):
        load_model("toy-color", tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"GIF89a" * 50, b"\xff" * 64])
def test_foreign_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadCheckpointError, match="not a readable safetensors"):
        load_model("toy-color", path)


def test_truncated_file(good: Path) -> None:
    good.write_bytes(good.read_bytes()[:-3])
    with pytest.raises(BadCheckpointError, match="not a readable safetensors"):
        load_model("toy-color", good)


def test_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(BadCheckpointError, match="pickled"):
        load_model("toy-color", path)
    assert not (tmp_path / "evil-was-here").exists()


def test_weights_of_another_model(good: Path) -> None:
    with pytest.raises(BadCheckpointError, match="toy-color"):
        load_model("fdrn-compact", good)


@pytest.mark.parametrize("change", ["missing", "unexpected", "of another shape", "not finite", "not finite in float32"])
def test_tensors_that_do_not_fit(tmp_path: Path, change: str) -> None:
    state = {name: value.clone() for name, value in create_model("toy-color").state_dict().items()}
    name = sorted(state)[0]
    if change == "missing":
        del state[name]
    elif change == "unexpected":
        state["stranger"] = torch.zeros(2)
    elif change == "of another shape":
        state[name] = torch.zeros(2, 5, 2)
    elif change == "not finite in float32":
        state[name] = torch.full_like(state[name], 1e300, dtype=torch.float64)
        change = "not finite"
    else:
        state[name] = torch.full_like(state[name], float("nan"))
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(BadCheckpointError, match=change):
        load_model("toy-color", tmp_path / "w.safetensors")


def test_digest_is_of_the_file_and_header_is_kept(good: Path) -> None:
    assert weights_digest(good) == hashlib.sha256(good.read_bytes()).hexdigest()
    assert read_metadata(good)["steps"] == "7"
    assert read_metadata(good)["model"] == "toy-color"


def test_a_full_disk_is_called_one_and_leaves_nothing(tmp_path: Path) -> None:
    with full_disk(100), pytest.raises(OutOfSpaceError, match="No space left to write"):
        save_checkpoint(create_model("toy-color"), tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


def test_shipped_file_is_within_15_mib() -> None:
    assert default_weights_path("default").stat().st_size <= 15 * 2**20


def test_no_weights_for_an_unknown_model() -> None:
    with pytest.raises(NotFoundError):
        default_weights_path("nosuch")
