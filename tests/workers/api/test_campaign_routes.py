"""What the campaigns' page asks for: statistics, images with masks, small pictures, exports and their files."""

import asyncio
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest
from PIL import Image

from pipeline.export.snapshot import export_snapshot
from pipeline.masks.packed import unpack
from pipeline.storage.annotators import create_token
from pipeline.storage.campaigns import get_campaign
from pipeline.storage.requests import claim_request, finish_request
from pipeline.storage.snapshots import create_snapshot
from schemas.masks import PackedMask
from tests.workers.api.gateway import ADMIN_TOKEN, CAMPAIGN, Gateway, Work, code_of, gateway_in
from workers.api.routes import exports

pytestmark = pytest.mark.timeout(60)
BASE = f"/api/campaigns/{CAMPAIGN}"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """With two images labelled and one skipped, of eight."""
    with gateway_in(tmp_path_factory.mktemp("pages"), images=8) as running:
        with running.http("ann") as http:
            for category in (1, 2):
                label(Work(http), category)
            Work(http).do("skip", reason="blurred")
        yield running


def label(work: Work, category: int) -> None:
    """Accept the disc and submit."""
    instance = work.opened()
    mask = work.click(instance)["mask"]
    work.do("accept", instance, seq=mask["seq"], mask_sha256=mask["mask_sha256"], category=category)
    work.do("submit")


def export(gateway: Gateway, http: httpx.Client, to: str, formats: list[str]) -> str:
    """Ask for an export and do it as the flow runner would; the request's id."""
    request_id = str(uuid4())
    body = {"id": request_id, "kind": "export", "payload": {"formats": formats}}
    assert http.post(f"{BASE}/requests", json=body).status_code == 202
    database = gateway.services.database
    with database.begin() as conn:
        assert claim_request(conn, "runner", request_id=request_id) is not None
        campaign = get_campaign(conn, CAMPAIGN)
    report = export_snapshot(database, campaign, to, formats)
    with database.begin() as conn:
        finish_request(conn, request_id, "runner", "done", report.as_result())
    return request_id


def test_statistics_tell_what_was_done(http: httpx.Client) -> None:
    found = http.get(f"{BASE}/statistics").json()
    assert (found["total"]["masks"], found["total"]["clicks_per_mask"]) == (2, 1.0)
    assert [(c["name"], c["masks"]) for c in found["by_category"]] == [("disc", 1), ("blob", 1)]
    assert [a["name"] for a in found["by_annotator"]] == ["ann"]
    assert found["latency"]["clicks"] == 2 and found["latency"]["p50_ms"] > 0
    assert code_of(http.get("/api/campaigns/nothing/statistics")) == "not_found"
    assert http.get("/api/progress").json()["results"] == [
        {"campaign_id": CAMPAIGN, "tasks": {"done": 2, "new": 5, "skipped": 1}}
    ]


def test_images_are_browsed_with_their_masks(http: httpx.Client) -> None:
    page = http.get(f"{BASE}/browse", params={"state": "done", "preview": 80}).json()
    assert (page["count"], page["next"], [i["number"] for i in page["results"]]) == (2, None, [1, 2])
    image = page["results"][0]
    assert (image["preview_size"], image["num_masks"]) == ([60, 80], 1)
    [mask] = image["masks"]
    assert (mask["annotator"], mask["category_number"]) == ("ann", 1)
    pixels = unpack(PackedMask.model_validate_json(json.dumps(mask["preview"])))
    assert pixels.shape == (60, 80) and pixels[30, 40] and not pixels[2, 2]
    one = http.get(f"{BASE}/browse/{image['id']}", params={"preview": 160}).json()
    assert one["preview_size"] == [120, 160] and one["masks"][0]["id"] == mask["id"]
    assert http.get(f"{BASE}/browse", params={"category": 2}).json()["results"][0]["number"] == 2
    assert [i["number"] for i in http.get(f"{BASE}/browse", params={"state": "skipped"}).json()["results"]] == [3]
    first = http.get(f"{BASE}/browse", params={"limit": 5}).json()
    assert (first["count"], first["next"]) == (8, 5)
    assert http.get(f"{BASE}/browse", params={"state": "lost"}).status_code == 422
    assert code_of(http.get(f"{BASE}/browse/nothing")) == "not_found"


def test_a_thumbnail_is_a_small_jpeg_that_the_browser_keeps(http: httpx.Client) -> None:
    image = http.get(f"{BASE}/images").json()["results"][0]
    small = http.get(f"/api/images/{image['id']}/thumbnail", params={"size": 40})
    assert (small.status_code, small.headers["content-type"]) == (200, "image/jpeg")
    pixels = np.asarray(Image.open(io.BytesIO(small.content))).astype(int)
    assert pixels.shape == (30, 40, 3) and pixels[15, 20].sum() > 300 > pixels[1, 1].sum()
    tag = {"If-None-Match": small.headers["etag"]}
    assert http.get(f"/api/images/{image['id']}/thumbnail", params={"size": 40}, headers=tag).status_code == 304
    assert http.get(f"/api/images/{image['id']}/thumbnail", params={"size": 80}, headers=tag).status_code == 200
    assert http.get(f"/api/images/{image['id']}/thumbnail", params={"size": 9000}).status_code == 422
    assert code_of(http.get("/api/images/nothing/thumbnail")) == "not_found"


