"""Any interleaving of duplicates, reorderings, reconnects, second tabs, two gateways and lost acks gives the state of
the clean sequence, or a named conflict. Real fold, real log on SQLite, real model; no HTTP in between.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.sessions.fold import SessionState, apply, fold
from pipeline.storage.annotators import get_or_create_annotator
from pipeline.storage.click_log import Appended
from pipeline.storage.database import open_database
from pipeline.storage.sessions import get_session, reopen_session, session_events, session_instances
from pipeline.storage.tasks import claim_task
from schemas.errors import (
    ClickloopError,
    ConflictError,
    GapError,
    LeaseLostError,
    StaleEpochError,
    StateError,
    UndoError,
)
from schemas.events import Event, EventIn
from tests.pipeline.sessions.events import logged
from tests.workers.api.gateway import CAMPAIGN, fill, local_router, register, settings_in
from tests.workers.campaign import make_campaign, write_image
from workers.api.app import build_services
from workers.api.deps import Services

T = TypeVar("T")
KINDS = ["click", "click", "click", "undo", "redo", "category", "flag", "delete", "accept", "candidate"]


class World:
    """Two gateways on one database; every example gets an image and a session of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="interleavings-"))
        self.database = open_database(f"sqlite:///{self.folder / 'clickloop.db'}")
        fill(self.database, make_campaign(self.folder, images=0))
        self.router = local_router(str(self.folder / "storage"))
        self.loop = asyncio.new_event_loop()
        self.gateways = self.loop.run_until_complete(self._start())
        self.examples = 0

    async def _start(self) -> list[Services]:
        options = settings_in(self.folder, lease_s=0.001)
        return [build_services(options, self.database, self.router) for _ in range(2)]

    def new_image(self) -> str:
        """Register another small picture."""
        self.examples += 1
        image = write_image(self.folder, self.examples, size=(48, 64))
        with self.database.begin() as conn:
            return register(conn, image)

    def close(self) -> None:
        """End everything that was started."""
        for gateway in self.gateways:
            self.loop.run_until_complete(gateway.finish_background(5))
            gateway.writer.close()
        self.loop.run_until_complete(self.router.close())
        self.loop.close()
        self.database.close()
        shutil.rmtree(self.folder)


@cache
def world() -> World:
    """Made once: what gateways and refiners remember of other sessions must not matter."""
    return World()


@pytest.fixture(scope="module", autouse=True)
def _clean_up() -> Iterator[None]:
    yield
    world().close()


class Tab:
    """One browser tab: what it believes of the session, and what it has sent."""

    def __init__(self, epoch: int, events: list[Event]) -> None:
        self.epoch = epoch
        self.state = fold(events)

    def next_event(self, kind: str, instance: str, x: int, lease_no: int, digest: str) -> EventIn:
        """An event that is valid in the tab's view (an `open` where the instance is new to it)."""
        known = self.state.instances.get(instance)
        payload: dict[str, Any] = {}
        if known is None:
            kind = "open"
        elif known.deleted:
            kind, payload = "undo", {"event_id": known.top}
        elif kind == "undo":
            kind, payload = ("undo", {"event_id": known.top}) if known.top else ("flag", {"unsure": True})
        elif kind == "redo":
            kind, payload = ("redo", {"event_id": known.redo_top}) if known.redo_top else ("flag", {"unsure": False})
        elif kind == "category":
            payload = {"category": 1 + x % 2}
        elif kind == "flag":
            payload = {"unsure": bool(x % 2)}
        elif kind == "accept" and digest:
            payload = {"seq": known.mask_seq, "mask_sha256": digest}
        elif kind == "candidate" and known.num_clicks:
            payload = {"index": 0}
        elif kind != "delete":
            kind, payload = "click", {"x": x, "y": 24, "is_positive": x % 3 > 0}
        return EventIn(
            event_id=uuid4(),
            seq=self.state.last_seq + 1,
            session_epoch=self.epoch,
            lease_no=lease_no,
            instance_id=UUID(instance),
            kind=kind,  # type: ignore[arg-type]
            payload=payload,
        )


