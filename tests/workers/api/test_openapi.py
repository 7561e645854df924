"""Generated requests to every route of the OpenAPI document: no failure of the server, every answer as documented."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pipeline.export.snapshot import export_snapshot
from pipeline.storage.campaigns import get_campaign
from pipeline.storage.requests import claim_request, finish_request
from schemas.requests import PAYLOADS
from tests.workers.api.gateway import CAMPAIGN, Gateway, Work, gateway_in
from workers.api.routes.requests import PLACES

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_in(tmp_path_factory.mktemp("openapi"), images=60) as running:
        yield running


@pytest.fixture(scope="module")
def real(gateway: Gateway) -> Iterator[dict[str, Any]]:
    """Ids of things that exist, by the name of the parameter, and the session that they are of."""
    with gateway.http() as http:
        labelled = Work(http)
        instance = labelled.opened()
        mask = labelled.click(instance)["mask"]
        labelled.do("accept", instance, seq=mask["seq"], mask_sha256=mask["mask_sha256"], category=1)
        labelled.do("submit")
        work = Work(http)
        opened = work.opened()
        work.click(opened)
        yield {
            "campaign": CAMPAIGN,
            "image_id": labelled.claim["image"]["id"],
            "session_id": work.session_id,
            "instance_id": opened,
            "request_id": exported(gateway, http),
            "path": "coco/instances.json",
            "digest": "0" * 64,
            **{"level": 0, "column": 0, "row": 0},
            "place": str(gateway.services.settings.workspace.resolve()),
            "work": work,
        }


def exported(gateway: Gateway, http: httpx.Client) -> str:
    """A finished export's request."""
    request_id, database = str(uuid4()), gateway.services.database
    body = {"id": request_id, "kind": "export", "payload": {"formats": ["coco"]}}
    assert http.post(f"/api/campaigns/{CAMPAIGN}/requests", json=body).status_code == 202
    with database.begin() as conn:
        claim_request(conn, "runner", request_id=request_id)
        campaign = get_campaign(conn, CAMPAIGN)
    report = export_snapshot(database, campaign, f"{gateway.services.settings.resolved_storage_url}/one", ["coco"])
    result = {"snapshot": report.snapshot_number, **report.model_dump(mode="json")}
    with database.begin() as conn:
        finish_request(conn, request_id, "runner", "done", result)
    return request_id


def plausible(draw: Callable[[Any], Any], case: schemathesis.Case, real: dict[str, Any]) -> None:
    """Put what exists into most cases, so that the handlers get further than to a 404."""
    for name in case.path_parameters or {}:
        if draw(st.integers(0, 3)):
            case.path_parameters[name] = real[name]
    if draw(st.integers(0, 7)):
        case.headers.pop("authorization", None)
        case.headers["x-annotator"] = "ann"
    fill = BODIES.get(case.operation.label)
    if fill is not None and isinstance(case.body, dict) and draw(st.integers(0, 3)):
        case.body = {**case.body, **fill(draw, real)}


def claim_body(draw: Callable[[Any], Any], real: dict[str, Any]) -> dict[str, Any]:
    return {"claim_id": str(uuid4()), "image_id": draw(st.sampled_from([None, real["image_id"], "\0", "x"]))}


def request_body(draw: Callable[[Any], Any], real: dict[str, Any]) -> dict[str, Any]:
    kind = draw(st.sampled_from(list(PAYLOADS)))
    place = draw(st.sampled_from([real["place"], "/etc", "s3://bucket", "\0", ""]))
    payload = {PLACES[kind]: place} if kind in PLACES and draw(st.booleans()) else {}
    return {"id": str(uuid4()), "kind": kind, "payload": payload}


def campaign_body(draw: Callable[[Any], Any], real: dict[str, Any]) -> dict[str, Any]:
    place = draw(st.sampled_from([real["place"], "/etc", "s3://bucket"]))
    fine = {"name": str(uuid4()), "labels": [], "annotations": None, "model": "default", "checkpoint": None}
    return {"id": str(uuid4()), "images": place, **(fine | {"settings": {}} if draw(st.booleans()) else {})}


def events_body(draw: Callable[[Any], Any], real: dict[str, Any]) -> dict[str, Any]:
    work: Work = real["work"]
    state = work.state()
    work.seq, work.epoch = state["last_seq"], state["epoch"]
    number = st.floats(-10, 170) | st.integers(0, 2**40) | st.none()
    payloads = {
        "click": {"x": 80, "y": draw(number), "is_positive": draw(st.booleans())},
        "candidate": {"index": draw(st.integers(0, 3))},
        "category": {"category": draw(st.integers(-1, 3))},
        "undo": {"event_id": str(uuid4())},
        "accept": {"seq": work.seq, "mask_sha256": "0" * 64},
        "flag": {"unsure": True, "note": draw(st.text(max_size=3))},
        "open": {},
    }
    kind = draw(st.sampled_from(list(payloads)))
    instance = str(uuid4()) if kind == "open" else real["instance_id"]
    return {"events": [work.event(kind, instance, **payloads[kind])], "mask": draw(st.sampled_from(["rle", "bits"]))}


BODIES = {
    "POST /api/campaigns/{campaign}/claim": claim_body,
    "POST /api/campaigns/{campaign}/requests": request_body,
    "POST /api/campaigns": campaign_body,
    "POST /api/sessions/{session_id}/events": events_body,
}


def hammer(operation: Any, gateway: Gateway, real: dict[str, Any], examples: int) -> set[int]:
    """So many generated requests to an operation, all answered as documented; the statuses that were seen."""
    seen = set[int]()

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy())
        plausible(data.draw, case, real)
        answer = case.call(base_url=gateway.url, session=session, timeout=20)
        seen.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    with requests.Session() as session:
        session.trust_env = False
        run()
    return seen


def check_all(gateway: Gateway, real: dict[str, Any], examples: int) -> None:
    """Hammer every operation; fails with the problems of all."""
    with gateway.http() as http:
        document = http.get("/openapi.json").json()
    problems, statuses = {}, dict[str, set[int]]()
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = found.ok()
        try:
            statuses[operation.label] = hammer(operation, gateway, real, examples)
        except (Exception, BaseExceptionGroup) as error:
            problems[operation.label] = str(error)[:1500]
    assert not problems, "\n\n".join(f"{label}: {problem}" for label, problem in problems.items())
    assert len(statuses) == sum(len(operations) for operations in document["paths"].values())
    assert {label for label, seen in statuses.items() if min(seen) >= 300} == UNREACHED


UNREACHED = {"POST /api/campaigns/{campaign}/adapters/{digest}/promote", "POST /api/campaigns/{campaign}/rollback"}
"""There is no adapter to make live."""


@pytest.mark.timeout(110)
def test_every_route_answers_as_documented(gateway: Gateway, real: dict[str, Any]) -> None:
    check_all(gateway, real, 25)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_route_answers_as_documented_to_many_requests(gateway: Gateway, real: dict[str, Any]) -> None:
    check_all(gateway, real, 400)
