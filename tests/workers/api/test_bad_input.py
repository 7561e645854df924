"""Bad input of every kind over a real gateway: refused by name in one shape, and nothing of it stored."""

import json
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest

from pipeline.masks.rle import mask_to_rle
from tests.workers.api.gateway import CAMPAIGN, Gateway, Work, code_of, gateway_in

pytestmark = pytest.mark.timeout(60)
NAN, INF = float("nan"), float("inf")
RUNS = mask_to_rle(np.ones((4, 6), bool)).model_dump(mode="json")
STROKE = {"is_positive": True, "box": [0, 0, 6, 4], "rle": RUNS}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_in(tmp_path_factory.mktemp("bad"), images=20, max_events_per_instance=40) as running:
        yield running


@pytest.fixture(scope="module")
def shared(gateway: Gateway) -> Iterator[tuple[Work, str]]:
    """A session with an instance and one click, which no test changes."""
    with gateway.http() as http:
        work = Work(http)
        instance = work.opened()
        work.click(instance)
        yield work, instance
        assert work.state()["last_seq"] == 2


def post_raw(work: Work, body: str | bytes) -> httpx.Response:
    return work.http.post(f"{work.path}/events", content=body, headers={"Content-Type": "application/json"})


def refusal(work: Work, kind: str, instance: str | None, payload: Any) -> tuple[int, str]:
    """Status and code of an event that must be refused (NaN and half characters travel as Python writes them)."""
    answer = post_raw(work, json.dumps({"events": [{**work.event(kind, instance), "payload": payload}]}))
    assert answer.headers["x-request-id"]
    return answer.status_code, code_of(answer)


@pytest.mark.parametrize(
    ("kind", "payload", "code"),
    [
        ("click", {"x": 159.999, "y": 120, "is_positive": True}, "click_outside_image"),
        ("click", {"x": 160.0, "y": 5, "is_positive": False}, "click_outside_image"),
        ("click", {"x": -0.001, "y": 5, "is_positive": False}, "click_outside_image"),
        ("click", {"x": 1e7, "y": 5, "is_positive": False}, "bad_input"),
        ("click", {"x": NAN, "y": NAN, "is_positive": True}, "bad_input"),
        ("click", {"x": 5, "y": -INF, "is_positive": True}, "bad_input"),
        ("click", {"x": None, "y": 5, "is_positive": True}, "bad_input"),
        ("click", {"x": {}, "y": 5, "is_positive": True}, "bad_input"),
        ("click", {"x": 5, "y": 5, "is_positive": "perhaps"}, "bad_input"),
        ("click", {"x": 5, "y": 5, "is_positive": 2}, "bad_input"),
        ("click", {"x": 5, "y": 5, "is_positive": True, "v": 2}, "bad_input"),
        ("click", {"x": 5, "y": 5, "is_positive": True, "\ud800": 1}, "bad_input"),
        ("click", {}, "bad_input"),
        ("click", [], "bad_input"),
        ("click", "x", "bad_input"),
        ("click", None, "bad_input"),
        ("box", {"x0": 0, "y0": 0, "x1": 161, "y1": 5}, "bad_input"),
        ("box", {"x0": 9, "y0": 9, "x1": 5, "y1": 5}, "bad_input"),
        ("box", {"x0": NAN, "y0": 0, "x1": 5, "y1": 5}, "bad_input"),
        ("brush", {**STROKE, "box": [0, 0, 4, 6]}, "bad_input"),
        ("brush", {**STROKE, "box": [-1, 0, 5, 4]}, "bad_input"),
        ("brush", {**STROKE, "box": [0, 0, 6]}, "bad_input"),
        ("brush", {**STROKE, "rle": {"size": [4, 6], "counts": "\u00ff\u2603"}}, "bad_input"),
        ("brush", {**STROKE, "rle": {"size": [4, 6], "counts": "zzzz"}}, "bad_input"),
        ("brush", {**STROKE, "rle": {"size": [4, 6], "counts": ""}}, "bad_input"),
        ("brush", {**STROKE, "rle": {"size": [10**9, 10**9], "counts": RUNS["counts"]}}, "bad_input"),
        ("brush", {**STROKE, "rle": {"size": [4, 6], "counts": "0" * 70_000}}, "too_large"),
        ("brush", {**STROKE, "polyline": [[0, 0]] * 5001}, "bad_input"),
        ("brush", {**STROKE, "polyline": [[0, NAN]]}, "bad_input"),
        ("brush", {**STROKE, "radius": INF}, "bad_input"),
        ("mask_edit", {"tool": "magic", "box": [0, 0, 6, 4], "added": RUNS, "erased": RUNS}, "bad_input"),
        ("mask_edit", {"tool": "polygon", "box": [0, 0, 6, 4], "added": RUNS}, "bad_input"),
        ("candidate", {"index": -1}, "bad_input"),
        ("candidate", {"index": 63}, "bad_input"),
        ("candidate", {"index": 0.5}, "bad_input"),
        ("category", {"category": 3}, "bad_input"),
        ("category", {"category": 10**30}, "bad_input"),
        ("category", {"category": "disc"}, "bad_input"),
        ("category", {"category": [1]}, "bad_input"),
        ("category", {"category": {}}, "bad_input"),
        ("flag", {"unsure": "perhaps"}, "bad_input"),
        ("flag", {"unsure": True, "note": "x" * 1001}, "bad_input"),
        ("flag", {"unsure": True, "note": "\ud800"}, "bad_input"),
        ("undo", {"event_id": "not a uuid"}, "bad_input"),
        ("undo", {}, "bad_input"),
        ("accept", {"seq": 2, "mask_sha256": "00"}, "bad_input"),
        ("accept", {"seq": 0, "mask_sha256": "0" * 64}, "bad_input"),
        ("accept", {"seq": 10**30, "mask_sha256": "0" * 64}, "wrong_state"),
        ("accept", {"seq": 3, "mask_sha256": "0" * 64}, "wrong_state"),
        ("open", {"mask_id": 7}, "bad_input"),
        ("open", {"mask_id": "a\0b"}, "not_found"),
        ("delete", {"why": "no"}, "bad_input"),
        ("wave", {}, "bad_input"),
    ],
)
def test_bad_payload_is_refused(shared: tuple[Work, str], kind: str, payload: Any, code: str) -> None:
    work, instance = shared
    used = str(uuid4()) if kind == "open" else instance
    status = {"too_large": 413, "not_found": 404, "wrong_state": 409}.get(code, 422)
    assert refusal(work, kind, used, payload) == (status, code)


