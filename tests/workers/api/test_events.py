"""Events over HTTP: acks, masks, undo, accept in one transaction, and every refusal by its name."""

import json
import threading
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest

from pipeline.masks.digest import mask_digest
from pipeline.masks.packed import unpack
from pipeline.masks.rle import mask_to_rle, rle_to_mask
from pipeline.storage.masks import current_masks, get_mask, import_masks
from pipeline.storage.sessions import session_instances, session_results
from schemas.masks import PackedMask, Rle
from tests.workers.api.gateway import CAMPAIGN, Gateway, Work, code_of


def rle_of(answer: dict[str, Any]) -> np.ndarray:
    return rle_to_mask(Rle.model_validate(answer["mask"]["rle"]))


def test_click_is_acknowledged_and_gives_the_mask_of_the_disc(work: Work) -> None:
    instance = work.opened()
    answer = work.click(instance)
    assert [ack["seq"] for ack in answer["acks"]] == [2]
    assert answer["durable_seq"] == 2
    mask = rle_of(answer)
    assert mask.shape == (120, 160) and mask[60, 80] and 1500 < mask.sum() < 5000
    assert answer["mask"]["mask_sha256"] == mask_digest(mask)
    assert answer["mask"]["area"] == mask.sum()


def test_bits_and_rle_are_the_same_mask(work: Work) -> None:
    instance = work.opened()
    first = work.click(instance)
    bits = work.http.get(f"{work.path}/instances/{instance}/mask", params={"format": "bits"}).json()
    assert (unpack(PackedMask.model_validate(bits["bits"])) == rle_of(first)).all()
    assert bits["seq"] == 2


def test_several_events_in_one_body_give_the_last_mask(work: Work) -> None:
    instance = str(uuid4())
    events = [
        work.event("open", instance),
        work.event("click", instance, at=2, x=80, y=60, is_positive=True),
        work.event("click", instance, at=3, x=5, y=5, is_positive=False),
    ]
    answer = work.post(*events).json()
    assert [ack["seq"] for ack in answer["acks"]] == [1, 2, 3]
    assert answer["mask"]["seq"] == 3 and not rle_of(answer)[5, 5]


def test_negative_click_is_out_and_positive_in_whatever_the_model_says(work: Work) -> None:
    instance = work.opened()
    work.click(instance)
    mask = rle_of(work.click(instance, 80, 60, is_positive=False))
    assert not mask[60, 80]
    assert rle_of(work.click(instance, 3, 3))[3, 3]


def test_undo_restores_the_very_mask_and_redo_brings_it_back(work: Work) -> None:
    instance = work.opened()
    first = work.click(instance)
    second = work.click(instance, 10, 10)
    event_id = second["acks"][0]["event_id"]
    undone = work.do("undo", instance, event_id=event_id)
    assert undone["mask"]["mask_sha256"] == first["mask"]["mask_sha256"]
    redone = work.do("redo", instance, event_id=undone["acks"][0]["event_id"])
    assert redone["mask"]["mask_sha256"] == second["mask"]["mask_sha256"]


def test_undo_that_does_not_name_the_top_is_refused_with_the_top(work: Work) -> None:
    instance = work.opened()
    first, second = (work.click(instance, x, 60)["acks"][0]["event_id"] for x in (80, 85))
    refused = work.post(work.event("undo", instance, event_id=first))
    assert (refused.status_code, code_of(refused)) == (409, "undo_mismatch")
    assert refused.json()["error"]["details"]["top"] == second
    assert work.state()["last_seq"] == 3


def test_brush_box_and_mask_edit_change_the_mask(work: Work) -> None:
    instance = work.opened()
    mask = rle_of(work.do("box", instance, x0=35, y0=15, x1=125, y1=105))
    assert mask[60, 80]
    stroke = mask_to_rle(np.ones((4, 6), bool)).model_dump(mode="json")
    painted = rle_of(work.do("brush", instance, is_positive=True, box=[0, 0, 6, 4], rle=stroke))
    assert painted[:4, :6].all()
    nothing = mask_to_rle(np.zeros((4, 6), bool)).model_dump(mode="json")
    edit = {"tool": "polygon", "box": [0, 0, 6, 4], "added": nothing, "erased": stroke}
    assert not rle_of(work.do("mask_edit", instance, **edit))[:4, :6].any()


