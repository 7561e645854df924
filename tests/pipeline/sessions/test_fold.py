"""The fold: undo is exact, accept names a prefix, and the state equals a naive one kept as plain lists."""

from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sessions.fold import SessionState, apply, effective_edits, fold, num_clicks_at
from schemas.errors import BadInputError, GapError, NotFoundError, StateError, UndoError
from schemas.events import Event
from tests.pipeline.sessions.events import event_in, logged

A, B = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
DIGEST = "0" * 64


class Script:
    """Makes events with the next seq and applies them."""

    def __init__(self) -> None:
        self.state = SessionState()
        self.events: list[Event] = []

    def do(self, kind: str, instance: str | None = A, /, **payload: Any) -> str:
        event = logged(event_in(self.state.last_seq + 1, kind, instance, **payload), pins={"model_digest": "m"})
        self.state = apply(self.state, event)
        self.events.append(event)
        return event.event_id

    def click(self, x: float, instance: str = A) -> str:
        return self.do("click", instance, x=x, y=1.0, is_positive=True)

    def xs(self, upto: int | None = None, instance: str = A) -> list[float]:
        edits = effective_edits(self.state, instance, upto)
        return [edit.payload["x"] for edit in edits if edit.kind == "click"]


@pytest.fixture
def script() -> Script:
    started = Script()
    started.do("open")
    return started


def test_undo_goes_back_to_exactly_the_state_before_its_target(script: Script) -> None:
    script.click(1)
    before = script.state.instances[A]._top
    script.click(2)
    script.do("undo", event_id=script.events[-1].event_id)
    assert script.state.instances[A]._top is before
    assert script.xs() == [1]


def test_undo_must_name_the_top_and_says_which_it_is(script: Script) -> None:
    first, second = script.click(1), script.click(2)
    with pytest.raises(UndoError) as caught:
        script.do("undo", event_id=first)
    assert caught.value.details["top"] == second
    assert script.state.last_seq == 3


def test_opening_cannot_be_undone(script: Script) -> None:
    with pytest.raises(UndoError):
        script.do("undo", event_id=script.events[0].event_id)


def test_redo_names_the_undo_and_restores(script: Script) -> None:
    first, second = script.click(1), script.click(2)
    undo_second = script.do("undo", event_id=second)
    undo_first = script.do("undo", event_id=first)
    with pytest.raises(UndoError) as caught:
        script.do("redo", event_id=undo_second)
    assert caught.value.details["top"] == undo_first
    script.do("redo", event_id=undo_first)
    script.do("redo", event_id=undo_second)
    assert script.xs() == [1, 2]
    script.do("undo", event_id=second)
    assert script.xs() == [1]


def test_new_edit_clears_the_redo_stack_of_its_instance_only(script: Script) -> None:
    script.do("open", B)
    undo_a = script.do("undo", event_id=script.click(1))
    undo_b = script.do("undo", B, event_id=script.click(1, B))
    script.click(5)
    with pytest.raises(UndoError):
        script.do("redo", event_id=undo_a)
    script.do("redo", B, event_id=undo_b)
    assert script.xs(instance=B) == [1]


def test_accept_delete_and_category_can_be_undone_until_submit(script: Script) -> None:
    script.click(1)
    accept = script.do("accept", seq=2, mask_sha256=DIGEST, category=3)
    assert script.state.instances[A].status == "accepted"
    assert script.state.instances[A].category == 3
    delete = script.do("delete")
    assert script.state.instances[A].status == "deleted"
    script.do("undo", event_id=delete)
    assert script.state.instances[A].accepted.mask_id == accept  # type: ignore[union-attr]
    script.do("undo", event_id=accept)
    assert script.state.instances[A].status == "open"
    assert script.state.instances[A].category is None
    script.do("submit", None)
    with pytest.raises(StateError):
        script.click(2)
    assert script.state.state == "submitted"


def test_edits_after_an_accept_leave_the_accepted_mask_standing(script: Script) -> None:
    script.click(1)
    first = script.do("accept", seq=2, mask_sha256=DIGEST)
    script.click(2)
    instance = script.state.instances[A]
    assert instance.accepted is not None
    assert (instance.accepted.mask_id, instance.accepted.seq, instance.mask_seq) == (first, 2, 4)
    second = script.do("accept", seq=4, mask_sha256=DIGEST)
    assert script.state.instances[A].accepted.mask_id == second  # type: ignore[union-attr]
    script.do("undo", event_id=second)
    assert script.state.instances[A].accepted.mask_id == first  # type: ignore[union-attr]


def test_accept_must_name_an_event_of_its_instance(script: Script) -> None:
    script.do("open", B)
    with pytest.raises(StateError):
        script.do("accept", seq=2, mask_sha256=DIGEST)
    with pytest.raises(StateError):
        script.do("accept", B, seq=1, mask_sha256=DIGEST)
    script.do("accept", seq=1, mask_sha256=DIGEST)


def test_prefix_at_an_older_seq_sees_undo_as_it_then_stood(script: Script) -> None:
    script.click(1)
    script.click(2)
    script.do("undo", event_id=script.events[-1].event_id)
    script.click(3)
    assert [script.xs(seq) for seq in (1, 2, 3, 4, 5)] == [[], [1], [1, 2], [1], [1, 3]]
    assert num_clicks_at(script.state, A, 3) == 2
    with pytest.raises(NotFoundError):
        effective_edits(script.state, A, 0)