def test_undo_of_what_does_not_exist_is_a_conflict(shared: tuple[Work, str]) -> None:
    work, instance = shared
    for kind in ("undo", "redo"):
        assert refusal(work, kind, instance, {"event_id": str(uuid4())}) == (409, "undo_mismatch")


def test_instances_are_needed_known_and_opened_once(shared: tuple[Work, str]) -> None:
    work, instance = shared
    click = {"x": 5, "y": 5, "is_positive": True}
    assert refusal(work, "click", None, click) == (422, "bad_input")
    assert refusal(work, "submit", instance, {}) == (422, "bad_input")
    assert refusal(work, "click", str(uuid4()), click)[0] in (404, 409, 422)
    assert refusal(work, "open", instance, {})[0] in (409, 422)
    assert refusal(work, "click", "x", click) == (422, "bad_input")


@pytest.mark.parametrize(
    "change",
    [
        {"event_id": None},
        {"event_id": 5},
        {"event_id": "\ud800"},
        {"seq": "two"},
        {"seq": 2.5},
        {"seq": -1},
        {"seq": 10**30},
        {"lease_no": 10**30},
        {"session_epoch": 10**30},
        {"instance_id": 3},
        {"kind": None},
        {"kind": ["click"]},
        {"kind": "\ud800"},
        {"client_time": "yesterday"},
        {"client_time": 1e300},
        {"client_time": "0001-01-01T00:00:00+14:00"},
        {"client_time": "9999-12-31T23:59:59-14:00"},
        {"annotator_id": "me"},
        {"server_time": "2020-01-01T00:00:00Z"},
        {"\ud800": 1},
    ],
)
def test_bad_event_is_refused(shared: tuple[Work, str], change: dict[str, Any]) -> None:
    work, instance = shared
    event = {**work.event("click", instance, x=5, y=5, is_positive=True), **change}
    answer = post_raw(work, json.dumps({"events": [event]}))
    assert answer.status_code in (409, 422), answer.text
    assert code_of(answer) in ("bad_input", "gap", "lease_lost", "stale_epoch")