def test_candidate_must_exist_before_it_is_stored(work: Work) -> None:
    instance = work.opened()
    refused = work.post(work.event("candidate", instance, index=0))
    assert (refused.status_code, code_of(refused)) == (422, "bad_input")
    scores = work.click(instance)["mask"]["scores"]
    work.do("candidate", instance, index=len(scores) - 1)
    assert code_of(work.post(work.event("candidate", instance, index=len(scores)))) == "bad_input"


def test_accept_stores_the_mask_of_its_prefix_in_the_same_transaction(gateway: Gateway, work: Work) -> None:
    instance = work.opened()
    shown = work.click(instance)
    work.click(instance, 5, 5)
    answer = work.do("accept", instance, seq=2, mask_sha256=shown["mask"]["mask_sha256"], category=2)
    event_id = answer["acks"][0]["event_id"]
    with gateway.services.database.connect() as conn:
        mask = get_mask(conn, event_id)
        [row] = session_instances(conn, work.session_id)
    assert mask.mask_sha256 == shown["mask"]["mask_sha256"]
    assert (mask.seq, mask.num_clicks, mask.category_number) == (2, 1, 2)
    assert mask.score == shown["mask"]["scores"][0] > 0
    assert mask.rle_counts == shown["mask"]["rle"]["counts"]
    assert mask.model_digest and mask.engine and mask.embedding_digest == shown["mask"]["embedding_digest"]
    assert (row.state, row.mask_id, row.category_number) == ("accepted", event_id, 2)
    [state] = work.state()["instances"]
    assert state["accepted"] == {"mask_id": event_id, "seq": 2} and state["seq"] == 3


def test_what_a_model_stated_of_a_proposal_holds_as_long_as_nobody_changes_its_pixels(
    gateway: Gateway, work: Work
) -> None:
    mask = np.zeros((120, 160), bool)
    mask[40:80, 60:100] = True
    database = gateway.services.database
    proposal = {
        "mask_id": str(uuid4()), "instance_id": str(uuid4()), "image_id": work.claim["image"]["id"],
        "category_number": 1, "rle": mask_to_rle(mask), "mask_sha256": mask_digest(mask), "area": 1600,
        "bbox": (60, 40, 40, 40), "score": 0.75,
    }  # fmt: skip
    with database.begin() as conn:
        import_masks(conn, [proposal], is_trusted=False)
    instance = str(uuid4())
    work.do("open", instance, mask_id=proposal["mask_id"])
    accepted = work.do("accept", instance, seq=1, mask_sha256=proposal["mask_sha256"], category=1)
    more, none = (mask_to_rle(np.full((4, 6), value)).model_dump(mode="json") for value in (True, False))
    edit = work.do("mask_edit", instance, tool="polygon", box=[0, 0, 6, 4], added=more, erased=none)
    painted = edit["mask"]["mask_sha256"]
    changed = work.do("accept", instance, seq=3, mask_sha256=painted, category=1)
    with database.connect() as conn:
        scores = [get_mask(conn, answer["acks"][0]["event_id"]).score for answer in (accepted, changed)]
    assert scores == [0.75, None]


def test_accept_of_another_mask_than_shown_stores_nothing_and_returns_the_mask(gateway: Gateway, work: Work) -> None:
    instance = work.opened()
    shown = work.click(instance)["mask"]
    refused = work.post(work.event("accept", instance, seq=2, mask_sha256="0" * 64))
    assert (refused.status_code, code_of(refused)) == (409, "stale_preview")
    assert refused.json()["error"]["details"]["mask"]["mask_sha256"] == shown["mask_sha256"]
    assert work.state()["last_seq"] == 2
    work.do("accept", instance, seq=2, mask_sha256=refused.json()["error"]["details"]["mask"]["mask_sha256"])


def test_empty_mask_is_not_accepted(work: Work) -> None:
    instance = work.opened()
    empty = mask_digest(np.zeros((120, 160), bool))
    assert code_of(work.post(work.event("accept", instance, seq=1, mask_sha256=empty))) == "bad_input"


