"""The state of a training: on a disk that is full, and of another model."""

from pathlib import Path

import pytest
import torch

from pipeline.training.checkpoint import load_state, save_state
from schemas.errors import BadCheckpointError, OutOfSpaceError
from tests.disks import full_disk


def test_a_full_disk_is_called_one_and_the_old_state_stays(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_state(path, {"step": 1, "weights": torch.zeros(10)})
    with full_disk(3000), pytest.raises(OutOfSpaceError, match="No space left to write"):
        save_state(path, {"step": 2, "weights": torch.zeros(100_000)})
    assert load_state(path)["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_the_state_of_another_models_training_says_so(tmp_path: Path) -> None:
    save_state(tmp_path / "state.pt", {"config": {"model_id": "ritm-hrnet18"}})
    assert load_state(tmp_path / "state.pt", "ritm-hrnet18")
    with pytest.raises(BadCheckpointError, match="of a training of 'ritm-hrnet18', not of 'fdrn-compact'"):
        load_state(tmp_path / "state.pt", "fdrn-compact")


def test_a_file_that_asks_for_code_is_refused_without_advice_to_run_it(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "config": torch.nn.ReLU()}, tmp_path / "official.pt")
    with pytest.raises(BadCheckpointError, match=r"not one that this program wrote\. .* an official \.pth") as refused:
        load_state(tmp_path / "official.pt")
    assert "weights_only" not in refused.value.message
