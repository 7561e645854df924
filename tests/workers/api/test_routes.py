"""The loop by bare HTTP, as a script would do it; long jobs, adapters, listings, metrics and the schema."""

import hashlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from pipeline.masks.digest import mask_digest
from pipeline.masks.rle import rle_to_mask
from pipeline.storage.adapters import register_adapter, set_gate
from pipeline.storage.requests import claim_request, finish_request, heartbeat
from pipeline.storage.snapshots import create_snapshot
from schemas.columns import db_now
from schemas.masks import Rle
from schemas.predictions import Pins
from schemas.tables import Adapter
from tests.workers.api.gateway import CAMPAIGN, Gateway, Work, code_of, gateway_in
from tests.workers.campaign import StoredCampaign
from tests.workers.test_refiner import add_adapter
from workers.lru import Lru
from workers.router import LocalRouter

pytestmark = pytest.mark.timeout(60)
BASE = f"/api/campaigns/{CAMPAIGN}"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_in(tmp_path_factory.mktemp("routes"), images=12) as running:
        yield running


def event(seq: int, kind: str, instance: str | None, /, **payload: Any) -> dict[str, Any]:
    """An event as JSON of a fresh session."""
    numbers = {"seq": seq, "session_epoch": 1, "lease_no": 1}
    return {"event_id": str(uuid4()), "kind": kind, "instance_id": instance, "payload": payload, **numbers}


def test_a_script_with_nothing_but_http_labels_an_image(http: httpx.Client) -> None:
    [campaign] = http.get("/api/campaigns").json()["results"]
    assert (campaign["name"], [c["name"] for c in campaign["categories"]]) == ("discs", ["disc", "blob"])
    claim = http.post(f"/api/campaigns/{campaign['id']}/claim", json={"claim_id": str(uuid4())}).json()
    image = claim["image"]
    content = http.get(f"/api/images/{image['id']}/content")
    assert content.headers["content-type"] == "image/png"
    assert hashlib.sha256(content.content).hexdigest() == image["sha256"] == content.headers["etag"].strip('"')
    kept = http.get(f"/api/images/{image['id']}/content", headers={"If-None-Match": content.headers["etag"]})
    assert (kept.status_code, kept.content) == (304, b"")

    path, instance = f"/api/sessions/{claim['session_id']}", str(uuid4())

    def send(*events: dict[str, Any]) -> dict[str, Any]:
        answer = http.post(f"{path}/events", json={"events": list(events)})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    first = send(event(1, "open", instance), event(2, "click", instance, x=80, y=60, is_positive=True))
    wrong = event(3, "click", instance, x=5, y=5, is_positive=True)
    second = send(wrong)
    assert second["mask"]["mask_sha256"] != first["mask"]["mask_sha256"]
    undo = event(4, "undo", instance, event_id=wrong["event_id"])
    assert send(undo)["mask"]["mask_sha256"] == first["mask"]["mask_sha256"]
    redone = send(event(5, "redo", instance, event_id=undo["event_id"]))
    assert redone["mask"]["mask_sha256"] == second["mask"]["mask_sha256"]
    send(event(6, "undo", instance, event_id=wrong["event_id"]))
    send(event(7, "candidate", instance, index=0))
    shown = http.get(f"{path}/instances/{instance}/mask", params={"format": "rle"}).json()
    mask = rle_to_mask(Rle.model_validate(shown["rle"]))
    assert mask.shape == (image["height"], image["width"]) and mask[60, 80] and not mask[0].any()
    assert shown["mask_sha256"] == mask_digest(mask)
    send(event(8, "accept", instance, seq=shown["seq"], mask_sha256=shown["mask_sha256"]))
    send(event(9, "category", instance, category=1))
    send(event(10, "submit", None))
    session = http.get(path).json()
    assert (session["state"], session["last_seq"]) == ("submitted", 10)
    assert (session["instances"][0]["state"], session["instances"][0]["category"]) == ("accepted", 1)
    status = http.get(f"{BASE}/status").json()
    assert status["masks"] == 1 and status["images"] == 12


def test_release_gives_the_task_back(http: httpx.Client) -> None:
    work = Work(http)
    work.do("open", str(uuid4()))
    work.do("release")
    again = Work(http, image_id=work.claim["image"]["id"])
    assert again.session_id != work.session_id and again.claim["lease_no"] == work.claim["lease_no"] + 1


