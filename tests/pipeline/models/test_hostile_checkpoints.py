"""Generated damage to checkpoints: a refusal in words, or weights; nothing in a file runs, whatever is around it."""

import contextlib
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.models import create_model, load_model, read_metadata, save_checkpoint
from pipeline.models._pickled import read_pickled
from schemas.errors import BadCheckpointError
from tests.hostile_json import json_values, mutated
from tests.peaks import at_most
from tests.pipeline.models.test_official import poisoned_pickles

MODEL = "toy-color"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def own(folder: Path) -> bytes:
    """A good file of ours."""
    path = folder / "good.safetensors"
    save_checkpoint(create_model(MODEL), path, {"steps": "7", "options": "{}"}, dtype=torch.float32)
    return path.read_bytes()


def pth(folder: Path, legacy: bool) -> bytes:
    path = folder / "good.pth"
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(4, dtype=torch.int64)}
    torch.save({"state_dict": state, "epoch": 3}, path, _use_new_zipfile_serialization=not legacy)
    return path.read_bytes()


def damaged(draw: Callable[[Any], Any], whole: bytes) -> bytes:
    """With some bytes changed, or cut off."""
    data = bytearray(whole)
    places = st.integers(0, 1 << 16)  # the same for every file: the older form's size differs from run to run
    for at in draw(st.lists(places, min_size=1, max_size=4)):
        data[at % len(data)] = draw(st.integers(0, 255))
    cut = draw(st.none() | st.none() | places)
    return bytes(data if cut is None else data[: cut % len(data)])


def refused_or(load: Callable[[], Any]) -> Any:
    """What was read, None for a refusal in words; anything else that is raised fails."""
    with contextlib.suppress(BadCheckpointError):
        return load()
    return None


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_files_of_ours(folder: Path, own: bytes, data: st.DataObject) -> None:
    path = folder / "damaged.safetensors"
    path.write_bytes(damaged(data.draw, own))
    model = refused_or(lambda: load_model(MODEL, path))
    assert model is None or all(value.isfinite().all() for value in model.state_dict().values())


@settings(max_examples=200)
@given(data=st.data())
def test_changed_headers(folder: Path, own: bytes, data: st.DataObject) -> None:
    (length,) = struct.unpack("<Q", own[:8])
    header = json.dumps(mutated(data.draw, json.loads(own[8 : 8 + length]))).encode()
    stated = len(header) if data.draw(st.integers(0, 9)) else data.draw(st.integers(0, 2**64 - 1))
    path = folder / "changed.safetensors"
    path.write_bytes(struct.pack("<Q", stated) + header + own[8 + length :])
    refused_or(lambda: load_model(MODEL, path))
    refused_or(lambda: read_metadata(path))


@settings(max_examples=100)
@given(options=json_values | st.dictionaries(st.sampled_from(["model_id", "config", "depth", "x"]), json_values))
def test_changed_options(folder: Path, options: Any) -> None:
    path = folder / "options.safetensors"
    save_checkpoint(create_model(MODEL), path, {"options": json.dumps(options)}, dtype=torch.float32)
    refused_or(lambda: load_model(MODEL, path))


def test_a_tower_of_options_is_refused(folder: Path) -> None:
    path = folder / "tower.safetensors"
    save_checkpoint(create_model(MODEL), path, {"options": "[" * 100_000}, dtype=torch.float32)
    with pytest.raises(BadCheckpointError):
        load_model(MODEL, path)


@pytest.mark.parametrize("window", [10**6, 10**30, -3, 0, 1.5, "x", None, [12], {}])
def test_options_that_ask_for_any_memory_are_refused(folder: Path, window: Any) -> None:
    path = folder / "window.safetensors"
    header = {"model": "icmformer-swin-small-224", "options": json.dumps({"window": window})}
    save_checkpoint(create_model(MODEL), path, header, dtype=torch.float32)
    with at_most(300), pytest.raises(BadCheckpointError):
        load_model("icmformer-swin-small-224", path)


def zipped(pickled: bytes, **parts: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in parts.items():
            archive.writestr(f"archive/{name}", content)
    return packed.getvalue()


@pytest.mark.parametrize("form", ["zip", "zip's pickle", "legacy"])
@settings(max_examples=200)
@given(data=st.data())
def test_damaged_pickles(folder: Path, form: str, data: st.DataObject) -> None:
    whole = pth(folder, form == "legacy")
    path = folder / "damaged.pth"
    if form == "zip's pickle":
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        path.write_bytes(zipped(damaged(data.draw, parts.pop("data.pkl")), **parts))
    else:
        path.write_bytes(damaged(data.draw, whole))
    with at_most(300):
        refused_or(lambda: read_pickled(path))
    refused_or(lambda: load_model(MODEL, path))


@pytest.mark.parametrize("name", list(poisoned_pickles(Path("x"))))
@settings(max_examples=25)
@given(data=st.data())
def test_nothing_in_damaged_poison_runs(folder: Path, name: str, data: st.DataObject) -> None:
    canary = folder / "canary"
    pickled = damaged(data.draw, poisoned_pickles(canary)[name])
    path = folder / "poison.pth"
    path.write_bytes(zipped(pickled) if data.draw(st.booleans()) else pickled)
    refused_or(lambda: read_pickled(path))
    assert not canary.exists()
