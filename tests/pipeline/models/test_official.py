"""Official checkpoints: they load without their packages, and nothing that a file asks for is ever run."""

import argparse
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flows.cli import main
from pipeline.models import (
    begin_model,
    convert_checkpoint,
    create_model,
    load_model,
    outline_of,
    read_metadata,
    save_checkpoint,
)
from pipeline.models._official import check_settings, read_official
from pipeline.models._pickled import read_pickled
from pipeline.models.simpleclick import PlainVit, SimpleClick
from schemas.errors import BadCheckpointError, BadInputError
from tests.peaks import at_most
from tests.pipeline.models.small import SMALL, SMALL_VIT

MODEL = "simpleclick-xtiny-448"
CLASS = "isegm.model.is_plainvit_model.PlainVitModel"


@pytest.fixture
def isegm() -> Iterator[Any]:
    """A class of a package that exists only while a checkpoint is written, as the official loss does."""
    module = types.ModuleType("isegm")
    loss = type("CrossEntropyLoss", (nn.Module,), {"__module__": "isegm"})
    module.CrossEntropyLoss = loss  # type: ignore[attr-defined]
    sys.modules["isegm"] = module
    yield loss
    sys.modules.pop("isegm", None)


def official_state(model: SimpleClick) -> OrderedDict[str, torch.Tensor]:
    """The state dict as the official code saves it, with what it never uses."""
    state = OrderedDict(model.state_dict())
    positions = state["backbone.pos_embed"]
    state["backbone.pos_embed"] = torch.cat([torch.rand_like(positions[:, :1]), positions], 1)
    state["backbone.cls_token"] = torch.rand(1, 1, positions.shape[2])
    state["backbone.fc_norm.weight"] = torch.rand(positions.shape[2])
    state["backbone.head.weight"] = torch.rand(10, positions.shape[2])
    state["head.up_conv1.weight"] = torch.rand(3)
    return state


def save_official(
    path: Path,
    loss: Any,
    legacy: bool = False,
    class_path: str = CLASS,
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> SimpleClick:
    """Write a checkpoint of fresh xTiny weights in the official envelope; the model that it is of."""
    torch.manual_seed(5)
    model = create_model(MODEL)
    assert isinstance(model, SimpleClick)
    state = official_state(model)
    for name, value in changes.items():
        state[name.replace("__", ".")] = value
    stated = {"head_params": {"loss_decode": loss(), "align_corners": False}, "use_disks": True, **(settings or {})}
    params = {name: {"type": "builtin", "value": value, "specified": True} for name, value in stated.items()}
    envelope = {"state_dict": state, "config": {"class": class_path, "params": params}}
    torch.save(envelope, path, _use_new_zipfile_serialization=not legacy)
    return model


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("legacy", [False, True])
def test_official_files_load_without_their_package(tmp_path: Path, isegm: Any, legacy: bool) -> None:
    wanted = save_official(tmp_path / "m.pth", isegm, legacy)
    del sys.modules["isegm"]
    loaded = load_model(MODEL, tmp_path / "m.pth")
    assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_conversion_names_the_model_and_loses_nothing(
    tmp_path: Path, isegm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    save_official(tmp_path / "m.pth", isegm)
    target = tmp_path / "m.safetensors"
    assert main(["model", "convert", "--from", str(tmp_path / "m.pth"), "--to", str(target)]) == 0
    assert MODEL in capsys.readouterr().out
    assert read_metadata(target)["model"] == MODEL and len(read_metadata(target)["source_sha256"]) == 64
    pair = [load_model(MODEL, path).state_dict() for path in (tmp_path / "m.pth", target)]
    assert all(torch.equal(value, pair[1][name]) for name, value in pair[0].items())
    with pytest.raises(BadInputError, match="exists"):
        convert_checkpoint(tmp_path / "m.pth", target)
    assert main(["model", "convert", "--from", str(target), "--to", str(tmp_path / "n.safetensors")]) == 2
    assert "need no conversion" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neck__extra": torch.zeros(2)}, "1 unexpected: neck.extra"),
        ({"head__conv_seg__weight": torch.zeros(1, 7, 1, 1)}, "of another shape: head.conv_seg.weight"),
        ({"head__conv_seg__weight": torch.full((1, 128, 1, 1), torch.nan)}, "not finite"),
        ({"head__conv_seg__weight": torch.zeros(1, 128, 1, 1, dtype=torch.int64)}, "int64"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, isegm: Any, changes: dict[str, Any], message: str) -> None:
    save_official(tmp_path / "m.pth", isegm, **changes)
    with pytest.raises(BadCheckpointError, match=message):
        load_model(MODEL, tmp_path / "m.pth")


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    state = official_state(SimpleClick(SMALL_VIT))
    del state["neck.down_16.0.bias"]
    torch.save({"state_dict": state}, tmp_path / "m.pth")
    with pytest.raises(BadCheckpointError, match=r"missing"):
        load_model(MODEL, tmp_path / "m.pth")


@pytest.mark.parametrize("enveloped", [False, True])
def test_names_of_data_parallel_lose_their_prefix(tmp_path: Path, enveloped: bool) -> None:
    torch.manual_seed(5)
    wanted = create_model(MODEL)
    assert isinstance(wanted, SimpleClick)
    state = {f"module.{name}": value for name, value in official_state(wanted).items()}
    torch.save({"state_dict": state, "epoch": 3} if enveloped else state, tmp_path / "m.pth")
    loaded = load_model(MODEL, tmp_path / "m.pth").state_dict()
    assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in loaded.items())


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("legacy", [False, True])
def test_what_foreign_objects_hold_beside_the_weights_is_passed_over(tmp_path: Path, isegm: Any, legacy: bool) -> None:
    torch.manual_seed(5)
    wanted = create_model(MODEL)
    assert isinstance(wanted, SimpleClick)
    loss, state = isegm(), official_state(wanted)
    loss.register_buffer("class_weight", torch.ones(2))
    state["head.conv_seg.bias"] = nn.Parameter(state["head.conv_seg.bias"])
    state["head.conv_seg.bias"].lr_mult = 0.1  # type: ignore[attr-defined]
    beside = {"criterion": loss, "args": argparse.Namespace(gpus=[0]), "best": np.float64(0.9), "seen": np.arange(3)}
    torch.save({"state_dict": state, **beside}, tmp_path / "m.pth", _use_new_zipfile_serialization=not legacy)
    del sys.modules["isegm"]
    loaded = load_model(MODEL, tmp_path / "m.pth").state_dict()
    assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in loaded.items())