def test_paused_campaign_gives_out_nothing(http: httpx.Client) -> None:
    for _ in range(2):
        assert http.post(f"{BASE}/pause").json()["state"] == "paused"
    refused = http.post(f"{BASE}/claim", json={"claim_id": str(uuid4())})
    for _ in range(2):
        assert http.post(f"{BASE}/resume").json()["state"] == "active"
    assert (refused.status_code, code_of(refused)) == (409, "wrong_state")


def test_images_are_listed_in_pages(http: httpx.Client) -> None:
    page = http.get(f"{BASE}/images", params={"limit": 5}).json()
    numbers = [image["number"] for image in page["results"]]
    assert page["count"] == 12 and len(numbers) == 5
    while page["next"]:
        page = http.get(page["next"]).json()
        numbers += [image["number"] for image in page["results"]]
    assert numbers == list(range(1, 13))


def test_long_jobs_are_made_followed_and_cancelled(gateway: Gateway, http: httpx.Client) -> None:
    database = gateway.services.database
    body: dict[str, Any] = {"id": str(uuid4()), "kind": "precompute", "payload": {}}
    made = http.post(f"{BASE}/requests", json=body)
    assert made.status_code == 202 and made.json()["state"] == "queued"
    assert http.post(f"{BASE}/requests", json=body).json()["id"] == body["id"], "sent again: the same"
    other = http.post(f"{BASE}/requests", json={**body, "kind": "retrain"})
    assert (other.status_code, code_of(other)) == (409, "conflict")
    second = http.post(f"{BASE}/requests", json={**body, "id": str(uuid4())})
    assert (second.status_code, code_of(second)) == (409, "wrong_state")
    assert second.json()["error"]["details"]["request_id"] == body["id"]
    with database.begin() as conn:
        claim_request(conn, "runner", request_id=body["id"])
        heartbeat(conn, body["id"], "runner", {"done": 3, "total": 9})
    running = http.get(f"/api/requests/{body['id']}").json()
    assert (running["state"], running["progress"]) == ("running", {"done": 3, "total": 9})
    for _ in range(2):
        assert http.post(f"/api/requests/{body['id']}/cancel").json()["cancel"] is True
    with database.begin() as conn:
        assert heartbeat(conn, body["id"], "runner") is True, "the runner is told"
        finish_request(conn, body["id"], "runner", "cancelled", {"done": 3})
    ended = http.get(f"/api/requests/{body['id']}").json()
    assert (ended["state"], ended["result"]) == ("cancelled", {"done": 3})
    listed = http.get("/api/requests", params={"campaign": "discs"}).json()
    assert [request["id"] for request in listed["results"]] == [body["id"]]


