"""The rules of the event log: acknowledged means durable, one order, nothing dropped without a word."""

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from pipeline.storage.click_log import Effects, InstanceChange, append_event, record_results
from pipeline.storage.database import Database
from pipeline.storage.masks import get_mask, session_masks
from pipeline.storage.sessions import (
    event_by_id,
    get_session,
    reopen_session,
    session_events,
    session_instances,
    session_results,
)
from pipeline.storage.tasks import claim_task
from schemas.campaigns import Claim
from schemas.catalogue import EventResultRecord
from schemas.errors import (
    BadInputError,
    ConflictError,
    ForbiddenError,
    GapError,
    LeaseLostError,
    NotFoundError,
    StaleEpochError,
    StateError,
)
from schemas.events import EventIn
from schemas.tables import EventRow, Lease, Task
from tests.pipeline.storage.catalogues import LEASE_S, SHA, Catalogue, event, new_mask, new_uuid


def _count(catalogue: Catalogue) -> int:
    with catalogue.database.connect() as conn:
        return int(conn.execute(select(func.count()).select_from(EventRow)).scalar_one())


def test_event_is_stored_as_sent(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    sent = event(claim, 1, client_time="2020-02-03T04:05:06+02:00")
    done = catalogue.append(claim, sent, pins={"model_digest": SHA})
    assert (done.event_id, done.seq, done.duplicate) == (str(sent.event_id), 1, False)
    with catalogue.database.connect() as conn:
        stored = event_by_id(conn, done.event_id)
        assert stored is not None
        assert session_events(conn, claim.session_id) == [stored]
        assert get_session(conn, claim.session_id).last_seq == 1
    assert stored.payload == {"v": 1, "x": 1.0, "y": 1.0, "is_positive": True}
    assert stored.pins == {"model_digest": SHA}
    assert stored.annotator_id == catalogue.annotator_id
    assert stored.client_time is not None
    assert stored.client_time.isoformat() == "2020-02-03T02:05:06+00:00"
    assert stored.server_time is not None
    assert stored.server_time.year > 2020


def test_same_event_again_gets_the_same_acknowledgement(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    sent = event(claim, 1)
    first = catalogue.append(claim, sent)
    catalogue.append(claim, event(claim, 2))
    again = catalogue.append(claim, sent)
    assert (again.event_id, again.seq, again.duplicate) == (first.event_id, 1, True)
    assert _count(catalogue) == 2


def test_same_event_is_acknowledged_again_after_the_session_is_over(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    last = event(claim, 1, "submit")
    catalogue.append(claim, last)
    assert catalogue.append(claim, last).duplicate
    with catalogue.database.begin() as conn:
        reopen_session(conn, claim.session_id)
    assert catalogue.append(claim, last).duplicate


@pytest.mark.parametrize(
    "other",
    [
        {"payload": {"x": 9.0, "y": 9.0, "is_positive": False}},
        {"instance_id": "6a1ee1f0-6a3b-4a30-a3fd-3f2e4a3b1111"},
    ],
)
def test_same_id_with_other_content_is_a_conflict(catalogue: Catalogue, other: dict[str, Any]) -> None:
    claim = catalogue.claim()
    sent = event(claim, 1)
    catalogue.append(claim, sent)
    with pytest.raises(ConflictError) as caught:
        catalogue.append(claim, sent.model_copy(update=event(claim, 1, **other).model_dump(include=set(other))))
    assert caught.value.code == "conflict"
    assert [found["event_id"] for found in caught.value.details["events"]] == [str(sent.event_id)]
    assert _count(catalogue) == 1


def test_same_id_in_another_session_is_a_conflict(catalogue: Catalogue) -> None:
    one, two = catalogue.claim(), catalogue.claim()
    sent = event(one, 1)
    catalogue.append(one, sent)
    with pytest.raises(ConflictError):
        catalogue.append(two, event(two, 1, event_id=sent.event_id))


def test_seq_taken_by_another_event_is_a_conflict_with_what_is_lacking(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    theirs = [event(claim, seq) for seq in (1, 2, 3)]
    for sent in theirs:
        catalogue.append(claim, sent)
    with pytest.raises(ConflictError) as caught:
        catalogue.append(claim, event(claim, 2))
    assert caught.value.code == "conflict"
    assert [found["event_id"] for found in caught.value.details["events"]] == [str(e.event_id) for e in theirs[1:]]
    assert caught.value.details["last_seq"] == 3
    assert _count(catalogue) == 3


def test_gap_names_the_seq_that_is_due(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    catalogue.append(claim, event(claim, 1))
    with pytest.raises(GapError) as caught:
        catalogue.append(claim, event(claim, 3))
    assert caught.value.details == {"expected": 2}


def test_somebody_elses_session_is_forbidden(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    with pytest.raises(ForbiddenError):
        catalogue.append(claim, event(claim, 1), annotator_id=catalogue.other_id)


def test_unknown_session_is_not_found(catalogue: Catalogue) -> None:
    claim = catalogue.claim().model_copy(update={"session_id": new_uuid()})
    with pytest.raises(NotFoundError):
        catalogue.append(claim, event(claim, 1))


def test_bad_payload_is_refused(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    with pytest.raises(BadInputError):
        catalogue.append(claim, event(claim, 1, payload={"x": "left"}))
    assert _count(catalogue) == 0


def test_older_epoch_is_read_only(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    catalogue.append(claim, event(claim, 1))
    with catalogue.database.begin() as conn:
        opened = reopen_session(conn, claim.session_id)
    assert (opened.epoch, opened.last_seq) == (2, 1)
    with pytest.raises(StaleEpochError) as caught:
        catalogue.append(claim, event(claim, 2))
    assert caught.value.details["epoch"] == 2
    assert "elsewhere" in caught.value.message
    catalogue.append(claim, event(claim, 2, session_epoch=2))


def test_an_epoch_that_never_was_is_told_so(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    with pytest.raises(StaleEpochError, match="opened 1 times, the event names opening 7") as caught:
        catalogue.append(claim, event(claim, 1, session_epoch=7))
    assert caught.value.details["epoch"] == 1


def test_expired_lease_that_nobody_took_is_renewed_by_the_next_event(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    catalogue.expire(claim)
    catalogue.append(claim, event(claim, 1))
    with catalogue.database.connect() as conn:
        left = conn.execute(select(Task.lease_expires_at).where(Task.id == claim.task_id)).scalar_one()
        stored = session_events(conn, claim.session_id)[0].server_time
    assert left is not None
    assert stored is not None
    assert abs((left - stored).total_seconds() - LEASE_S) < 5


def test_taken_lease_is_lost_but_its_events_stay_readable(catalogue: Catalogue) -> None:
    first = catalogue.claim(image_id=catalogue.images[0].id)
    sent = event(first, 1)
    catalogue.append(first, sent)
    catalogue.expire(first)
    second = catalogue.claim(catalogue.other_id, image_id=catalogue.images[0].id)
    assert (second.task_id, second.lease_no) == (first.task_id, first.lease_no + 1)

    with pytest.raises(LeaseLostError):
        catalogue.append(first, event(first, 2))
    assert catalogue.append(first, sent).duplicate
    catalogue.append(second, event(second, 1), annotator_id=catalogue.other_id)

    with catalogue.database.connect() as conn:
        assert get_session(conn, first.session_id).state == "lost"
        assert [found.event_id for found in session_events(conn, first.session_id)] == [str(sent.event_id)]
        ended = conn.execute(select(Lease.end_reason).where(Lease.session_id == first.session_id)).scalar_one()
    assert ended == "expired"


def test_event_with_another_lease_number_is_refused(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    with pytest.raises(LeaseLostError):
        catalogue.append(claim, event(claim, 1, lease_no=2))


@pytest.mark.parametrize(
    ("kind", "session_state", "task_state"),
    [("submit", "submitted", "done"), ("skip", "skipped", "skipped"), ("release", "released", "new")],
)
def test_last_event_moves_session_and_task(
    catalogue: Catalogue, kind: str, session_state: str, task_state: str
) -> None:
    claim = catalogue.claim()
    catalogue.append(claim, event(claim, 1, kind))
    with catalogue.database.connect() as conn:
        task = conn.execute(select(Task.__table__).where(Task.id == claim.task_id)).one()
        lease = conn.execute(select(Lease.ended_at, Lease.end_reason).where(Lease.task_id == claim.task_id)).one()
        assert get_session(conn, claim.session_id).state == session_state
    assert (task.state, task.annotator_id, task.lease_expires_at) == (task_state, None, None)
    assert lease.ended_at is not None
    assert lease.end_reason == session_state
    with pytest.raises(StateError):
        catalogue.append(claim, event(claim, 2))


def test_released_task_is_given_out_again_under_a_new_number(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    catalogue.append(claim, event(claim, 1, "release"))
    again = catalogue.claim()
    assert (again.task_id, again.lease_no) == (claim.task_id, claim.lease_no + 1)


def test_accept_writes_an_immutable_numbered_version(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    instance = new_uuid()
    masks = []
    for turn in (0, 1):
        mask = new_mask(instance, 2 * turn + 1, engine={"runtime": "torch"})
        sent = event(claim, 2 * turn + 1, instance_id=instance)
        catalogue.append(claim, sent, effects=Effects([InstanceChange(instance)]))
        accept = event(claim, 2 * turn + 2, "accept", instance_id=instance, payload={"seq": 1, "mask_sha256": SHA})
        change = InstanceChange(instance, "accepted", 1, mask_id=mask.mask_id)
        catalogue.append(claim, accept, effects=Effects([change], mask))
        masks.append(mask)
    with catalogue.database.connect() as conn:
        first, second = session_masks(conn, claim.session_id)
        [projected] = session_instances(conn, claim.session_id)
        assert get_mask(conn, first.id) == first
    assert (first.number, first.version, first.parent_id) == (1, 1, None)
    assert (second.number, second.version, second.parent_id) == (2, 2, first.id)
    assert (projected.state, projected.mask_id) == ("accepted", masks[1].mask_id)
    assert first.rle.size == (4, 4)
    assert first.engine == {"runtime": "torch"}
    assert second.event_id == str(accept.event_id)


def test_refused_event_leaves_no_effect(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    instance = new_uuid()
    effects = Effects([InstanceChange(instance)], new_mask(instance, 1))
    with pytest.raises(GapError):
        catalogue.append(claim, event(claim, 2, instance_id=instance), effects=effects)
    with catalogue.database.connect() as conn:
        assert session_instances(conn, claim.session_id) == []
        assert session_masks(conn, claim.session_id) == []


def test_instance_of_another_session_is_a_conflict(catalogue: Catalogue) -> None:
    one, two = catalogue.claim(), catalogue.claim()
    instance = new_uuid()
    catalogue.append(one, event(one, 1, instance_id=instance), effects=Effects([InstanceChange(instance)]))
    with pytest.raises(ConflictError, match="another session"):
        catalogue.append(two, event(two, 1, instance_id=instance), effects=Effects([InstanceChange(instance)]))
    assert _count(catalogue) == 1


def test_opening_a_mask_of_another_image_is_not_found(catalogue: Catalogue) -> None:
    mask = catalogue.label(catalogue.claim())
    claim = catalogue.claim()
    with pytest.raises(NotFoundError):
        catalogue.append(claim, event(claim, 1, "open", payload={"mask_id": mask.mask_id}))


def test_results_can_be_written_again(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    sent = event(claim, 1)
    catalogue.append(claim, sent)
    event_id = str(sent.event_id)
    for model_ms in (3.5, 7.25):
        result = EventResultRecord(
            event_id=event_id,
            mask_sha256=SHA,
            roi=(0, 0, 4, 4),
            scores=(0.5,),
            engine={"runtime": "torch"},
            latency_ms={"model": model_ms},
        )
        with catalogue.database.begin() as conn:
            record_results(conn, [result])
    with catalogue.database.connect() as conn:
        assert session_results(conn, claim.session_id) == {event_id: result}


def test_results_of_an_unknown_event_are_refused(catalogue: Catalogue) -> None:
    result = EventResultRecord(event_id=new_uuid(), mask_sha256=SHA, engine={})
    with pytest.raises(NotFoundError), catalogue.database.begin() as conn:
        record_results(conn, [result])


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_any_delivery_gives_the_clean_sequence_or_a_named_conflict(sqlite_database: Database, seed: int) -> None:
    """Two tabs that resend, reorder and reconnect: the log is a sequence without gaps of events that were sent."""
    rng = random.Random(seed)
    catalogue = Catalogue(sqlite_database, images=1)
    claim = catalogue.claim()
    epoch, tabs, acknowledged = 1, [1, 1], {}
    sent: list[EventIn] = []
    for _ in range(20):
        move = rng.random()
        tab = rng.randrange(2)
        if move < 0.1:
            with sqlite_database.begin() as conn:
                epoch = reopen_session(conn, claim.session_id).epoch
            tabs[tab] = epoch
            continue
        if move < 0.35 and sent:
            this = rng.choice(sent)
        else:
            due = max(acknowledged.values(), default=0) + 1
            this = event(claim, max(1, due + rng.choice([0, 0, 0, 1, -1])), session_epoch=tabs[tab])
            sent.append(this)
        try:
            done = catalogue.append(claim, this)
        except ConflictError:
            refused = str(this.event_id)
        else:
            assert done.duplicate == (done.event_id in acknowledged)
            assert acknowledged.setdefault(done.event_id, done.seq) == done.seq
            continue
        assert refused not in acknowledged
    with sqlite_database.connect() as conn:
        log = session_events(conn, claim.session_id)
    assert [found.seq for found in log] == list(range(1, len(log) + 1))
    assert {found.event_id: found.seq for found in log} == acknowledged


def test_appending_needs_no_second_look_at_the_task(catalogue: Catalogue) -> None:
    """A claim made in the transaction of an append is fenced at once."""
    first = catalogue.claim(image_id=catalogue.images[0].id)
    catalogue.expire(first)
    with catalogue.database.begin() as conn:
        taken = claim_task(
            conn,
            catalogue.campaign_id,
            catalogue.other_id,
            claim_id=new_uuid(),
            lease_s=LEASE_S,
            image_id=catalogue.images[0].id,
        )
        assert isinstance(taken, Claim)
        with pytest.raises(LeaseLostError):
            append_event(conn, first.session_id, event(first, 1), catalogue.annotator_id, lease_s=LEASE_S)
