"""Models side by side: costs are counted, a process that fails says why, missteps cost clicks."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.adapters.files import AdapterMeta, save_adapter
from pipeline.adapters.kinds import adapter_tensors
from pipeline.data.coco import read_coco
from pipeline.evaluation.compare import CompareOptions, Entry, _load, compare, parse_entry
from pipeline.evaluation.costs import count_gmacs, measure_costs
from pipeline.evaluation.plot import check_plot_path, plot_comparison
from pipeline.evaluation.run import evaluate
from pipeline.models import create_model
from schemas.errors import BadCheckpointError, BadInputError, NotFoundError
from tests.flows.scenes import write_pictures
from tests.pipeline.models.small import SMALL


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folder of a tiny COCO set: images/ and truth.json."""
    write_pictures(tmp_path, 2)
    return tmp_path


def test_multiply_accumulates_are_those_of_the_layers() -> None:
    layer, x = torch.nn.Conv2d(4, 8, 3, padding=1), torch.rand(1, 4, 10, 12)
    assert count_gmacs(lambda: layer(x)) == pytest.approx(8 * 4 * 9 * 10 * 12 / 1e9)


@pytest.mark.parametrize("name", list(SMALL))
def test_every_architecture_is_counted(name: str) -> None:
    costs = measure_costs(SMALL[name]().eval(), [np.zeros((40, 50, 3), np.uint8)])
    assert costs.refine_gmacs > 0 and costs.learnable == costs.parameters


def test_models_are_measured_side_by_side_and_drawn(data: Path, tmp_path: Path) -> None:
    told: list[dict[str, object]] = []
    samples = functools.partial(read_coco, data / "truth.json", data / "images")
    entries = [Entry(model_id="toy-color"), Entry(model_id="fdrn-compact")]
    done = compare(entries, samples, CompareOptions(limit=2, max_clicks=3, misled=True, data="tiny"), told.append)
    assert [one.name for one in done] == ["toy-color", "fdrn-compact"] and {one.weights for one in done} == {"shipped"}
    compact = done[1]
    assert compact.costs.parameters == sum(p.numel() for p in create_model("fdrn-compact").parameters())
    assert 1 < compact.costs.refine_gmacs < 2 and (compact.costs.encode_gmacs or 0) > 1
    assert compact.costs.click_ms > 0 and (compact.costs.peak_mib is None or compact.costs.peak_mib > 5)
    assert compact.report.samples == 2 and compact.report.data == "tiny" and compact.report.protocol.misleading == 0
    assert compact.misled is not None and compact.misled.protocol.misleading == 5
    assert {own["model"] for own in told} == {"toy-color", "fdrn-compact"}
    plot_comparison(done, tmp_path / "curves.svg")
    assert "fdrn-compact" in (tmp_path / "curves.svg").read_text()


def test_random_weights_are_taken_only_when_asked_for_and_named(data: Path) -> None:
    samples = functools.partial(read_coco, data / "truth.json", data / "images")
    entry = [Entry(model_id="simpleclick-xtiny-448")]
    with pytest.raises(NotFoundError, match="No weights ship"):
        compare(entry, samples, CompareOptions(limit=1, max_clicks=1))
    done = compare(entry, samples, CompareOptions(limit=1, max_clicks=1, random_weights=True))
    assert done[0].weights == "random" and done[0].report.checkpoint_sha256 is None
    # 4.96 as published, less what the head saves by fusing each map on its own grid
    saved = 128 * 128 * (3 * 112**2 - 56**2 - 28**2 - 14**2) / 1e9
    assert done[0].costs.encode_ms is None
    assert done[0].costs.refine_gmacs == pytest.approx(4.96 - saved, abs=0.01)


def test_a_bad_checkpoint_is_reported_by_the_process_that_read_it(data: Path) -> None:
    bad = data / "bad.safetensors"
    bad.write_bytes(b"no")
    samples = functools.partial(read_coco, data / "truth.json", data / "images")
    with pytest.raises(BadCheckpointError, match=r"bad\.safetensors"):
        compare([Entry(model_id="toy-color", checkpoint=bad)], samples, CompareOptions(limit=1))


def test_an_adapter_of_other_weights_is_refused(tmp_path: Path) -> None:
    tensors = adapter_tensors(create_model("fdrn-compact"), "head")
    path = tmp_path / "a.safetensors"
    save_adapter(path, tensors, AdapterMeta(kind="head", model_id="fdrn-compact", model_digest="0" * 64))
    with pytest.raises(BadCheckpointError, match="was trained on weights 000000000000"):
        _load(Entry(model_id="fdrn-compact", adapter=path), CompareOptions())


def test_entries_are_read_as_people_write_them(tmp_path: Path) -> None:
    (tmp_path / "w").touch()
    (tmp_path / "a").touch()
    entry = parse_entry(f"default={tmp_path}/w+{tmp_path}/a")
    assert (entry.model_id, entry.checkpoint, entry.adapter) == ("fdrn-compact", tmp_path / "w", tmp_path / "a")
    for absent in (f"+{tmp_path}/absent", "=", "+", f"={tmp_path}/w+"):
        with pytest.raises(BadInputError, match="there is no file"):
            parse_entry(f"default{absent}")
    with pytest.raises(NotFoundError):
        parse_entry("nosuch")


def test_a_plus_in_the_name_of_a_file_is_no_adapter(tmp_path: Path) -> None:
    folder = tmp_path / "c+l"
    folder.mkdir()
    for name in ("w=1+2", "a+b"):
        (folder / name).touch()
    weights, adapter = folder / "w=1+2", folder / "a+b"
    for text, files in (
        (f"={weights}", (weights, None)),
        (f"={weights}+{adapter}", (weights, adapter)),
        (f"+{adapter}", (None, adapter)),
        (f"+{weights}", (None, weights)),
    ):
        entry = parse_entry(f"default{text}")
        assert (entry.model_id, entry.checkpoint, entry.adapter) == ("fdrn-compact", *files)
    with pytest.raises(BadInputError, match=r"there is no file \S+/c\+l/absent\.$"):
        parse_entry(f"default={weights}+{folder}/absent")


def test_a_plot_that_could_not_be_written_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"\.png"):
        check_plot_path(tmp_path / "curves.txt")


def test_misleading_clicks_cost_clicks(data: Path) -> None:
    model = create_model("toy-color")
    samples = read_coco(data / "truth.json", data / "images")
    right = evaluate(model, samples, targets=(0.9,), flip=False)
    misled = evaluate(model, samples, targets=(0.9,), flip=False, misleading=5, seed=1)
    assert (misled.noc["90"] or 0) >= (right.noc["90"] or 0)