def test_submitted_masks_count_and_undone_accepts_do_not(gateway: Gateway, work: Work) -> None:
    kept, dropped, deleted = work.opened(), work.opened(), work.opened()
    for instance in (kept, dropped, deleted):
        digest = work.click(instance)["mask"]["mask_sha256"]
        accepted = work.do("accept", instance, seq=work.seq, mask_sha256=digest, category=1)
        if instance == dropped:
            work.do("undo", instance, event_id=accepted["acks"][0]["event_id"])
    work.do("delete", deleted)
    work.do("submit")
    with gateway.services.database.connect() as conn:
        masks = current_masks(conn, CAMPAIGN, image_id=work.claim["image"]["id"])
    assert [mask.instance_id for mask in masks] == [kept]
    assert code_of(work.post(work.event("click", kept, x=1, y=1, is_positive=True))) == "wrong_state"


def test_corrected_image_opens_the_stored_mask_and_replaces_it(gateway: Gateway, work: Work) -> None:
    instance = work.opened()
    digest = work.click(instance)["mask"]["mask_sha256"]
    accepted = work.do("accept", instance, seq=2, mask_sha256=digest, category=1)["acks"][0]["event_id"]
    work.do("submit")
    again = Work(work.http, image_id=work.claim["image"]["id"])
    reopened = str(uuid4())
    shown = again.do("open", reopened, mask_id=accepted)
    assert shown["mask"]["mask_sha256"] == digest
    refined = again.click(reopened, 3, 3)["mask"]
    again.do("accept", reopened, seq=2, mask_sha256=refined["mask_sha256"])
    again.do("submit")
    with gateway.services.database.connect() as conn:
        [mask] = current_masks(conn, CAMPAIGN, image_id=work.claim["image"]["id"])
    assert (mask.instance_id, mask.parent_id) == (reopened, accepted)
    other = Work(work.http)
    assert code_of(other.post(other.event("open", str(uuid4()), mask_id=accepted))) == "not_found"
    assert code_of(other.post(other.event("open", str(uuid4()), mask_id="nothing"))) == "not_found"


def test_results_are_kept_beside_the_events(gateway: Gateway, work: Work) -> None:
    instance = work.opened()
    answer = work.click(instance)
    work.state()

    def results() -> dict[str, Any]:
        with gateway.services.database.connect() as conn:
            return session_results(conn, work.session_id)

    for _ in range(100):
        if len(results()) == 2:
            break
        threading.Event().wait(0.02)
    result = results()[answer["acks"][0]["event_id"]]
    assert result.mask_sha256 == answer["mask"]["mask_sha256"]
    assert result.engine == answer["mask"]["engine"] and "model" in result.latency_ms


def test_repeated_event_is_acknowledged_again_and_stored_once(work: Work) -> None:
    instance = work.opened()
    event = work.event("click", instance, x=80, y=60, is_positive=True)
    first, again = work.post(event).json(), work.post(event).json()
    assert again["acks"] == [{**first["acks"][0], "duplicate": True}]
    assert again["mask"]["mask_sha256"] == first["mask"]["mask_sha256"]
    assert work.state()["last_seq"] == 2
    renumbered = {**event, "seq": 3}
    assert work.post(renumbered).json()["acks"][0]["seq"] == 2
    work.seq = 2
    work.click(instance, 5, 5)


def test_known_id_with_another_payload_is_a_conflict_with_what_is_lacking(work: Work) -> None:
    instance = work.opened()
    event = work.event("click", instance, x=80, y=60, is_positive=True)
    work.post(event)
    refused = work.post({**event, "payload": {"x": 81, "y": 60, "is_positive": True}})
    assert (refused.status_code, code_of(refused)) == (409, "conflict")
    [lacking] = refused.json()["error"]["details"]["events"]
    assert lacking["event_id"] == event["event_id"]


def test_same_seq_with_another_id_is_a_conflict(work: Work) -> None:
    instance = work.opened()
    work.click(instance)
    refused = work.post(work.event("click", instance, at=2, x=1, y=1, is_positive=True))
    assert (refused.status_code, code_of(refused)) == (409, "conflict")
    assert [event["seq"] for event in refused.json()["error"]["details"]["events"]] == [2]


