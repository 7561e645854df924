"""The state of a training on a disk that is full."""

from pathlib import Path

import pytest
import torch

from pipeline.training.checkpoint import load_state, save_state
from schemas.errors import OutOfSpaceError
from tests.disks import full_disk


def test_a_full_disk_is_called_one_and_the_old_state_stays(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_state(path, {"step": 1, "weights": torch.zeros(10)})
    with full_disk(3000), pytest.raises(OutOfSpaceError, match="No space left to write"):
        save_state(path, {"step": 2, "weights": torch.zeros(100_000)})
    assert load_state(path)["step"] == 1
    assert list(tmp_path.iterdir()) == [path]
