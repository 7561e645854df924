"""The import names are ours, and the tree says what the README says."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", ["schemas", "pipeline", "workers", "flows"])
def test_import_name_resolves_to_this_project(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert (Path(module.__file__).parent / "py.typed").is_file()


def test_readme_tree_names_only_paths_that_exist() -> None:
    tree = re.search(r"```\n(\.\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree is not None
    folders: list[str] = []
    named = 0
    for line in tree.group(1).splitlines()[1:]:
        match = re.match(r"^((?:│   |    )*)(?:├── |└── )(\S+)", line)
        if match is None:
            continue
        depth = len(match.group(1)) // 4
        folders[depth:] = [match.group(2).rstrip("/")]
        assert ROOT.joinpath(*folders).exists(), "/".join(folders)
        named += 1
    assert named > 20


def test_changelog_names_the_packaged_version() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"## [{version.group(1)}]" in (ROOT / "CHANGELOG.md").read_text()