def test_gap_says_what_is_expected(work: Work) -> None:
    instance = work.opened()
    refused = work.post(work.event("click", instance, at=5, x=1, y=1, is_positive=True))
    assert (refused.status_code, code_of(refused)) == (409, "gap")
    assert refused.json()["error"]["details"]["expected"] == 2


def test_refused_event_in_a_batch_reports_the_acks_before_it(work: Work) -> None:
    instance = str(uuid4())
    refused = work.post(work.event("open", instance), work.event("click", instance, at=2, x=999, y=1, is_positive=True))
    assert code_of(refused) == "click_outside_image"
    assert [ack["seq"] for ack in refused.json()["error"]["details"]["acks"]] == [1]
    assert work.state()["last_seq"] == 1


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"x": 160, "y": 0, "is_positive": True}, "click_outside_image"),
        ({"x": -1, "y": 0, "is_positive": True}, "click_outside_image"),
        ({"x": float("nan"), "y": 0, "is_positive": True}, "bad_input"),
        ({"x": float("inf"), "y": 0, "is_positive": True}, "bad_input"),
        ({"x": "left", "y": 0, "is_positive": True}, "bad_input"),
        ({"x": [1], "y": 0, "is_positive": True}, "bad_input"),
        ({"x": 1, "y": 0}, "bad_input"),
        ({"x": 1, "y": 0, "is_positive": True, "more": 1}, "bad_input"),
    ],
)
def test_bad_click_is_refused_before_anything_is_stored(work: Work, payload: dict[str, Any], code: str) -> None:
    instance = work.opened()
    body = json.dumps({"events": [{**work.event("click", instance), "payload": payload}]})
    refused = work.http.post(f"{work.path}/events", content=body, headers={"Content-Type": "application/json"})
    assert (refused.status_code, code_of(refused)) == (422, code)
    assert work.state()["last_seq"] == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"events": []}',
        b'{"events": 3}',
        b'{"events": [{"kind": "wave"}]}',
        b'{"events": [{"event_id": "no uuid", "seq": 1, "session_epoch": 1, "lease_no": 1, "kind": "submit"}]}',
        b"[" * 50_000,
        b"\xff\xfe",
    ],
)
def test_malformed_body_is_bad_input(work: Work, body: bytes) -> None:
    refused = work.http.post(f"{work.path}/events", content=body, headers={"Content-Type": "application/json"})
    assert refused.status_code in (400, 422) and code_of(refused) == "bad_input"


@pytest.mark.parametrize("field", ["seq", "session_epoch", "lease_no"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "x", None, 10**30])
def test_numbers_of_an_event_are_checked(work: Work, field: str, value: Any) -> None:
    refused = work.post({**work.event("open", str(uuid4())), field: value, "seq": value if field == "seq" else 1})
    assert refused.status_code in (409, 422)
    assert work.state()["last_seq"] == 0


def test_unknown_things_are_not_found(work: Work) -> None:
    http = work.http
    missing = str(uuid4())
    for answer in (
        http.get(f"/api/sessions/{missing}"),
        http.post(f"/api/sessions/{missing}/open"),
        http.get(f"/api/sessions/{missing}/events"),
        http.post(f"/api/sessions/{missing}/events", json={"events": [work.event("submit")]}),
        http.get(f"{work.path}/instances/{missing}/mask"),
        http.get("/api/campaigns/nowhere"),
        http.get("/api/campaigns/nowhere/status"),
        http.post("/api/campaigns/nowhere/claim", json={"claim_id": missing}),
        http.get(f"/api/images/{missing}/content"),
        http.get(f"/api/requests/{missing}"),
        http.get("/api/nothing/here"),
    ):
        assert (answer.status_code, code_of(answer)) == (404, "not_found"), answer.request.url


def test_somebody_elses_session_is_forbidden(gateway: Gateway, work: Work) -> None:
    instance = work.opened()
    with gateway.http("someone else") as other:
        event = work.event("click", instance, x=80, y=60, is_positive=True)
        for answer in (
            other.post(f"{work.path}/events", json={"events": [event]}),
            other.post(f"{work.path}/open"),
        ):
            assert (answer.status_code, code_of(answer)) == (403, "forbidden")
    assert work.state()["last_seq"] == 1