def test_mask_seq_skips_events_that_leave_the_mask_alone(script: Script) -> None:
    script.click(1)
    script.do("category", category=1)
    flag = script.do("flag", unsure=True)
    assert script.state.instances[A].mask_seq == 2
    script.do("undo", event_id=flag)
    assert script.state.instances[A].mask_seq == 2
    assert not script.state.instances[A].unsure
    script.do("undo", event_id=script.events[2].event_id)
    script.do("undo", event_id=script.events[1].event_id)
    assert script.state.instances[A].mask_seq == 7


def test_deleted_instance_takes_only_an_undo(script: Script) -> None:
    delete = script.do("delete")
    for kind, payload in (("click", {"x": 1, "y": 1, "is_positive": True}), ("delete", {}), ("open", {})):
        with pytest.raises(StateError):
            script.do(kind, **payload)
    script.do("undo", event_id=delete)
    script.click(1)


@pytest.mark.parametrize(
    ("kind", "instance", "error"),
    [("click", B, StateError), ("open", A, StateError), ("submit", A, BadInputError), ("click", None, BadInputError)],
)
def test_event_that_does_not_fit_the_state_is_refused_by_name(
    script: Script, kind: str, instance: str | None, error: type[Exception]
) -> None:
    payload = {"x": 1, "y": 1, "is_positive": True} if kind == "click" else {}
    with pytest.raises(error):
        script.do(kind, instance, **payload)


def test_gap_is_refused_with_the_expected_seq(script: Script) -> None:
    with pytest.raises(GapError) as caught:
        apply(script.state, logged(event_in(3, "submit")))
    assert caught.value.details["expected"] == 2


def test_thousand_events_on_one_instance_stay_quick() -> None:
    script = Script()
    script.do("open")
    for x in range(1999):
        script.click(x)
    assert len(effective_edits(script.state, A)) == 2000
    assert fold(script.events).instances[A].mask_seq == 2000


Action = tuple[str, int]
ACTIONS = st.lists(
    st.tuples(st.sampled_from(["open", "click", "undo", "redo", "category", "accept", "delete"]), st.integers(0, 1)),
    max_size=40,
)


class Naive:
    """The same rules over plain lists that are copied at every event."""

    def __init__(self) -> None:
        self.live: list[tuple[str, str]] = []
        self.undone: list[tuple[str, tuple[str, str]]] = []
        self.deleted_by: str | None = None

    def allowed(self, kind: str) -> bool:
        deleted = bool(self.live) and self.live[-1][0] == "delete"
        match kind:
            case "open":
                return not self.live
            case "undo":
                return len(self.live) > 1
            case "redo":
                return bool(self.undone)
            case _:
                return bool(self.live) and not deleted

    def do(self, kind: str, event_id: str) -> None:
        if kind == "undo":
            self.undone.append((event_id, self.live.pop()))
        elif kind == "redo":
            self.live.append(self.undone.pop()[1])
        else:
            self.live.append((kind, event_id))
            self.undone = []


@given(ACTIONS)
def test_fold_equals_the_naive_model(actions: list[Action]) -> None:
    naive = {A: Naive(), B: Naive()}
    script = Script()
    for kind, which in actions:
        instance = (A, B)[which]
        model, state = naive[instance], script.state.instances.get(instance)
        payload: dict[str, Any] = {}
        if kind == "click":
            payload = {"x": float(script.state.last_seq), "y": 0.0, "is_positive": True}
        elif kind == "undo":
            payload = {"event_id": model.live[-1][1] if len(model.live) > 1 else str(uuid4())}
        elif kind == "redo":
            payload = {"event_id": model.undone[-1][0] if model.undone else str(uuid4())}
        elif kind == "category":
            payload = {"category": script.state.last_seq}
        elif kind == "accept":
            payload = {"seq": state.last_seq if state else 1, "mask_sha256": DIGEST}
        if not model.allowed(kind):
            before = script.state
            with pytest.raises((StateError, UndoError)):
                script.do(kind, instance, **payload)
            assert script.state is before
            continue
        model.do(kind, script.do(kind, instance, **payload))
    for instance, model in naive.items():
        state = script.state.instances.get(instance)
        assert (state is not None) == bool(model.live)
        if state is None:
            continue
        by_id = {event.event_id: event for event in script.events}
        live = [by_id[event_id] for _, event_id in model.live]
        clicks = [event.payload["x"] for event in live if event.kind == "click"]
        categories = [event.payload["category"] for event in live if event.kind == "category"]
        accepts = [event.event_id for event in live if event.kind == "accept"]
        assert script.xs(instance=instance) == clicks
        assert state.num_clicks == len(clicks)
        assert state.category == (categories[-1] if categories else None)
        assert (state.accepted.mask_id if state.accepted else None) == (accepts[-1] if accepts else None)
        assert state.deleted == (live[-1].kind == "delete")
        assert state.top == (live[-1].event_id if len(live) > 1 else None)
        assert state.redo_top == (model.undone[-1][0] if model.undone else None)
    assert fold(script.events) == script.state