def test_a_file_says_what_it_holds_instead_of_a_state_dict(tmp_path: Path) -> None:
    state = official_state(SimpleClick(SMALL_VIT))
    sparse = torch.zeros(1).to_sparse()
    for name, held, told in (
        ("ema", {"ema": state, "epoch": 3}, "found them under 'ema': save that alone"),
        ("sparse", {"state_dict": {**state, "head.conv_seg.bias": sparse}}, "'head.conv_seg.bias' is not the name of"),
        ("eight bits", {"state_dict": {"a": torch.zeros(2).to(torch.float8_e5m2)}}, "quantised .* Export it again"),
    ):
        torch.save(held, tmp_path / f"{name}.pth")
        with pytest.raises(BadCheckpointError, match=rf"{name}\.pth.* {told}"):
            load_model(MODEL, tmp_path / f"{name}.pth")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_quantised_weights_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    model = create_model(MODEL)
    assert isinstance(model, SimpleClick)
    state = {name: value.to(dtype).contiguous() for name, value in official_state(model).items()}
    save_file(state, tmp_path / "m.safetensors")
    for attempt in (load_model, lambda _, path: convert_checkpoint(path, tmp_path / "n.safetensors")):
        with pytest.raises(BadCheckpointError, match=rf"holds {dtype} in .* quantised weights.* scales"):
            attempt(MODEL, tmp_path / "m.safetensors")