def test_foreign_lease_number_is_refused(work: Work) -> None:
    event = {**work.event("open", str(uuid4())), "lease_no": work.claim["lease_no"] + 1}
    assert code_of(work.post(event)) == "lease_lost"


def test_opening_again_turns_the_older_connection_read_only(work: Work) -> None:
    instance = work.opened()
    opened = work.http.post(f"{work.path}/open").json()
    assert opened["epoch"] == work.epoch + 1
    refused = work.post(work.event("click", instance, x=80, y=60, is_positive=True))
    assert (refused.status_code, code_of(refused)) == (409, "stale_epoch")
    assert refused.json()["error"]["details"]["epoch"] == opened["epoch"]
    assert work.http.get(f"{work.path}/instances/{instance}/mask").status_code == 200
    work.epoch = opened["epoch"]
    work.click(instance)


def test_instance_has_a_bounded_number_of_events_and_can_still_be_accepted(work: Work) -> None:
    instance = work.opened()
    clicks = [work.event("click", instance, at=seq, x=60 + seq, y=60, is_positive=True) for seq in range(2, 41)]
    shown = work.post(*clicks).json()["mask"]
    refused = work.post(work.event("click", instance, x=1, y=1, is_positive=True))
    assert (refused.status_code, code_of(refused)) == (413, "too_large")
    work.do("accept", instance, seq=40, mask_sha256=shown["mask_sha256"])


def test_oversized_bodies_are_refused_by_length_and_while_streaming(gateway: Gateway, work: Work) -> None:
    limit = gateway.services.settings.max_body_bytes
    big = b'{"events": "' + b"x" * limit + b'"}'
    refused = work.http.post(f"{work.path}/events", content=big)
    assert (refused.status_code, code_of(refused)) == (413, "too_large")
    streamed = work.http.post(f"{work.path}/events", content=(big[i : i + 65536] for i in range(0, len(big), 65536)))
    assert (streamed.status_code, code_of(streamed)) == (413, "too_large")


def test_events_can_be_read_back_in_order(work: Work) -> None:
    instance = work.opened()
    work.click(instance)
    listed = work.http.get(f"{work.path}/events").json()
    assert [event["kind"] for event in listed["results"]] == ["open", "click"]
    assert listed["results"][0]["pins"]["model_digest"]
    assert [e["seq"] for e in work.http.get(f"{work.path}/events", params={"after": 1}).json()["results"]] == [2]


def test_concurrent_senders_of_the_same_seq_get_one_ack_and_conflicts(gateway: Gateway, work: Work) -> None:
    instance = work.opened()
    answers: list[httpx.Response] = []

    def send() -> None:
        with gateway.http() as http:
            event = work.event("click", instance, at=2, x=80, y=60, is_positive=True)
            answers.append(http.post(f"{work.path}/events", json={"events": [event]}))

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 5
    assert {code_of(answer) for answer in answers if answer.status_code == 409} == {"conflict"}
    assert work.state()["last_seq"] == 2


def test_accepted_masks_come_many_in_a_call_while_they_stand(work: Work) -> None:
    first, second = work.opened(), work.opened()
    for instance, x in ((first, 80), (second, 70)):
        shown = work.click(instance, x=x)["mask"]
        work.do("accept", instance, seq=work.seq, mask_sha256=shown["mask_sha256"], category=1)
    found = work.http.get(f"{work.path}/masks").json()
    assert [one["instance_id"] for one in found["results"]] == [first, second] and found["next"] is None
    for one in found["results"]:
        alone = work.http.get(f"{work.path}/instances/{one['instance_id']}/mask").json()
        assert {name: alone[name] for name in ("mask_sha256", "box_xywh", "rle", "area")} == {
            name: one[name] for name in ("mask_sha256", "box_xywh", "rle", "area")
        }
        assert one["seq"] == alone["seq"]
    work.click(first, x=20, y=20, is_positive=False)  # no longer what was accepted
    work.do("delete", second)
    assert work.http.get(f"{work.path}/masks").json()["results"] == []