def test_a_finished_image_is_corrected_from_its_stored_mask(gateway: Gateway) -> None:
    """What the page does for "correct": claim the image, open its masks; leaving changes nothing."""
    with gateway.http("rev") as http:
        image = http.get(f"{BASE}/browse", params={"state": "done"}).json()["results"][1]
        [mask] = image["masks"]
        work = Work(http, image["id"])
        instance = str(uuid4())
        shown = work.do("open", instance, mask_id=mask["id"])["mask"]
        assert shown["area"] == mask["area"]
        assert http.get(f"{BASE}/browse/{image['id']}").json()["state"] == "leased"
        with gateway.http("other") as other:
            claim = other.post(f"{BASE}/claim", json={"claim_id": str(uuid4()), "image_id": image["id"]})
            assert code_of(claim) == "wrong_state"
        work.do("accept", instance, seq=shown["seq"], mask_sha256=shown["mask_sha256"], category=1)
        work.do("submit")
        [now] = http.get(f"{BASE}/browse/{image['id']}").json()["masks"]
        assert (now["annotator"], now["category_number"]) == ("rev", 1) and now["id"] != mask["id"]


def test_files_of_an_export_in_the_storage_are_handed_out(
    gateway: Gateway, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.export.file_list.LISTED_FILES", 2)
    to = f"{gateway.services.settings.resolved_storage_url}/campaigns/{CAMPAIGN}/snapshots/one"
    request_id = export(gateway, http, to, ["coco", "png"])
    found = next(e for e in http.get(f"{BASE}/exports").json()["results"] if e["request_id"] == request_id)
    assert (found["downloadable"], found["uri"], found["counts"]["annotations"]) == (True, to, 2)
    assert [file["path"] for file in found["files"]][:2] == ["manifest.json", "coco/instances.json"]
    assert len(found["files"]) == 3 and found["num_files"] == 4
    assert found["num_bytes"] == sum(p.stat().st_size for p in Path(to).rglob("*.*") if p.name != "manifest.json")
    got = http.get(f"/api/requests/{request_id}/files/coco/instances.json")
    assert (got.status_code, got.content) == (200, Path(to, "coco/instances.json").read_bytes())
    assert got.headers["content-disposition"] == "attachment; filename*=utf-8''instances.json"
    assert http.get(f"/api/requests/{request_id}/files/manifest.json").json()["format"] == "clickloop-snapshot"
    archive = http.get(f"/api/requests/{request_id}/archive")
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as tar:
        unpacked = {name.partition("/")[2]: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    assert unpacked == {
        path.relative_to(to).as_posix(): path.read_bytes() for path in Path(to).rglob("*") if path.is_file()
    }


def test_the_files_of_an_export_are_looked_at_beside_the_clicks(
    gateway: Gateway, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export with a PNG for each of 50,000 masks would else hold up every click for seconds."""
    request_id = export(gateway, http, f"{gateway.services.settings.resolved_storage_url}/beside", ["coco", "png"])
    looked = []

    def look(url: str, roots: Sequence[str]) -> None:
        looked.append(url)
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()

    monkeypatch.setattr(exports, "require_allowed", look)
    for path in (
        f"{BASE}/exports",
        f"/api/requests/{request_id}/files/manifest.json",
        f"/api/requests/{request_id}/archive",
    ):
        assert http.get(path).status_code == 200
    assert len(looked) > 6


@pytest.mark.parametrize(
    "path", ["../../../../clickloop.db", "coco/../../../x", "coco", "", "nothing.json", "%2e%2e/x", "/etc/passwd"]
)
def test_nothing_but_the_files_of_the_export_is_handed_out(gateway: Gateway, http: httpx.Client, path: str) -> None:
    to = f"{gateway.services.settings.resolved_storage_url}/snapshots/{uuid4()}"
    request_id = export(gateway, http, to, ["coco"])
    answer = http.get(f"/api/requests/{request_id}/files/{path}")
    assert answer.status_code == 404, answer.text


def test_a_manifest_that_somebody_changed_names_no_other_files(gateway: Gateway, http: httpx.Client) -> None:
    to = f"{gateway.services.settings.resolved_storage_url}/snapshots/{uuid4()}"
    request_id = export(gateway, http, to, ["coco"])
    (Path(to).parent / "secret").write_text("secret")
    manifest = json.loads(Path(to, "manifest.json").read_text())
    manifest["files"].append({"path": "../secret", "bytes": 6, "sha256": ""})
    Path(to, "manifest.json").write_text(json.dumps(manifest))
    assert http.get(f"/api/requests/{request_id}/files/%2e%2e/secret").status_code == 404
    archive = http.get(f"/api/requests/{request_id}/archive").content
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert not any("secret" in name for name in tar.getnames())


def test_an_export_outside_the_roots_is_named_and_not_handed_out(
    gateway: Gateway, http: httpx.Client, tmp_path: Path
) -> None:
    request_id = export(gateway, http, str(tmp_path / "outside"), ["coco"])
    found = next(e for e in http.get(f"{BASE}/exports").json()["results"] if e["request_id"] == request_id)
    assert (found["downloadable"], found["uri"]) == (False, str(tmp_path / "outside"))
    assert code_of(http.get(f"/api/requests/{request_id}/files/manifest.json")) == "forbidden"


def test_a_link_out_of_the_storage_is_not_followed(gateway: Gateway, http: httpx.Client, tmp_path: Path) -> None:
    to = f"{gateway.services.settings.resolved_storage_url}/snapshots/linked"
    request_id = export(gateway, http, to, ["coco"])
    (tmp_path / "secret").write_text("secret")
    Path(to, "coco/instances.json").unlink()
    Path(to, "coco/instances.json").symlink_to(tmp_path / "secret")
    assert code_of(http.get(f"/api/requests/{request_id}/files/coco/instances.json")) == "forbidden"
    assert code_of(http.get(f"/api/requests/{request_id}/archive")) == "forbidden"


def test_export_since_no_snapshot_is_refused_at_once(gateway: Gateway, http: httpx.Client) -> None:
    body = {"id": str(uuid4()), "kind": "export", "payload": {"since_snapshot": "999"}}
    answer = http.post(f"{BASE}/requests", json=body)
    assert (code_of(answer), answer.status_code) == ("not_found", 404)
    assert "no snapshot '999'" in answer.json()["error"]["message"]
    assert http.get(f"/api/requests/{body['id']}").status_code == 404


@pytest.mark.parametrize(("purpose", "said"), [("export", "never written whole"), ("retrain", "taken to retrain")])
def test_export_since_a_snapshot_that_was_not_written_is_refused_at_once(
    gateway: Gateway, http: httpx.Client, purpose: str, said: str
) -> None:
    with gateway.services.database.begin() as conn:  # as an export does that is interrupted then
        number = create_snapshot(conn, get_campaign(conn, CAMPAIGN).id, purpose).number
    body = {"id": str(uuid4()), "kind": "export", "payload": {"since_snapshot": str(number)}}
    answer = http.post(f"{BASE}/requests", json=body)
    assert code_of(answer) == "bad_input" and said in answer.json()["error"]["message"]
    assert http.get(f"/api/requests/{body['id']}").status_code == 404


def test_requests_that_wait_or_run_are_listed_alone(gateway: Gateway, http: httpx.Client) -> None:
    request_id = str(uuid4())
    http.post(f"{BASE}/requests", json={"id": request_id, "kind": "precompute"})
    active = http.get("/api/requests", params={"campaign": CAMPAIGN, "active": True}).json()["results"]
    assert [request["id"] for request in active] == [request_id]
    http.post(f"/api/requests/{request_id}/cancel")
    assert http.get("/api/requests", params={"campaign": CAMPAIGN, "active": True}).json()["results"] == []
    everything = http.get("/api/requests", params={"campaign": CAMPAIGN}).json()["results"]
    assert request_id in {request["id"] for request in everything}


def test_rights(tmp_path: Path) -> None:
    """Other people's masks need the scope review, files of exports the scope export; names are for reviewers."""
    with gateway_in(tmp_path, images=2, host="0.0.0.0") as abroad:
        with abroad.http("ann", ADMIN_TOKEN) as http:
            label(Work(http), 1)
            to = f"{abroad.services.settings.resolved_storage_url}/snapshots/one"
            request_id = export(abroad, http, to, ["coco"])
            image = http.get(f"{BASE}/images").json()["results"][0]
        with abroad.services.database.begin() as conn:
            tokens = {scope: create_token(conn, scope, [scope])[1] for scope in ("label", "review", "export")}
        paths = [f"{BASE}/browse", f"{BASE}/browse/{image['id']}", f"/api/requests/{request_id}/archive"]
        expected = {"label": [403, 403, 403], "review": [200, 200, 403], "export": [403, 403, 200]}
        for scope, statuses in expected.items():
            with abroad.http("x", tokens[scope]) as http:
                assert [http.get(path).status_code for path in paths] == statuses, scope
                [worker] = http.get(f"{BASE}/statistics").json()["by_annotator"]
                assert (worker["name"] == "ann") == (scope == "review")
        with httpx.Client(base_url=abroad.url, trust_env=False) as nobody:
            others = [f"{BASE}/statistics", f"{BASE}/exports", f"/api/images/{image['id']}/thumbnail"]
            assert {nobody.get(path).status_code for path in [*paths, *others]} == {401}


def test_the_page_is_served_under_its_name(http: httpx.Client) -> None:
    page = http.get("/campaigns")
    assert (page.status_code, page.headers["cache-control"]) == (200, "no-cache")
    assert "Content-Security-Policy" in page.text and "<script>" not in page.text
    assert http.get("/campaigns.html").text == page.text


def test_the_schema_types_the_answers(http: httpx.Client) -> None:
    schema: dict[str, Any] = json.loads(http.get("/openapi.json").text)
    names = set(schema["components"]["schemas"])
    assert {"CampaignStatistics", "BrowsePage", "BrowsedImage"} <= names