def test_official_weights_as_safetensors_load_and_convert(tmp_path: Path) -> None:
    torch.manual_seed(5)
    wanted = create_model(MODEL)
    assert isinstance(wanted, SimpleClick)
    state = {name: value.contiguous() for name, value in official_state(wanted).items()}
    save_file(state, tmp_path / "official.safetensors")
    assert convert_checkpoint(tmp_path / "official.safetensors", tmp_path / "own.safetensors") == MODEL
    for name in ("official", "own"):
        loaded = load_model(MODEL, tmp_path / f"{name}.safetensors").state_dict()
        assert all(torch.equal(value, wanted.state_dict()[key]) for key, value in loaded.items())
    save_file({"backbone.what": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(BadCheckpointError, match="fits none"):
        convert_checkpoint(tmp_path / "other.safetensors", tmp_path / "no.safetensors")


def test_a_conversion_that_finds_no_model_says_what_the_closest_one_misses(tmp_path: Path, isegm: Any) -> None:
    save_official(tmp_path / "m.pth", isegm, neck__extra=torch.zeros(2))
    with pytest.raises(BadCheckpointError, match=f"closest is '{MODEL}': 1 unexpected: neck.extra"):
        convert_checkpoint(tmp_path / "m.pth", tmp_path / "m.safetensors")


def test_a_checkpoint_of_another_model_says_whose_it_is(tmp_path: Path, isegm: Any) -> None:
    save_official(tmp_path / "m.pth", isegm)
    with pytest.raises(BadCheckpointError, match=f"holds weights of '{MODEL}', not 'simpleclick-base-448'"):
        load_model("simpleclick-base-448", tmp_path / "m.pth")
    with pytest.raises(BadCheckpointError, match=f"holds weights of '{MODEL}', .* none that are public"):
        load_model("fdrn-compact", tmp_path / "m.pth")
    save_official(tmp_path / "o.pth", isegm, class_path="somebody.Model")
    with pytest.raises(BadCheckpointError, match=r"somebody\.Model"):
        load_model(MODEL, tmp_path / "o.pth")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"norm_radius": 3}, "norm_radius=3, not 5"),
        ({"use_disks": False}, "use_disks=False, not True"),
        ({"random_split": True}, "random_split=True, not False"),
        ({"norm_mean_std": ([0.5] * 3, [0.5] * 3)}, r"norm_mean_std=\[\[0\.5"),
        ({"backbone_params": {"num_heads": 8, "depth": 8}}, r"backbone_params\.num_heads=8, not 4"),
    ],
)
def test_weights_that_would_segment_wrongly_are_refused(
    tmp_path: Path, isegm: Any, settings: dict[str, Any], told: str
) -> None:
    save_official(tmp_path / "m.pth", isegm, settings=settings)
    for attempt in (load_model, lambda _, path: convert_checkpoint(path, tmp_path / "m.safetensors")):
        with pytest.raises(BadCheckpointError, match=f"was made with {told}"):
            attempt(MODEL, tmp_path / "m.pth")
    assert not (tmp_path / "m.safetensors").exists()


def test_the_settings_of_the_official_scripts_load(tmp_path: Path, isegm: Any) -> None:
    mean_std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    given = {"norm_mean_std": mean_std, "norm_radius": 5, "with_prev_mask": True, "random_split": False}
    save_official(tmp_path / "m.pth", isegm, settings=given | {"backbone_params": {"num_heads": 4}})
    load_model(MODEL, tmp_path / "m.pth")


def test_a_shape_that_follows_from_a_setting_is_told_by_the_setting(tmp_path: Path, isegm: Any) -> None:
    narrow, settings = torch.zeros(160, 2, 16, 16), {"with_prev_mask": False}
    save_official(tmp_path / "m.pth", isegm, settings=settings, patch_embed_coords__proj__weight=narrow)
    for attempt in (load_model, lambda _, path: convert_checkpoint(path, tmp_path / "m.safetensors")):
        with pytest.raises(BadCheckpointError, match="with_prev_mask=False, not True"):
            attempt(MODEL, tmp_path / "m.pth")


def test_settings_inside_an_easydict_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("easydict")
    easy = type("EasyDict", (dict,), {"__module__": "easydict"})
    module.EasyDict = easy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "easydict", module)
    model = outline_of("adaptiveclick-base-448")
    for nheads in (8, 4):
        cfg = easy(random_split=False, MODEL=easy(MASK_FORMER=easy(NHEADS=nheads)), device=torch.device("cpu"))
        params = {"cfg": {"type": "builtin", "value": cfg, "specified": True}}
        config = {"class": model.official_class, "params": params}
        torch.save({"state_dict": {"a": torch.zeros(1)}, "config": config}, tmp_path / "m.pth")
        checkpoint = read_official(tmp_path / "m.pth")
        assert checkpoint.settings["cfg"]["MODEL"]["MASK_FORMER"]["NHEADS"] == nheads
        if nheads == 8:
            check_settings(model, checkpoint)
        else:
            with pytest.raises(BadCheckpointError, match=r"cfg\.MODEL\.MASK_FORMER\.NHEADS=4, not 8"):
                check_settings(model, checkpoint)


