"""What `clickloop import` says when masks are imported again."""

import json
from pathlib import Path

import pytest

from flows.cli import main
from schemas.settings import Settings

pytestmark = [pytest.mark.usefixtures("prefect", "campaign"), pytest.mark.timeout(300)]


def test_importing_again_says_what_changed_and_what_did_not(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = tmp_path / "truth.json"

    def imported(*options: str) -> str:
        assert main(["import", "discs", str(truth), "--workspace", str(settings.workspace), *options]) == 0
        return capsys.readouterr().out

    first = imported()
    assert "4 of them new" in first and "that were there" not in first
    assert "0 of them new" in (said := imported("--trusted")) and "4 that were there" in said
    document = json.loads(truth.read_text())
    document["categories"][0]["name"] = "coin"
    truth.write_text(json.dumps(document))
    assert "left as they were 4: they count already" in imported()
    assert "4 that were there" in imported("--trusted")


def test_results_of_a_detector_are_taken_above_a_score(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = json.loads((tmp_path / "truth.json").read_text())
    mask = {"image_id": 1, "category_id": 0, "segmentation": truth["annotations"][0]["segmentation"]}
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{**mask, "score": 0.9}, {**mask, "score": 0.1}]))
    command = ["import", "discs", str(results), "--workspace", str(settings.workspace), "--min-score", "0.5"]
    assert main([*command, "--format", "coco-results"]) == 0
    said = capsys.readouterr().out
    assert "1 masks on 1 images, 1 of them new" in said and "left out 1: its score is below 0.5" in said
    assert main(command) == 2
    assert "give --format coco-results" in capsys.readouterr().err