@pytest.mark.parametrize("body", ["", "[]", "null", "{", '{"events":[]}', "[" * 90_000, '{"a":' * 20_000, "1" * 9000])
def test_malformed_json_is_refused_on_every_mutation(shared: tuple[Work, str], body: str) -> None:
    work, _ = shared
    base = f"/api/campaigns/{CAMPAIGN}"
    paths = (f"{work.path}/events", f"{base}/claim", f"{base}/requests", f"{base}/adapters/x/promote", "/api/campaigns")
    for path in paths:
        answer = work.http.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422) and code_of(answer) == "bad_input", path
        assert len(answer.content) < 2000, "the input is not echoed"


def test_other_content_types_are_refused(shared: tuple[Work, str]) -> None:
    work, _ = shared
    body = json.dumps({"claim_id": str(uuid4())})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        path = f"/api/campaigns/{CAMPAIGN}/claim"
        answer = work.http.post(path, content=body, headers={"Content-Type": kind})
        assert (answer.status_code, code_of(answer)) == (422, "bad_input")


def test_too_many_events_in_a_body_are_refused(shared: tuple[Work, str]) -> None:
    work, instance = shared
    events = [work.event("click", instance, at=seq, x=5, y=5, is_positive=True) for seq in range(3, 504)]
    answer = work.http.post(f"{work.path}/events", json={"events": events})
    assert (answer.status_code, code_of(answer)) == (422, "bad_input")


@pytest.mark.parametrize("number", [-1, 10**30, 2**63, "x", "1.5", ""])
def test_bad_numbers_in_queries_are_refused(shared: tuple[Work, str], number: Any) -> None:
    work, instance = shared
    for path, name in (
        (f"{work.path}/events", "after"),
        (f"{work.path}/instances/{instance}/mask", "seq"),
        (f"/api/campaigns/{CAMPAIGN}/images", "after"),
        (f"/api/campaigns/{CAMPAIGN}/images", "limit"),
    ):
        answer = work.http.get(path, params={name: number})
        assert (answer.status_code, code_of(answer)) == (422, "bad_input"), (path, name)


def test_masks_of_seqs_that_are_not_the_instances_are_refused(shared: tuple[Work, str]) -> None:
    work, instance = shared
    path = f"{work.path}/instances/{instance}/mask"
    assert work.http.get(path, params={"seq": 2}).status_code == 200
    for params in ({"seq": 3}, {"seq": 10**6}, {"format": "png"}):
        answer = work.http.get(path, params=params)
        assert answer.status_code in (404, 422) and code_of(answer) in ("not_found", "bad_input"), params


@pytest.mark.parametrize(
    "change",
    [
        {"id": "x"},
        {"name": ""},
        {"name": "a/b"},
        {"name": "."},
        {"name": ".."},
        {"name": " "},
        {"name": "a\0b"},
        {"name": "\ud800"},
        {"name": "x" * 201},
        {"labels": [""]},
        {"labels": ["a", "a"]},
        {"labels": ["a\0"]},
        {"labels": "disc"},
        {"labels": ["x" * 256]},
        {"labels": ["x" * 201]},
        {"images": ""},
        {"images": None},
        {"settings": {"holdout_fraction": NAN}},
        {"settings": {"holdout_fraction": 2}},
        {"settings": {"lease_s": INF}},
        {"settings": {"lease_s": 0}},
        {"settings": {"retrain_every_s": NAN}},
        {"settings": {"retrain_every_masks": 10**30}},
        {"settings": {"seed": 10**400}},
        {"settings": {"more": 1}},
        {"model": ""},
        {"model": "\ud800"},
        {"model": "x" * 300},
        {"owner": "me"},
    ],
)
def test_bad_campaign_is_refused(gateway: Gateway, http: httpx.Client, change: dict[str, Any]) -> None:
    good = {"id": str(uuid4()), "name": f"new {uuid4()}", "images": str(gateway.services.settings.workspace)}
    body = json.dumps({**good, **change})
    answer = http.post("/api/campaigns", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, code_of(answer)) == (422, "bad_input"), answer.text


