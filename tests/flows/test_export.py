"""What an export is asked for reaches the snapshot."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main
from flows.export import export_flow
from flows.jobs import Job, new_job
from flows.services import Services
from pipeline.export.directory import SnapshotDirectory
from pipeline.export.verify import verify_snapshot
from pipeline.imports import import_source
from pipeline.storage import requests, snapshots
from pipeline.storage.campaigns import add_categories
from pipeline.storage.database import Database
from schemas.campaigns import CampaignRecord
from schemas.errors import BadInputError, DatabaseUnavailableError, NotFoundError
from schemas.requests import checked
from schemas.settings import Settings

pytestmark = [pytest.mark.usefixtures("prefect"), pytest.mark.timeout(300)]


def test_what_was_asked_for_is_written(
    settings: Settings, database: Database, campaign: CampaignRecord, tmp_path: Path
) -> None:
    import_source(database, campaign, str(tmp_path / "truth.json"), is_trusted=True)
    with database.begin() as conn:
        add_categories(conn, campaign.id, ["square"])
    services = Services(settings, database, beside_serve=True)

    def export(to: str, **options: Any) -> dict[str, Any]:
        payload = checked("export", {"to": str(tmp_path / to), **options})
        with new_job(services, "export", "discs", payload):
            result: dict[str, Any] = export_flow("discs", **payload)
        assert verify_snapshot(str(tmp_path / to)).ok
        manifest: dict[str, Any] = json.loads((tmp_path / to / "manifest.json").read_text())
        assert manifest["counts"] == result["counts"]
        return manifest

    made = export("all", formats=["lvis", "yolo-seg"], images="uri", val=0.5, categories=["disc"])
    assert (made["counts"]["annotations"], made["images"]) == (4, "uri")
    assert made["splits"] == {"val": 0.5, "test": 0.0} and made["filters"] == {"categories": [1]}
    assert export("squares", categories=["square"])["counts"]["annotations"] == 0
    late = export("late", since="2020-01-01T00:00:00Z", until="2020-01-02T00:00:00Z", states=["new"])
    assert late["counts"]["annotations"] == 0 and late["filters"].keys() == {"since", "until", "states"}
    good = export("good", sure=True, min_score=1.0)
    assert good["filters"] == {"sure": True, "min_score": 1.0}
    for options, error in (({"categories": ["cat"]}, BadInputError), ({"annotators": ["nobody"]}, NotFoundError)):
        with pytest.raises(error):
            export("refused", **options)
    assert not (tmp_path / "refused").exists()
    services.close()


def test_an_attempt_that_died_after_it_published_is_done_and_another_export_to_its_url_is_refused(
    settings: Settings, database: Database, campaign: CampaignRecord, tmp_path: Path
) -> None:
    import_source(database, campaign, str(tmp_path / "truth.json"), is_trusted=True)
    services = Services(settings, database, beside_serve=True)
    payload = checked("export", {"to": str(tmp_path / "out")})
    made: list[dict[str, Any]] = []

    def export() -> None:
        result = export_flow("discs", **payload)
        made.append(result | {"files": sorted(result["files"], key=lambda file: file["path"])})

    def publish_and_die() -> None:
        export()
        raise DatabaseUnavailableError("The database is gone.")

    with pytest.raises(DatabaseUnavailableError), new_job(services, "export", "discs", payload):
        publish_and_die()
    with database.begin() as conn:
        request = requests.claim_request(conn, "me")
    assert request is not None
    with Job(services, request, "me").running():
        export()
    assert made[0] == made[1]

    with pytest.raises(BadInputError, match="there already"), new_job(services, "export", "discs", payload):
        export()
    with database.connect() as conn:
        assert len(snapshots.list_snapshots(conn, campaign.id)) == 1
    services.close()


def test_a_cancel_that_comes_after_the_manifest_comes_too_late(
    settings: Settings,
    database: Database,
    campaign: CampaignRecord,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    services = Services(settings, database, beside_serve=True)
    publish = SnapshotDirectory.publish

    def publish_and_cancel(directory: SnapshotDirectory, facts: dict[str, Any]) -> str:
        uri = publish(directory, facts)
        with database.begin() as conn:
            requests.cancel_request(conn, job.request.id)
        job.beat()
        return uri

    monkeypatch.setattr(SnapshotDirectory, "publish", publish_and_cancel)
    payload = checked("export", {"to": str(tmp_path / "out")})
    with new_job(services, "export", "discs", payload) as job:
        export_flow("discs", **payload)
    with database.connect() as conn:
        assert requests.get_request(conn, job.request.id).state == "done"
    services.close()


def test_a_delta_by_command(
    settings: Settings,
    database: Database,
    campaign: CampaignRecord,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def export(to: str, *options: str) -> tuple[int, str]:
        code = main(["export", "discs", "--to", str(tmp_path / to), "--workspace", str(settings.workspace), *options])
        out, err = capsys.readouterr()
        return code, out or err

    assert export("empty", "--val", "0.5")[0] == 0
    import_source(database, campaign, str(tmp_path / "truth.json"), is_trusted=True)
    code, said = export("delta", "--val", "0.5", "--since-snapshot", "1")
    assert code == 0 and "Snapshot 2 since 1: 4 images, 0 verified_empty, 4 annotations" in said
    assert "Snapshot 3: nothing changed since 2." in export("same", "--val", "0.5", "--since-snapshot", "2")[1]
    assert [verify_snapshot(str(tmp_path / name)).since_snapshot for name in ("empty", "delta", "same")] == [None, 1, 2]
    with database.begin() as conn:  # as an export does that is interrupted then
        snapshots.create_snapshot(conn, campaign.id, "export")
    for options, said in (
        (("--since-snapshot", "1"), "with --val 0.5"),
        (("--since-snapshot", "4"), "Snapshot 4 was never written whole"),
        (("--since-snapshot", "9"), "no snapshot '9'"),
    ):
        code, line = export("refused", *options)
        assert (code, line.count("\n")) == (2, 1) and said in line
    assert not (tmp_path / "refused").exists()
    assert main(["snapshot", "list", "discs", "--workspace", str(settings.workspace)]) == 0
    listed = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]]
    assert listed == [["1", "export"], ["2", "export"], ["3", "export"], ["4", "unfinished"]]