class Interleavings(RuleBasedStateMachine):
    """Two tabs of one annotator, two gateways on one database."""

    def __init__(self) -> None:
        super().__init__()
        self.database, self.gateways = world().database, world().gateways
        self.acked: dict[str, tuple[EventIn, int]] = {}
        self.refused: list[EventIn] = []
        self.order: list[str] = []
        self.stolen = self.ended = False

    def teardown(self) -> None:
        for gateway in range(2):
            self.look(gateway)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return world().loop.run_until_complete(work)

    @initialize()
    def claim(self) -> None:
        self.image_id = world().new_image()
        self.instances = [str(uuid4()), str(uuid4())]
        with self.database.begin() as conn:
            self.annotator = get_or_create_annotator(conn, "ann").id
            self.thief = get_or_create_annotator(conn, "thief").id
            claim = claim_task(
                conn, CAMPAIGN, self.annotator, claim_id=str(uuid4()), lease_s=0.001, image_id=self.image_id
            )
        assert claim is not None
        self.session_id, self.lease_no = claim.session_id, claim.lease_no
        self.tabs = [Tab(claim.epoch, []), Tab(claim.epoch, [])]

    # What the log holds.

    def log(self) -> list[Event]:
        with self.database.connect() as conn:
            return session_events(conn, self.session_id)

    def epoch(self) -> int:
        with self.database.connect() as conn:
            return get_session(conn, self.session_id).epoch

    def is_current(self, tab: Tab) -> bool:
        return tab.epoch == self.epoch() and not self.stolen and not self.ended

    async def send(self, gateway: int, event: EventIn) -> Appended | ClickloopError:
        services = self.gateways[gateway]
        live = await services.hub.get(self.session_id)
        try:
            return await services.intake.append(live, self.annotator, event)
        except ClickloopError as error:
            return error

    def heard(self, event: EventIn, outcome: Appended | ClickloopError) -> None:
        """Keep what the server said, and check that it never contradicts itself."""
        event_id = str(event.event_id)
        if isinstance(outcome, ClickloopError):
            assert isinstance(outcome, ConflictError), outcome
            assert event_id not in self.acked
            self.refused.append(event)
        elif event_id in self.acked:
            assert outcome.duplicate and outcome.seq == self.acked[event_id][1]
        else:
            assert not outcome.duplicate and outcome.seq == event.seq
            self.acked[event_id] = (event, outcome.seq)
            self.order.append(event_id)

    def digest_of(self, tab: Tab, instance: str) -> str:
        known = tab.state.instances.get(instance)
        if known is None or not known.num_clicks:
            return ""

        async def ask() -> str:
            services = self.gateways[0]
            live = await services.hub.get(self.session_id)
            question = await services.hub.question(live, tab.state, instance, known.mask_seq, "none")
            reply = await services.refining.ask(question)
            return reply.mask_sha256 if reply.area else ""

        return self.run(ask())

    def make(self, tab: Tab, kind: str, instance: str, x: int) -> EventIn:
        """An event that is valid in the tab's view; an accept only of a mask that is not empty."""
        digest = self.digest_of(tab, instance) if kind == "accept" else ""
        return tab.next_event(kind, instance, x, self.lease_no, digest)

    def apply_to(self, tab: Tab, event: EventIn) -> None:
        pins = next((e.pins for e in self.log() if e.event_id == str(event.event_id)), None)
        tab.state = apply(tab.state, logged(event, self.session_id, pins))

    # What may happen.

    @rule(
        tab=st.integers(0, 1),
        gateway=st.integers(0, 1),
        kind=st.sampled_from(KINDS),
        which=st.integers(0, 1),
        x=st.integers(1, 60),
        hears=st.sampled_from([True, True, True, False]),
    )
    def next_event(self, tab: int, gateway: int, kind: str, which: int, x: int, hears: bool) -> None:
        """A tab does the next thing in its view; sometimes it never hears the answer."""
        view = self.tabs[tab]
        in_step = view.state.last_seq == len(self.order)
        event = self.make(view, kind, self.instances[which], x)
        outcome = self.run(self.send(gateway, event))
        self.heard(event, outcome)
        if self.is_current(view) and in_step:
            assert isinstance(outcome, Appended), outcome
        elif self.is_current(view):
            assert type(outcome) is ConflictError, outcome
            lacking = outcome.details["events"]
            assert [found["seq"] for found in lacking] == list(range(event.seq, len(self.order) + 1))
        elif self.stolen:
            assert isinstance(outcome, LeaseLostError), outcome
        elif self.ended:
            assert isinstance(outcome, StateError), outcome
        else:
            assert isinstance(outcome, StaleEpochError | UndoError | StateError), outcome
        if isinstance(outcome, Appended) and hears:
            self.apply_to(view, event)

    @precondition(lambda self: self.acked)
    @rule(data=st.data(), gateway=st.integers(0, 1))
    def repeat(self, data: st.DataObject, gateway: int) -> None:
        """An event that is in the log arrives again, perhaps elsewhere: the same acknowledgement."""
        event, seq = self.acked[data.draw(st.sampled_from(self.order))]
        outcome = self.run(self.send(gateway, event))
        assert isinstance(outcome, Appended) and outcome.duplicate and outcome.seq == seq

    @precondition(lambda self: self.acked)
    @rule(data=st.data(), gateway=st.integers(0, 1))
    def repeat_renumbered(self, data: st.DataObject, gateway: int) -> None:
        """A client that lost its place sends a known event under the next seq: still the same acknowledgement."""
        event, seq = self.acked[data.draw(st.sampled_from(self.order))]
        renumbered = event.model_copy(update={"seq": len(self.order) + 1})
        outcome = self.run(self.send(gateway, renumbered))
        assert isinstance(outcome, Appended) and outcome.duplicate and outcome.seq == seq, outcome

    @precondition(lambda self: self.acked)
    @rule(data=st.data(), gateway=st.integers(0, 1))
    def reuse_id(self, data: st.DataObject, gateway: int) -> None:
        """A known id with another payload: a conflict, whatever else holds."""
        event, _ = self.acked[data.draw(st.sampled_from(self.order))]
        other = event.model_copy(update={"kind": "flag", "payload": {"unsure": True, "note": "another"}})
        outcome = self.run(self.send(gateway, other))
        assert type(outcome) is ConflictError, outcome

    @precondition(lambda self: self.refused)
    @rule(data=st.data(), gateway=st.integers(0, 1))
    def late(self, data: st.DataObject, gateway: int) -> None:
        """An event that was refused arrives again, late."""
        event = data.draw(st.sampled_from(self.refused))
        self.heard(event, self.run(self.send(gateway, event)))

    @rule(tab=st.integers(0, 1), gateway=st.integers(0, 1), x=st.integers(1, 60))
    def reordered(self, tab: int, gateway: int, x: int) -> None:
        """Two events arrive in the wrong order: the later one is a gap, then both pass."""
        view = self.tabs[tab]
        if not self.is_current(view) or view.state.last_seq != len(self.order):
            return
        first = self.make(view, "click", self.instances[0], x)
        ahead = Tab(view.epoch, [])
        ahead.state = apply(view.state, logged(first, self.session_id))
        second = self.make(ahead, "click", self.instances[0], x)
        outcome = self.run(self.send(gateway, second))
        assert isinstance(outcome, GapError) and outcome.details["expected"] == first.seq
        for event in (first, second):
            outcome = self.run(self.send(1 - gateway, event))
            assert isinstance(outcome, Appended), outcome
            self.heard(event, outcome)
            self.apply_to(view, event)

    @rule(tab=st.integers(0, 1), x=st.integers(1, 60), same=st.booleans())
    def race(self, tab: int, x: int, same: bool) -> None:
        """The same event, or two for the same place, reach both gateways at once: one is stored."""
        view = self.tabs[tab]
        events = [self.make(view, "click", self.instances[1], x)]
        events.append(events[0] if same else self.make(view, "click", self.instances[1], x))

        async def both() -> list[Appended | ClickloopError]:
            return list(await asyncio.gather(*(self.send(number, event) for number, event in enumerate(events))))

        outcomes = self.run(both())
        fresh = [o for o in outcomes if isinstance(o, Appended) and not o.duplicate]
        if self.is_current(view) and view.state.last_seq == len(self.order):
            assert len(fresh) == 1
            assert same == all(isinstance(o, Appended) for o in outcomes)
        for event, outcome in sorted(zip(events, outcomes, strict=True), key=lambda pair: _is_repetition(pair[1])):
            if isinstance(outcome, Appended):
                self.heard(event, outcome)
                if not outcome.duplicate:
                    self.apply_to(view, event)

    @rule(gateway=st.integers(0, 1))
    def look(self, gateway: int) -> None:
        """A gateway shows the state of the clean sequence, whatever passed through the other one."""
        shown = self.run(self.gateways[gateway].hub.fresh(self.session_id)).state
        assert _facts(shown) == _facts(fold(self.log()))

    @rule(tab=st.integers(0, 1))
    def reconnect(self, tab: int) -> None:
        """A tab opens the session again: it is current now, and knows all."""
        with self.database.begin() as conn:
            epoch = reopen_session(conn, self.session_id).epoch
        self.tabs[tab] = Tab(epoch, self.log())

    @rule(tab=st.integers(0, 1))
    def catch_up(self, tab: int) -> None:
        """A tab reads what it lacks, without taking over."""
        view = self.tabs[tab]
        view.state = fold(self.log()[view.state.last_seq :], view.state)

    @rule(gateway=st.integers(0, 1))
    def gateway_restarts(self, gateway: int) -> None:
        """A gateway forgets everything that it held."""
        self.gateways[gateway].hub._live.pop(self.session_id, None)

    @precondition(lambda self: len(self.order) > 12 and not self.stolen and not self.ended)
    @rule()
    def steal(self) -> None:
        """The lease has expired (all of them do at once here) and another annotator takes the task."""
        with self.database.begin() as conn:
            claim = claim_task(conn, CAMPAIGN, self.thief, claim_id=str(uuid4()), lease_s=60, image_id=self.image_id)
        assert claim is not None and claim.lease_no == self.lease_no + 1
        self.stolen = True

    @precondition(lambda self: len(self.order) > 12 and not self.stolen and not self.ended)
    @rule(tab=st.integers(0, 1), gateway=st.integers(0, 1))
    def submit(self, tab: int, gateway: int) -> None:
        """The session ends."""
        view = self.tabs[tab]
        if not self.is_current(view) or view.state.last_seq != len(self.order):
            return
        event = EventIn(
            event_id=uuid4(),
            seq=view.state.last_seq + 1,
            session_epoch=view.epoch,
            lease_no=self.lease_no,
            kind="submit",
        )
        self.heard(event, self.run(self.send(gateway, event)))
        assert str(event.event_id) in self.acked
        self.ended = True

    # What always holds.

    @invariant()
    def log_is_what_was_acknowledged(self) -> None:
        events = self.log()
        assert [event.event_id for event in events] == self.order
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        for event in events:
            sent, _ = self.acked[event.event_id]
            assert (event.kind, event.instance_id) == (sent.kind, str(sent.instance_id) if sent.instance_id else None)
            assert all(event.payload[name] == value for name, value in sent.payload.items())

    @invariant()
    def projection_is_that_of_the_clean_sequence(self) -> None:
        clean = fold(self.log())
        with self.database.connect() as conn:
            rows = {row.id: row for row in session_instances(conn, self.session_id)}
        assert rows.keys() == clean.instances.keys()
        for instance_id, instance in clean.instances.items():
            row = rows[instance_id]
            mask_id = instance.accepted.mask_id if instance.accepted else None
            assert (row.state, row.category_number, row.unsure) == (instance.status, instance.category, instance.unsure)
            assert row.mask_id == mask_id


def _is_repetition(outcome: Appended | ClickloopError) -> bool:
    return isinstance(outcome, Appended) and outcome.duplicate


def _facts(state: SessionState) -> dict[str, Any]:
    """A state without its linked lists, which are too deep to compare one by one."""
    return {
        "last_seq": state.last_seq,
        "state": state.state,
        "instances": {
            key: (
                i.category,
                i.unsure,
                i.accepted,
                i.deleted,
                i.top,
                i.redo_top,
                i.mask_seq,
                i.num_clicks,
                i.num_events,
            )
            for key, i in state.instances.items()
        },
    }


Interleavings.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=30,
    phases=[Phase.generate],  # explaining traces every line, also of what passes; shrinking takes minutes
)
TestInterleavings = pytest.mark.timeout(300)(Interleavings.TestCase)
