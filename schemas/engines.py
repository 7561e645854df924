"""Engines: how a refiner runs the network of a click, and which one `clickloop doctor --tune` found best here."""

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import BadInputError

EngineName = Literal["torch-float32", "torch-bfloat16", "onnx-float32"]
EngineSetting = Literal["auto", EngineName]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
DEFAULT_ENGINE: EngineName = "torch-float32"
"""What every machine has, what the others are held against, and what a mask without a pinned engine is made with."""

_ONNX_PACKAGES = ("onnxruntime", "onnx", "onnxscript")


class EngineFigures(BaseModel):
    """One engine against `torch-float32`: the same clicks on the same objects.

    Attributes:
        engine: Which.
        step_ms: Median milliseconds of a click's step, without encoding the image.
        agreement: Mean IoU of the two masks after each click of a sequence, each engine refining its own masks: what an
            annotator gets, small differences that grow from click to click included.
        agreement_p5: 5th percentile likewise.
        agrees: Whether the engine may be chosen.
    """

    model_config = ConfigDict(frozen=True)

    engine: EngineName
    step_ms: float
    agreement: float
    agreement_p5: float
    agrees: bool


class Tuning(BaseModel):
    """What WORKSPACE/engine.json says; it holds for this machine, these packages and this model only.

    Attributes:
        machine: Of `machine_name`.
        packages: Of `runtime_versions`.
        model_digest: sha256 of the weights.
        engine: The fastest that agrees.
        threads: Torch threads that were used.
        images: What was clicked, for people.
        clicks: How many masks were compared per engine.
        figures: Of every engine that could be tried.
    """

    model_config = ConfigDict(frozen=True)

    machine: str
    packages: dict[str, str]
    model_digest: str
    engine: EngineName
    threads: int
    images: str
    clicks: int
    figures: tuple[EngineFigures, ...]


def check_available(engine: EngineSetting, device: str = "cpu") -> None:
    """Refuse an engine that this machine lacks; imports none.

    Args:
        engine: Which; "auto" takes what there is.
        device: "cpu" or "cuda".

    Raises:
        BadInputError: Says what is missing.
    """
    if engine != "onnx-float32":
        return
    missing = [name for name in _ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise BadInputError(
            f"Engine {engine} needs {', '.join(missing)}. Install clickloop[onnx], or choose another CLICKLOOP_ENGINE."
        )
    if device != "cpu":
        raise BadInputError(f"Engine {engine} runs on CPUs only; this machine uses {device}. Set CLICKLOOP_ENGINE.")


def tuning_path(workspace: Path) -> Path:
    """Where `clickloop doctor --tune` leaves what it found."""
    return workspace.resolve() / "engine.json"


def read_tuning(workspace: Path) -> Tuning | None:
    """What was found, None where nothing (readable) is: it can be measured again any time."""
    try:
        return Tuning.model_validate_json(tuning_path(workspace).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def runtime_versions() -> dict[str, str]:
    """Versions of the installed packages that engines run on."""
    found = {}
    for name in ("torch", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's model, as the system calls it; clouds call several generations the same, so with its numbers."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        lines = []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" not in said:
        return platform.processor() or platform.machine()
    return f"{said['model name']} (family {said.get('cpu family')}, model {said.get('model')})"
