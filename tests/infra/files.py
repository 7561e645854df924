"""The files below infra/, read as what they are."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
INFRA = ROOT / "infra"
COMPOSE = INFRA / "compose.yaml"
KUBERNETES = INFRA / "kubernetes"
TEXTS = sorted(path for path in INFRA.rglob("*") if path.is_file() and path.name != ".env")


def documents(path: Path) -> list[Any]:
    """The documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def compose() -> dict[str, Any]:
    """The compose file, with anchors and merges resolved."""
    (found,) = documents(COMPOSE)
    return dict(found)


def objects() -> list[dict[str, Any]]:
    """The objects that kustomize applies, and the example of the secrets."""
    (kustomization,) = documents(KUBERNETES / "kustomization.yaml")
    names = [*kustomization["resources"], "secrets.example.yaml"]
    return [document for name in names for document in documents(KUBERNETES / name)]


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    """Kubernetes objects of some kinds."""
    return [found for found in objects() if found["kind"] in kinds]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and pod template (metadata and spec) of everything that runs."""
    for found in objects():
        name, spec = f"{found['kind']} {found['metadata']['name']}", found.get("spec", {})
        if "template" in spec:
            yield name, spec["template"]
        if found["kind"] == "RayCluster":
            yield f"{name} head", spec["headGroupSpec"]["template"]
            for group in spec["workerGroupSpecs"]:
                yield f"{name} {group['groupName']}", group["template"]


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and container, init containers included."""
    for name, pod in pods():
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            yield f"{name} {container['name']}", container


def commands() -> list[list[str]]:
    """Every command of a container and of a page's code blocks, as words; of a shell's script each part."""
    found: list[Any] = [service.get("command") for service in compose()["services"].values()]
    found += [container.get("args", container.get("command")) for _, container in containers()]
    lists = [[str(word) for word in words] for words in found if words]
    lists += [
        re.findall(r'"([^"]+)"', line) for line in (INFRA / "Containerfile").read_text().splitlines() if "CMD" in line
    ]
    scripts = [words[2] for words in lists if words[:2] == ["sh", "-c"]]
    blocks = [
        block for page in INFRA.rglob("*.md") for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    lines = [line for block in blocks for line in block.splitlines()]
    parts = [part for text in [*scripts, *lines] for part in re.split(r"&&|\||;|#", text)]
    return [words for words in lists if words[:2] != ["sh", "-c"]] + [part.split() for part in parts if part.split()]
