"""The demo makes its workspace anew, and removes nothing else."""

from pathlib import Path

import pytest

from flows.demo import _clear, main
from pipeline.storage.lock import WorkspaceLock
from schemas.errors import WorkspaceLockedError


def test_a_folder_that_the_demo_did_not_make_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").touch()
    assert main(["--workspace", str(tmp_path)]) == 2
    assert "did not make" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_its_own_workspace_is_made_anew_unless_a_command_works_in_it(tmp_path: Path) -> None:
    workspace = tmp_path / "demo"
    _clear(workspace)
    (workspace / "old").touch()
    with WorkspaceLock(workspace), pytest.raises(WorkspaceLockedError):
        _clear(workspace)
    assert (workspace / "old").exists()
    _clear(workspace)
    assert not (workspace / "old").exists()
