"""purge campaign and image, and gc, as they are typed; what ingest, replay and export say of what was purged."""

import io
import json
import os
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from flows.cli import main
from flows.jobs import new_job
from flows.replay import replay
from flows.services import Services
from pipeline.campaigns import CampaignSpec, create_campaign
from pipeline.export.manifest import read_manifest
from pipeline.export.snapshot import export_snapshot
from pipeline.export.verify import verify_snapshot
from pipeline.ingest.scan import ingest
from pipeline.storage import adapters, annotators, images, purge, requests, snapshots, tasks
from pipeline.storage.database import Database
from pipeline.storage.files import exists, open_storage, patience, remove
from pipeline.storage.lock import WorkspaceLock
from pipeline.storage.weights import has_model
from schemas.campaigns import CampaignRecord, Claim
from schemas.errors import StateError
from schemas.settings import Settings
from tests.pipeline.storage.catalogues import LEASE_S, new_uuid
from tests.pipeline.storage.test_purge import _KilledError
from tests.s3 import object_names, s3_bucket, s3_server
from tests.s3_faults import FaultyS3, faulty_s3

__all__ = ["faulty_s3", "s3_bucket", "s3_server"]

Run = Any


@pytest.fixture
def run(settings: Settings, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in the workspace; exit code, its JSON (or the text) and stderr."""

    def command(*words: str, as_json: bool = True) -> tuple[int, Any, str]:
        where = ["--workspace", str(settings.workspace), *(["--json"] if as_json else [])]
        try:
            code = main([*words, *where])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, json.loads(out) if as_json and out else out, err

    return command


def work(database: Database, campaign: CampaignRecord) -> Claim:
    """Somebody looks at the next image and gives it back."""
    with database.begin() as conn:
        who = annotators.get_or_create_annotator(conn, "ann").id
        claim = tasks.claim_task(conn, campaign.id, who, claim_id=new_uuid(), lease_s=LEASE_S)
        assert claim is not None
        conn.execute(purge.update(purge.Session).values(state="submitted"))
        tasks.end_lease(conn, claim.task_id, claim.lease_no, "done", "submit")
    return claim


def test_an_image_goes_after_a_question(
    campaign: CampaignRecord, settings: Settings, database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = work(database, campaign)
    number = str(claim.image.number)
    code, told, _ = run("purge", "image", "discs", number, "--dry-run")
    assert (code, told["counts"], told["snapshots"]) == (
        0,
        {"sessions": 1, "leases": 1, "tasks": 1, "sources": 1, "images": 1},
        [],
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))  # a pipe is nobody to ask
    code, _, err = run("purge", "image", "discs", number)
    assert (code, "Say --yes" in err) == (2, True)
    assert run("campaign", "status", "discs")[1]["images"] == 4
    with WorkspaceLock(settings.workspace):  # as beside `serve`
        code, done, _ = run("purge", "image", "discs", number, "--yes")
    assert (code, done["counts"], done["state"]) == (0, told["counts"], "done")
    assert run("campaign", "status", "discs")[1]["images"] == 3
    code, _, err = run("purge", "image", "discs", number, "--yes")
    assert (code, "was purged on" in err) == (2, True)
    assert [(t["campaign_name"], t["image_number"]) for t in run("purge", "list")[1]] == [("discs", int(number))]
    assert "Nothing was purged" in run("purge", "list", "other", as_json=False)[1]
    assert f"discs     {number}" in run("purge", "list", "discs", as_json=False)[1]
    # whose file is there still, and does not come back by itself
    report = ingest(database, campaign, campaign.source_url)
    assert (report.purged, report.registered, report.unchanged) == (1, 0, 3)
    assert (Path(campaign.source_url) / claim.image.file_name).exists()
    again = ingest(database, campaign, campaign.source_url, readmit=True)
    assert (again.purged, again.registered) == (0, 1)
    assert "admitted again" in run("purge", "list", as_json=False)[1]


def test_a_purge_says_which_exports_hold_the_data_still(
    campaign: CampaignRecord, settings: Settings, database: Database, run: Run, tmp_path: Path
) -> None:
    claim = work(database, campaign)
    with database.begin() as conn:
        request = requests.insert_request(conn, str(uuid4()), "export", campaign.id, {})
        requests.claim_request(conn, "me", request_id=request.id)
    first = export_snapshot(database, campaign, str(tmp_path / "first"))
    with database.begin() as conn:
        requests.finish_request(conn, request.id, "me", "done", first.model_dump(mode="json"))
    assert first.counts["images"] == 1
    held = f"snapshot 1: {tmp_path / 'first'}"
    assert held in run("purge", "image", "discs", "1", "--dry-run", as_json=False)[1]
    assert held in run("purge", "image", "discs", "1", "--yes", as_json=False)[1]
    assert verify_snapshot(str(tmp_path / "first")).ok
    with database.connect() as conn:
        assert snapshots.get_snapshot(conn, first.snapshot_id).images == 0
    export_snapshot(database, campaign, str(tmp_path / "second"))
    (purged,) = read_manifest(str(tmp_path / "second"))[2]["purged"]
    assert (purged["image"], purged["sha256"], purged["snapshots"]) == (1, claim.image.sha256, [1])
    assert purged["purged_at"] > read_manifest(str(tmp_path / "first"))[2]["created_at"]
    assert verify_snapshot(str(tmp_path / "second")).ok


def test_replay_says_what_was_purged(
    campaign: CampaignRecord, settings: Settings, database: Database, run: Run
) -> None:
    claim = work(database, campaign)
    work(database, campaign)
    assert run("purge", "image", "discs", claim.image.id, "--yes")[0] == 0
    report = replay(settings, database, campaign)
    assert (report.ok, report.sessions, report.purged) == (True, 1, 1)
    code, _, err = run("replay", "discs", "--session", claim.session_id)
    assert (code, "1 of its sessions were purged" in err) == (2, True)
    assert "1 sessions were purged" in run("replay", "discs", as_json=False)[1]


def test_a_campaign_goes_and_its_name_is_free(
    campaign: CampaignRecord, settings: Settings, database: Database, run: Run
) -> None:
    work(database, campaign)
    code, done, _ = run("purge", "campaign", "discs", "--yes")
    assert (code, done["counts"]["images"], done["counts"]["tasks"]) == (0, 4, 4)
    code, _, err = run("campaign", "status", "discs")
    assert (code, "Campaign 'discs' was purged on" in err) == (2, True)
    assert len(list(Path(campaign.source_url).iterdir())) == 4
    spec = CampaignSpec(id=str(uuid4()), name="discs", images=campaign.source_url, model="toy-color")
    made = create_campaign(database, settings.resolved_storage_url, spec)
    assert ingest(database, made, made.source_url).registered == 4


def test_an_interrupted_purge_refuses_jobs_and_says_how_to_go_on(
    campaign: CampaignRecord, settings: Settings, database: Database, run: Run
) -> None:
    def stop(facts: dict[str, Any]) -> None:
        raise _KilledError

    work(database, campaign)
    with database.connect() as conn:
        scope = purge.find_scope(conn, "discs", "2")
    with pytest.raises(_KilledError):
        purge.purge(database, scope, settings.resolved_storage_url, purged_by="me", progress=stop)
    new = new_job(Services(settings, database), "precompute", "discs", {})
    with pytest.raises(StateError, match="`clickloop purge image discs 2` goes on"):
        new.__enter__()
    listed = run("purge", "list", as_json=False)[1]
    assert "half done" in listed and "`clickloop purge image discs 2` goes on with it" in listed
    assert run("purge", "image", "discs", "2", "--yes")[1]["counts"]["images"] == 1
    with new_job(Services(settings, database), "precompute", "discs", {}) as job:
        assert job.request.state == "running"


def test_gc_removes_weights_and_says_why(
    campaign: CampaignRecord, settings: Settings, database: Database, run: Run
) -> None:
    training = settings.workspace / "training"
    training.mkdir(parents=True)
    old = time.time() - 2 * 86400
    (training / "gone.checkpoint").write_bytes(b"123")
    os.utime(training / "gone.checkpoint", (old, old))
    with database.begin() as conn:
        lineage: dict[str, Any] = {"model_digest": campaign.model_digest, "model_key": campaign.model_key}
        adapters.register_adapter(
            conn, digest="ab" * 32, campaign_id=campaign.id, kind="head", uri="", parent_digest=None,
            snapshot_id=None, seed=0, **lineage,
        )  # fmt: skip
        adapters.set_gate(
            conn, "ab" * 32, "rejected", {"promote": False, "figures": {"live_noc": 3.125, "candidate_noc": 4.0}}
        )
        long_ago = requests.database_now(conn) - purge.STALE * 60 * 24 * 31
        conn.execute(purge.update(purge.Adapter).values(created_at=long_ago))
    folder = Path(settings.resolved_storage_url) / "adapters" / ("ab" * 32)
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"12345")
    told = run("gc", "--dry-run")[1]
    assert (told["freed_bytes"], [one["kind"] for one in told["weights"]]) == (8, ["adapters", "checkpoints"])
    assert (folder / "weights.safetensors").exists()
    assert run("gc", "--weights-older-than", "60")[1]["freed_bytes"] == 3
    text = run("gc", as_json=False)[1]
    assert "abababababab  5      adapter 1 of its campaign: the gate rejected it" in text
    assert not (folder / "weights.safetensors").exists()
    assert "rejected  removed  3.12 -> 4.00" in run("adapter", "list", "discs", as_json=False)[1]
    shown = run("adapter", "show", "discs", "1", as_json=False)[1].split()
    assert shown[shown.index("gate.figures.candidate_noc") + 1] == "4"
    assert has_model(settings.resolved_storage_url, campaign.model_digest)


def test_a_campaign_is_made_while_gc_removes_its_model(
    settings: Settings, database: Database, campaign: CampaignRecord
) -> None:
    storage = settings.resolved_storage_url
    spec = CampaignSpec(id=str(uuid4()), name="second", images=campaign.source_url, model="toy-color")
    fs, root = open_storage(storage)
    with database.begin():  # as gc holds it: the campaign's row has to wait
        thread = threading.Thread(target=create_campaign, args=(database, storage, spec))
        thread.start()
        time.sleep(0.5)  # it has found the model
        for ending in ("safetensors", "json"):
            remove(fs, f"{root}/models/{campaign.model_digest}.{ending}")
    thread.join()
    with database.connect() as conn:
        assert conn.execute(purge.select(purge.Campaign.name)).scalars().all() == ["discs", "second"]
    assert has_model(storage, campaign.model_digest)


def test_a_purge_takes_the_embeddings_of_mirrored_images_too(
    campaign: CampaignRecord, settings: Settings, database: Database, run: Run
) -> None:
    with database.begin() as conn:
        image = images.images_of(conn, campaign.id)[0]
        images.record_embeddings(conn, campaign.model_key, [(image.sha256, "d" * 64, 4)])
    stores = [
        purge.EmbeddingStore(url)
        for url in (settings.resolved_storage_url, str(settings.workspace.resolve() / "training" / "mirrored"))
    ]
    for store in stores:
        store.put(campaign.model_key, image.sha256, b"1234")
    assert run("purge", "image", "discs", str(image.number), "--yes")[1]["counts"]["embeddings"] == 1
    assert not any(exists(store.fs, store.path(campaign.model_key, image.sha256)) for store in stores)


@pytest.mark.s3
def test_a_storage_that_does_not_answer_is_said_and_the_same_command_goes_on(
    campaign: CampaignRecord,
    settings: Settings,
    database: Database,
    run: Run,
    s3_bucket: str,
    faulty_s3: FaultyS3,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLICKLOOP_STORAGE_URL", s3_bucket)
    store = purge.EmbeddingStore(s3_bucket)
    with database.begin() as conn:
        for image in images.images_of(conn, campaign.id):
            store.put(campaign.model_key, image.sha256, b"1234")
            images.record_embeddings(conn, campaign.model_key, [(image.sha256, "d" * 64, 4)])
    faulty_s3.go_away("ServiceUnavailable", method="DELETE", after=2)
    with patience(0):
        code, _, err = run("purge", "campaign", "discs", "--yes")
    assert (code, f"Removing files from {s3_bucket} failed, the storage does not answer" in err) == (1, True), err
    assert "Traceback" not in err
    assert "`clickloop purge campaign discs` goes on with it" in run("purge", "list", as_json=False)[1]
    faulty_s3.come_back()
    assert run("purge", "campaign", "discs", "--yes")[1]["counts"]["embeddings"] == 4
    assert not object_names(s3_bucket)