def test_what_holds_no_state_dict_says_what_it_holds(tmp_path: Path, isegm: Any) -> None:
    torch.save([{"state_dict": {"a": torch.zeros(1)}}] * 2, tmp_path / "list.pth")
    torch.save(isegm(), tmp_path / "module.pth")
    for name, told in (("list", "a list of 2"), ("module", "one object")):
        with pytest.raises(BadCheckpointError, match=f"{name}.pth holds {told}.* torch.save"):
            load_model(MODEL, tmp_path / f"{name}.pth")


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {**create_model(MODEL).state_dict(), 5: torch.zeros(3)}}, tmp_path / "m.pth")
    with pytest.raises(BadCheckpointError, match="expected names and tensors"):
        load_model(MODEL, tmp_path / "m.pth")
    with pytest.raises(BadCheckpointError, match="expected names and tensors"):
        convert_checkpoint(tmp_path / "m.pth", tmp_path / "m.safetensors")


@pytest.mark.parametrize("shape", [(90_000, 3), (2**39, 0)])
def test_a_window_that_a_shape_asks_for_takes_no_memory_before_it_fits(tmp_path: Path, shape: tuple[int, int]) -> None:
    name = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
    torch.save({name: torch.zeros(shape)}, tmp_path / "m.pth")
    with at_most(100), pytest.raises(BadCheckpointError, match="missing"):
        load_model("icmformer-swin-small-224", tmp_path / "m.pth")


class Poison:
    """Pickles to a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def hand_made(*operations: bytes) -> bytes:
    return b"\x80\x02" + b"".join(operations) + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def poisoned_pickles(canary: Path) -> dict[str, bytes]:
    """Files' worth of pickles that would leave a canary if anything in them ran."""
    touch = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w').close()"
    command = text(touch)
    return {
        "system": pickle.dumps(Poison(os.system, touch), 2),
        "eval": pickle.dumps(Poison(eval, code), 2),
        "exec in the state dict": pickle.dumps({"state_dict": OrderedDict(a=Poison(exec, code))}, 2),
        "stack global": pickle.dumps(Poison(os.system, touch), 4),
        "inst": hand_made(b"(", command, b"ios\nsystem\n"),
        "obj": hand_made(b"(cos\nsystem\n", command, b"o"),
        "newobj": hand_made(b"cos\nsystem\n", command, b"\x85\x81"),
        "build": hand_made(b"ctorch.nn\nModule\n)\x81}", text("x"), b"cos\nsystem\n", command, b"\x85Rsb"),
        "getattr": hand_made(b"cbuiltins\ngetattr\ncos\nsystem\n", text("__call__"), b"\x86R", command, b"\x85R"),
        "rebuild with a call": hand_made(
            b"ctorch._utils\n_rebuild_tensor_v2\n(cos\nsystem\n", command, b"\x85RK\x00))tR"
        ),
        "extension": hand_made(b"\x82\x01"),
        "persistent id": hand_made(b"cos\nsystem\n", command, b"\x85RQ"),
        "huge memo": hand_made(b"Nr\xff\xff\xff\x7f"),
    }