@pytest.mark.parametrize(
    "change",
    [
        {"id": "x"},
        {"kind": "launch"},
        {"kind": None},
        {"payload": []},
        {"payload": {"a": NAN}},
        {"payload": {"a": "\ud800"}},
        {"payload": {"\ud800": 1}},
        {"payload": {"a": "\0"}},
        {"payload": {"a": "x" * 30_000}},
        {"payload": {"a": [[[[[[[[[[[[]]]]]]]]]]]]}},
        {"campaign": "other"},
    ],
)
def test_bad_request_is_refused(http: httpx.Client, change: dict[str, Any]) -> None:
    body = json.dumps({"id": str(uuid4()), "kind": "precompute", "payload": {}, **change})
    path = f"/api/campaigns/{CAMPAIGN}/requests"
    answer = http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, code_of(answer)) == (422, "bad_input"), answer.text
    assert http.get("/api/requests", params={"campaign": CAMPAIGN}).json()["results"] == []


def test_unknown_things_are_not_found(gateway: Gateway, shared: tuple[Work, str]) -> None:
    work, _ = shared
    http, base, missing = work.http, f"/api/campaigns/{CAMPAIGN}", str(uuid4())
    request = {"id": missing, "kind": "precompute"}
    for answer in (
        http.post(f"{base}/claim", json={"claim_id": missing, "image_id": missing}),
        http.post(f"{base}/claim", json={"claim_id": missing, "image_id": "a\0\u2603"}),
        http.post(f"{base}/adapters/{'0' * 64}/promote", json={"expected_version": 0}),
        http.post(f"{base}/adapters/none/promote", json={"expected_version": 0}),
        http.post("/api/campaigns/nowhere/requests", json=request),
        http.post("/api/campaigns/nowhere/rollback"),
        http.post("/api/campaigns/nowhere/pause"),
        http.get("/api/campaigns/nowhere/images"),
        http.get("/api/campaigns/nowhere/adapters"),
        http.get("/api/campaigns/nowhere/snapshots"),
        http.get("/api/requests", params={"campaign": "nowhere"}),
        http.post(f"/api/requests/{missing}/cancel"),
        http.get("/static/nothing.js"),
    ):
        assert (answer.status_code, code_of(answer)) == (404, "not_found"), (answer.request.url, answer.text)
        assert answer.headers["x-request-id"]


def test_half_a_character_is_refused(shared: tuple[Work, str]) -> None:
    work, _ = shared
    claim = json.dumps({"claim_id": str(uuid4()), "image_id": "\ud800"})
    answer = work.http.post(
        f"/api/campaigns/{CAMPAIGN}/claim", content=claim, headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, code_of(answer)) == (422, "bad_input"), answer.text
    opened = json.dumps({"events": [work.event("open", str(uuid4()), mask_id="\ud800")]})
    answer = post_raw(work, opened)
    assert (answer.status_code, code_of(answer)) == (422, "bad_input"), answer.text


def test_wrong_methods_are_refused_in_the_one_shape(http: httpx.Client) -> None:
    for method, path in (("DELETE", "/api/campaigns"), ("PUT", f"/api/campaigns/{CAMPAIGN}"), ("POST", "/healthz")):
        answer = http.request(method, path)
        assert (answer.status_code, code_of(answer)) == (405, "bad_input")


def test_lost_lease_is_told_and_what_was_done_stays_readable(tmp_path_factory: pytest.TempPathFactory) -> None:
    where = tmp_path_factory.mktemp("lease")
    with gateway_in(where, images=1, lease_s=0.3) as short, short.http("slow") as slow, short.http("quick") as quick:
        work = Work(slow)
        instance = work.opened()
        work.click(instance)
        time.sleep(0.35)
        body = {"claim_id": str(uuid4())}
        taken = quick.post(f"/api/campaigns/{CAMPAIGN}/claim", json=body).json()
        assert taken["task"] == work.claim["task"] and taken["lease_no"] == work.claim["lease_no"] + 1
        for event in (work.event("click", instance, x=5, y=5, is_positive=True), work.event("submit")):
            refused = work.post(event)
            assert (refused.status_code, code_of(refused)) == (409, "lease_lost")
        opened = slow.post(f"{work.path}/open")
        assert opened.status_code in (200, 409)
        listed = slow.get(f"{work.path}/events").json()
        assert [event["kind"] for event in listed["results"]] == ["open", "click"]
        assert slow.get(f"{work.path}/instances/{instance}/mask").status_code == 200
        assert work.state()["state"] == "lost"


def test_what_our_own_checks_say_comes_without_a_librarys_prefix(gateway: Gateway) -> None:
    new = {"id": str(uuid4()), "name": "x", "images": "/x", "settings": {"window": [5, 1]}}
    with gateway.http() as http:
        answer = http.post("/api/campaigns", json=new)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == "body.settings.window: its first sample must be below its second."
