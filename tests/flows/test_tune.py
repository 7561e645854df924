"""`clickloop doctor --tune` measures on accepted masks, else on drawn scenes, and what it writes is what auto means."""

import json
from pathlib import Path

import pytest

from flows.cli import main
from flows.doctor import _engine
from flows.tune import MIN_REAL, OBJECTS
from pipeline.imports import import_source
from pipeline.storage.database import Database
from schemas import engines
from schemas.campaigns import CampaignRecord
from schemas.engines import DEFAULT_ENGINE, Tuning, read_tuning, tuning_path
from schemas.errors import BadInputError
from schemas.settings import Settings
from tests.flows.scenes import make_campaign, write_pictures
from workers.refiner import Refiner


def test_tuning_is_written_read_and_told(
    campaign: CampaignRecord, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--tune", "--json", "--workspace", str(settings.workspace)]) == 0
    told = json.loads(capsys.readouterr().out)
    found = read_tuning(settings.workspace)
    assert found is not None and found.model_dump(mode="json") == told
    assert [own.engine for own in found.figures][:2] == ["torch-float32", "torch-bfloat16"]
    assert (found.model_digest, found.images) == (campaign.model_digest, f"0 accepted masks, {OBJECTS} drawn scenes")
    assert found.clicks >= OBJECTS and all(own.step_ms > 0 for own in found.figures)
    assert [p.name for p in settings.workspace.iterdir() if "engine" in p.name] == ["engine.json"], "nothing aside"
    faster = found.model_copy(update={"engine": "torch-bfloat16"})
    tuning_path(settings.workspace).write_text(faster.model_dump_json())
    assert _engine(settings).startswith("torch-bfloat16 for model")
    for tuning, dtype in ((read_tuning(settings.workspace), "bfloat16"), (stale(faster), "float32")):
        refiner = Refiner(storage_url=settings.resolved_storage_url, engine=settings.engine, tuning=tuning)
        assert refiner.load(campaign.model_digest).dtype == dtype
    tuning_path(settings.workspace).write_text("{")
    assert read_tuning(settings.workspace) is None and DEFAULT_ENGINE in _engine(settings)


def stale(tuning: Tuning) -> Tuning:
    return tuning.model_copy(update={"packages": {**tuning.packages, "torch": "0.1"}})


def test_accepted_masks_are_what_is_clicked(
    tmp_path: Path, settings: Settings, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_pictures(tmp_path, MIN_REAL + 1)
    campaign = make_campaign(settings, database, images)
    import_source(database, campaign, str(tmp_path / "truth.json"), is_trusted=True)
    (images / "1.png").write_bytes(b"gone")
    assert main(["doctor", "--tune", "--workspace", str(settings.workspace)]) == 0
    out = capsys.readouterr().out
    assert f"measured: {MIN_REAL} accepted masks, 0 drawn scenes" in out and "MS/CLICK" in out


def test_an_engine_that_is_not_installed_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_ONNX_PACKAGES", ("nosuchpackage",))
    asked = settings.model_copy(update={"engine": "onnx-float32"})
    with pytest.raises(BadInputError, match="nosuchpackage"):
        _engine(asked)
    with pytest.raises(BadInputError, match="nosuchpackage"):
        Refiner(storage_url=settings.resolved_storage_url, engine="onnx-float32")