NAMES = list(poisoned_pickles(Path("x")))


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_a_file_runs(tmp_path: Path, name: str, form: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "m.pth"
    data = poisoned_pickles(canary)[name]
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/byteorder", "little")
    else:
        path.write_bytes(data)
    with pytest.raises(BadCheckpointError, match=r"m\.pth"):
        load_model(MODEL, path)
    assert not canary.exists()


def test_damaged_and_foreign_files_are_refused_with_one_line(tmp_path: Path, isegm: Any) -> None:
    save_official(tmp_path / "m.pth", isegm)
    whole = (tmp_path / "m.pth").read_bytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    cases = {
        "cut": whole[: len(whole) // 2], "head": whole[:100], "empty": b"", "text": b"hello", "pickle": pickle.dumps(3),
        "list": pickle.dumps([1, 2]), "compressed": packed.getvalue(), "zip": b"PK\x03\x04" + bytes(200),
    }  # fmt: skip
    for name, data in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(BadCheckpointError, match=name):
            load_model(MODEL, path)


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(4)}}, tmp_path / "m.pth")
    with zipfile.ZipFile(tmp_path / "m.pth") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in parts if name.endswith("data.pkl"))
    assert parts[pickled].count(b"K\x04") == 2  # the storage's size, then the tensor's
    head, _, tail = parts[pickled].rpartition(b"K\x04")
    parts[pickled] = head + b"K\x64" + tail
    with zipfile.ZipFile(tmp_path / "m.pth", "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    with pytest.raises(BadCheckpointError, match="does not lie inside its storage"):
        read_pickled(tmp_path / "m.pth")


def test_a_small_file_cannot_name_an_object_in_endlessly_many_places(tmp_path: Path) -> None:
    nested: Any = [1]
    for _ in range(19):
        nested = [nested] * 50
    (tmp_path / "m.pth").write_bytes(pickle.dumps(nested))
    with pytest.raises(BadCheckpointError, match="neither a zip"):
        read_pickled(tmp_path / "m.pth")
    torch.save(nested, tmp_path / "n.pth")
    assert isinstance(read_pickled(tmp_path / "n.pth"), list)


def mae_state(side: int = 7) -> dict[str, torch.Tensor]:
    """What MAE saves of a small ViT."""
    state = dict(SimpleClick(SMALL_VIT).backbone.state_dict())
    state["pos_embed"] = torch.rand(1, 1 + side * side, 32)
    return state | {
        "cls_token": torch.rand(1, 1, 32), "norm.weight": torch.rand(32), "decoder_embed.weight": torch.rand(3)
    }  # fmt: skip


@pytest.mark.parametrize("family", ["simpleclick", "icmformer", "adaptiveclick"])
def test_an_mae_encoder_fills_a_plain_vit(family: str) -> None:
    torch.manual_seed(2)
    state, vit = mae_state(), SMALL[family]().backbone
    assert isinstance(vit, PlainVit)
    own = {name: value.clone() for name, value in vit.state_dict().items()}
    vit.load_mae(state, Path("mae.pth"))
    for name, value in vit.state_dict().items():
        if name == "pos_embed":
            assert value.shape == (1, 16, 32) and not torch.equal(value, own[name])
        else:
            assert torch.equal(value, state.get(name, own[name])), name
    del state["blocks.0.norm1.weight"]
    with pytest.raises(BadCheckpointError, match=r"blocks\.0\.norm1\.weight"):
        vit.load_mae(state, Path("mae.pth"))


def test_an_mae_encoder_begins_a_training_and_is_no_model(tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = create_model(MODEL).backbone
    state = {name: value.contiguous() for name, value in source.state_dict().items()}  # type: ignore[union-attr]
    state["cls_token"] = torch.rand(1, 1, 160)
    torch.save({"model": state}, tmp_path / "mae.pth")
    for attempt in (load_model, lambda _, path: convert_checkpoint(path, tmp_path / "m.safetensors")):
        with pytest.raises(BadCheckpointError, match=r"holds a ViT encoder alone, .*--resume"):
            attempt(MODEL, tmp_path / "mae.pth")
    save_file(state, tmp_path / "mae.safetensors")  # as timm distributes them
    for name in ("mae.pth", "mae.safetensors"):
        model = begin_model(MODEL, tmp_path / name)
        assert model.training
        assert torch.equal(model.backbone.blocks[3].mlp.fc2.weight, source.blocks[3].mlp.fc2.weight)  # type: ignore[union-attr]
    with pytest.raises(BadCheckpointError, match=r"mae\.pth is no MAE encoder of this size"):
        begin_model("simpleclick-base-448", tmp_path / "mae.pth")
    with pytest.raises(BadCheckpointError, match="holds a ViT encoder alone"):
        begin_model("ritm-hrnet18s", tmp_path / "mae.pth")


def test_a_clickadapter_begins_with_the_weights_of_its_host(tmp_path: Path) -> None:
    torch.manual_seed(4)
    host = create_model(MODEL)
    assert isinstance(host, SimpleClick)
    torch.save({"state_dict": official_state(host)}, tmp_path / "host.pth")
    save_checkpoint(host, tmp_path / "host.safetensors", dtype=torch.float32)
    for name in ("host.pth", "host.safetensors"):
        model = begin_model(f"clickadapter-{MODEL}", tmp_path / name)
        assert torch.equal(model.host.head.conv_seg.weight, host.head.conv_seg.weight)
        assert not any(parameter.requires_grad for parameter in model.host.parameters())
    save_checkpoint(model, tmp_path / "whole.safetensors", dtype=torch.float32)
    again = begin_model(f"clickadapter-{MODEL}", tmp_path / "whole.safetensors")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(BadCheckpointError, match=f"{MODEL!r}, not 'segformer-b0-448'"):
        begin_model("clickadapter-segformer-b0-448", tmp_path / "host.safetensors")