def test_campaign_is_made_through_a_request_once(gateway: Gateway, http: httpx.Client) -> None:
    images = str(gateway.services.settings.workspace.resolve())
    new = {"id": str(uuid4()), "name": "second", "images": images, "labels": ["a"]}
    answers = [http.post("/api/campaigns", json=new) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()
    request = http.get(f"/api/requests/{answers[0].json()['request']['id']}").json()
    assert (request["kind"], request["payload"]["create"]["name"]) == ("campaign", "second")
    taken = http.post("/api/campaigns", json={**new, "id": str(uuid4()), "name": "discs"})
    assert (taken.status_code, code_of(taken)) == (409, "conflict")
    http.post(f"/api/requests/{new['id']}/cancel")
    again = {**new, "id": str(uuid4())}
    answers = [http.post("/api/campaigns", json=again).json() for _ in range(2)]
    assert answers[0] == answers[1] and answers[0]["id"] == new["id"], "it goes on with what was begun"
    request = answers[0]["request"]
    assert (request["id"], request["state"]) == (again["id"], "queued")
    assert request["payload"]["create"]["id"] == new["id"]
    other = http.post("/api/campaigns", json={**again, "id": str(uuid4()), "labels": ["b"]}).json()
    assert other["id"] == other["request"]["id"], "another campaign"
    for model in ("nope", "simpleclick-base-448"):  # unknown; no weights ship
        refused = http.post("/api/campaigns", json={**new, "id": str(uuid4()), "name": model, "model": model})
        assert (refused.status_code, code_of(refused)) == (404, "not_found"), refused.text


def adapter(gateway: Gateway, change: float, state: str, promote: bool) -> str:
    """A trained adapter of the campaign and the gate's word on it; its digest."""
    storage_url = gateway.services.settings.resolved_storage_url
    with gateway.services.database.begin() as conn:
        row = conn.exec_driver_sql("SELECT model_digest, model_key FROM campaigns").one()
        pins = Pins(model_digest=row.model_digest, model_key=row.model_key)
        digest = add_adapter(StoredCampaign(storage_url, pins, ()), change)
        names = {"model_digest": row.model_digest, "model_key": row.model_key, "parent_digest": None}
        register_adapter(
            conn, digest=digest, campaign_id=CAMPAIGN, kind="head", uri="x", snapshot_id=None, seed=0, **names
        )
        set_gate(conn, digest, state, {"promote": promote})
    return digest


def test_adapters_are_promoted_by_compare_and_set_and_rolled_back(gateway: Gateway, http: httpx.Client) -> None:
    work = Work(http)
    old = work.opened()
    good = adapter(gateway, 1.0, "candidate", True)
    better = adapter(gateway, 2.0, "candidate", True)
    bad = adapter(gateway, 3.0, "rejected", False)
    assert [row["digest"] for row in http.get(f"{BASE}/adapters").json()["results"]] == [good, better, bad]

    def promote(digest: str, seen: int) -> httpx.Response:
        return http.post(f"{BASE}/adapters/{digest}/promote", json={"expected_version": seen})

    gone = adapter(gateway, 4.0, "candidate", True)
    for path in Path(gateway.services.settings.resolved_storage_url, "adapters", gone).iterdir():
        path.unlink()
    with gateway.services.database.begin() as conn:
        conn.execute(update(Adapter).where(Adapter.digest == gone).values(removed_at=db_now()))
    for digest, said in ((bad, "has not passed the gate"), (gone, "removed by `clickloop gc`")):
        refused = promote(digest, 0)
        assert (refused.status_code, code_of(refused)) == (409, "wrong_state") and said in refused.text
    for _ in range(2):
        assert promote(good, 0).json() == {"live_adapter": good, "live_version": 1}, "sent again: the same"
    late = promote(better, 0)
    assert (late.status_code, code_of(late)) == (409, "conflict")
    assert late.json()["error"]["details"] == {"live_version": 1, "live_adapter": good}
    assert promote(better, 1).json()["live_version"] == 2
    new = work.opened()
    pins = {instance["id"]: instance["pins"] for instance in work.state()["instances"]}
    assert (pins[old]["adapter_digest"], pins[new]["adapter_digest"]) == (None, better)
    assert work.click(new)["mask"]["area"] > 0 and work.click(old)["mask"]["area"] > 0
    assert http.post(f"{BASE}/rollback", json={"expected_version": 2}).json() == {
        "live_adapter": good,
        "live_version": 3,
        "problem": None,
    }
    again = http.post(f"{BASE}/rollback", json={"expected_version": 2})
    assert (again.status_code, code_of(again)) == (409, "conflict"), "sent again: nothing more is rolled back"
    assert http.post(f"{BASE}/rollback").json() == {"live_adapter": None, "live_version": 4, "problem": None}
    nothing = http.post(f"{BASE}/rollback")
    assert (nothing.status_code, code_of(nothing)) == (409, "wrong_state")


def test_adapter_that_cannot_be_loaded_does_not_go_live(gateway: Gateway, http: httpx.Client) -> None:
    digest = adapter(gateway, 7.0, "candidate", True)
    files = [p for p in Path(gateway.services.settings.resolved_storage_url).rglob("*") if digest in str(p)]
    for path in filter(Path.is_file, files):
        path.write_bytes(b"not an adapter")
    before = http.get(BASE).json()
    refused = http.post(f"{BASE}/adapters/{digest}/promote", json={"expected_version": before["live_version"]})
    assert refused.status_code >= 400 and refused.json()["error"]["code"] != "error", refused.text
    assert http.get(BASE).json()["live_adapter"] == before["live_adapter"]


def test_a_rollback_to_what_does_not_load_says_so_and_the_next_one_leads_past_it(
    gateway: Gateway, http: httpx.Client
) -> None:
    version = http.get(BASE).json()["live_version"]
    lost, good = adapter(gateway, 8.0, "candidate", True), adapter(gateway, 9.0, "candidate", True)
    for number, digest in enumerate((lost, good)):
        http.post(f"{BASE}/adapters/{digest}/promote", json={"expected_version": version + number}).raise_for_status()
    for path in Path(gateway.services.settings.resolved_storage_url).glob(f"adapters/{lost}/*.safetensors"):
        path.unlink()
    router = gateway.services.refining._service
    assert isinstance(router, LocalRouter)
    router._refiner._models = Lru(8)  # as after a restart
    back = http.post(f"{BASE}/rollback").json()
    assert back["live_adapter"] == lost and lost in back["problem"] and "Roll back once more" in back["problem"]
    assert http.post(f"{BASE}/rollback").json()["problem"] is None


def test_snapshots_are_listed(gateway: Gateway, http: httpx.Client) -> None:
    assert http.get(f"{BASE}/snapshots").json()["results"] == []
    with gateway.services.database.begin() as conn:
        made = create_snapshot(conn, CAMPAIGN, "export")
    [listed] = http.get(f"{BASE}/snapshots").json()["results"]
    assert (listed["id"], listed["number"], listed["purpose"]) == (made.id, 1, "export")
    assert datetime.fromisoformat(listed["created_at"]).tzinfo is not None


def test_lost_source_file_is_not_found(gateway: Gateway, work: Work) -> None:
    image = work.claim["image"]
    path = Path(image["uri"])
    data = path.read_bytes()
    path.unlink()
    try:
        answer = work.http.get(f"/api/images/{image['id']}/content")
    finally:
        path.write_bytes(data)
    assert (answer.status_code, code_of(answer)) == (404, "not_found")


def test_schema_lists_every_route_and_docs_are_there(http: httpx.Client) -> None:
    schema = http.get("/openapi.json").json()
    methods = {(method, path) for path, methods in schema["paths"].items() for method in methods}
    for wanted in (
        ("get", "/api/campaigns"),
        ("post", "/api/campaigns"),
        ("post", "/api/campaigns/{campaign}/claim"),
        ("post", "/api/campaigns/{campaign}/requests"),
        ("post", "/api/campaigns/{campaign}/rollback"),
        ("get", "/api/images/{image_id}/content"),
        ("post", "/api/sessions/{session_id}/events"),
        ("get", "/api/sessions/{session_id}/instances/{instance_id}/mask"),
        ("get", "/api/requests/{request_id}"),
        ("get", "/healthz"),
        ("get", "/readyz"),
        ("get", "/metrics"),
    ):
        assert wanted in methods
    assert http.get("/docs").status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_monitors_that_want_no_body_see_the_same(http: httpx.Client, path: str) -> None:
    said = http.head(path)
    assert (said.status_code, said.content) == (http.get(path).status_code, b"")


def test_metrics_parse_and_count(work: Work) -> None:
    def samples() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        answer = work.http.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = text_string_to_metric_families(answer.text)
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}

    clicks, gaps = ("clickloop_events_total", (("kind", "click"),)), ("clickloop_refused_total", (("code", "gap"),))
    instance = work.opened()
    before = samples()
    work.click(instance)
    work.post(work.event("click", instance, at=9, x=1, y=1, is_positive=True))
    work.http.get(f"/api/sessions/{uuid4()}")
    after = samples()
    assert after[clicks] == before.get(clicks, 0) + 1
    assert after[gaps] == before.get(gaps, 0) + 1
    routes = {dict(labels)["route"] for name, labels in after if name == "clickloop_http_requests_total"}
    assert "/api/sessions/{session_id}/events" in routes
    assert not any(work.session_id in route for route in routes), "ids are no labels"
    stages = {dict(labels)["stage"] for name, labels in after if name == "clickloop_click_stage_ms_count"}
    assert {"wait", "check", "commit", "refine_model"} <= stages


def test_every_answer_has_a_request_id_of_its_own_or_the_clients(http: httpx.Client) -> None:
    paths = ("/healthz", "/api/campaigns", "/api/nothing", "/openapi.json", f"/api/sessions/{uuid4()}", "/")
    ids = [http.get(path).headers["x-request-id"] for path in paths]
    assert len(set(ids)) == len(paths)
    assert http.get("/healthz", headers={"X-Request-Id": "a.b-1"}).headers["x-request-id"] == "a.b-1"
    for odd in ("x" * 65, "a b", "<x>", '"'):
        assert http.get("/healthz", headers={"X-Request-Id": odd}).headers["x-request-id"] != odd


def test_open_sessions_are_listed_for_their_annotator_alone(tmp_path: Path) -> None:
    with gateway_in(tmp_path, images=5) as gateway, gateway.http("olga") as olga, gateway.http("other") as other:
        works = [Work(olga) for _ in range(3)]
        Work(other).do("release")
        works[0].click(works[0].opened())
        works[1].do("release")
        [newest, oldest] = olga.get("/api/sessions").json()["results"]
        assert [newest["id"], oldest["id"]] == [works[0].session_id, works[2].session_id]
        image = works[0].claim["image"]
        assert newest == {
            "id": works[0].session_id,
            "campaign_id": CAMPAIGN,
            "campaign": "discs",
            "image_number": image["number"],
            "file_name": image["file_name"],
        }
        assert other.get("/api/sessions").json()["results"] == []
