"""The state of a session as a left fold over its events, in seq order.

Pure: `apply(state, event)` gives the next state or raises, and shares what did not change, so that an event costs O(1)
per instance however long its history is. Every state of an instance stays reachable, which makes undo exact (it goes
back to the very node before its target) and lets `accept` name an older seq.

Knows nothing about masks, models or storage, nor about leases and epochs (`pipeline.storage.click_log` checks those).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, cast

from schemas.errors import BadInputError, GapError, NotFoundError, StateError, UndoError
from schemas.events import EDIT_KINDS, SESSION_KINDS, UNDOABLE_KINDS, Event
from schemas.predictions import Edit, EditKind
from schemas.tables import InstanceState as InstanceStateName
from schemas.tables import SessionState as SessionStateName

_AFTER: Mapping[str, SessionStateName] = {"submit": "submitted", "skip": "skipped", "release": "released"}


@dataclass(frozen=True, slots=True)
class _Edits:
    """A linked list of edits, newest first, sharing its tail with older states."""

    edit: Edit
    seq: int
    before: "_Edits | None" = field(repr=False)
    num_clicks: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """An accepted mask.

    Attributes:
        mask_id: The accept event's id, which names the stored mask version.
        seq: The event whose mask was accepted.
    """

    mask_id: str
    seq: int


@dataclass(frozen=True, slots=True)
class _Node:
    """An instance after one live (not undone) event; `before` is the state that undoing it gives."""

    event_id: str
    kind: str
    before: "_Node | None" = field(repr=False)
    edits: _Edits
    category: int | None = None
    unsure: bool = False
    note: str = ""
    accepted: Accepted | None = None
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class _Undone:
    """The redo stack: what each undo took away, newest first."""

    undo_id: str
    node: _Node
    below: "_Undone | None" = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Mark:
    """The instance after the event `seq`, newest first."""

    seq: int
    node: _Node
    before: "_Mark | None" = field(repr=False)


@dataclass(frozen=True, slots=True)
class InstanceState:
    """One object of a session.

    Attributes:
        pins: What its masks are computed with, as its first event stored it.
        num_events: Events so far, undone ones included.
    """

    instance_id: str
    pins: Mapping[str, Any]
    num_events: int
    _top: _Node
    _redo: _Undone | None
    _mark: _Mark

    @property
    def category(self) -> int | None:
        """Category number, or None."""
        return self._top.category

    @property
    def unsure(self) -> bool:
        """Whether the annotator flagged it."""
        return self._top.unsure

    @property
    def note(self) -> str:
        """The flag's note."""
        return self._top.note

    @property
    def accepted(self) -> Accepted | None:
        """The mask that counts, None before the first accept. Later edits leave it standing until the next accept."""
        return self._top.accepted

    @property
    def deleted(self) -> bool:
        """Whether it was deleted (and the delete not undone)."""
        return self._top.deleted

    @property
    def status(self) -> InstanceStateName:
        """open, accepted or deleted."""
        if self.deleted:
            return "deleted"
        return "accepted" if self.accepted else "open"

    @property
    def top(self) -> str | None:
        """Id of the event that an undo must name; None when only the opening is left."""
        return None if self._top.kind == "open" else self._top.event_id

    @property
    def redo_top(self) -> str | None:
        """Id of the undo that a redo must name; None when there is nothing to redo."""
        return self._redo.undo_id if self._redo else None

    @property
    def last_seq(self) -> int:
        """Seq of its newest event, undo and redo included."""
        return self._mark.seq

    @property
    def mask_seq(self) -> int:
        """Seq of the newest event that changed its mask (an undo or redo of an edit included): what `accept` names."""
        edits, mark = self._top.edits, self._mark
        while mark.before is not None and mark.before.node.edits is edits:
            mark = mark.before
        return mark.seq

    @property
    def num_clicks(self) -> int:
        """Live clicks."""
        return self._top.edits.num_clicks


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session after its first `last_seq` events.

    Attributes:
        instances: By instance id, in the order they were opened.
    """

    last_seq: int = 0
    state: SessionStateName = "open"
    instances: Mapping[str, InstanceState] = field(default_factory=lambda: MappingProxyType({}))


def apply(state: SessionState, event: Event) -> SessionState:
    """The state after one more event.

    Raises:
        GapError: The event's seq is not the next one.
        StateError: The session has ended, or the instance's state does not allow the event.
        UndoError: An undo or redo does not name the current top; details.top says which it is.
        BadInputError: An instance is missing where one is needed, or present where none is.
    """
    if event.seq != state.last_seq + 1:
        raise GapError(f"Event has seq {event.seq}, expected {state.last_seq + 1}.", expected=state.last_seq + 1)
    if state.state != "open":
        raise StateError(f"The session is {state.state}; it takes no more events. Claim its image again to correct it.")
    if event.kind in SESSION_KINDS:
        if event.instance_id is not None:
            raise BadInputError(f"{event.kind} concerns the whole session: send it without instance_id.")
        return replace(state, last_seq=event.seq, state=_AFTER[event.kind])
    if event.instance_id is None:
        raise BadInputError(f"{event.kind} concerns one instance: send its instance_id.")
    instance = _advance(state.instances.get(event.instance_id), event)
    return SessionState(event.seq, "open", MappingProxyType({**state.instances, event.instance_id: instance}))


def fold(events: Iterable[Event], state: SessionState | None = None) -> SessionState:
    """Apply events in order, from the empty session or from a state."""
    state = state or SessionState()
    for event in events:
        state = apply(state, event)
    return state


def get_instance(state: SessionState, instance_id: str) -> InstanceState:
    """The instance.

    Raises:
        NotFoundError: The session has none with this id.
    """
    if instance_id not in state.instances:
        raise NotFoundError(f"The session has no instance {instance_id}.")
    return state.instances[instance_id]


def effective_edits(state: SessionState, instance_id: str, upto_seq: int | None = None) -> tuple[Edit, ...]:
    """The edits that make an instance's mask, oldest first, with undone ones taken out.

    Args:
        upto_seq: Look at the instance as it was after this event of the session; None: now.

    Raises:
        NotFoundError: There is no such instance, or it was opened after `upto_seq`.
    """
    instance = get_instance(state, instance_id)
    node = instance._top if upto_seq is None else _node_at(instance, upto_seq)
    return tuple(reversed([item.edit for item in _walk(node.edits)]))


def num_clicks_at(state: SessionState, instance_id: str, upto_seq: int) -> int:
    """Live clicks of an instance after the event `upto_seq`."""
    return _node_at(get_instance(state, instance_id), upto_seq).edits.num_clicks


def _walk(edits: _Edits | None) -> Iterator[_Edits]:
    while edits is not None:
        yield edits
        edits = edits.before


def _node_at(instance: InstanceState, seq: int) -> _Node:
    mark: _Mark | None = instance._mark
    while mark is not None and mark.seq > seq:
        mark = mark.before
    if mark is None:
        raise NotFoundError(f"Instance {instance.instance_id} did not exist yet at seq {seq}.")
    return mark.node


def _advance(instance: InstanceState | None, event: Event) -> InstanceState:
    """The instance after one of its events."""
    instance_id = cast(str, event.instance_id)
    if event.kind == "open":
        if instance is not None:
            raise StateError(f"Instance {instance_id} is open already. Take a new id for a new object.")
        node = _Node(event.event_id, "open", None, _Edits(_edit(event), event.seq, None, 0))
        return InstanceState(instance_id, event.pins or {}, 1, node, None, _Mark(event.seq, node, None))
    if instance is None:
        raise StateError(f"Instance {instance_id} was never opened. Send an 'open' event first.")
    redo: _Undone | None
    if event.kind == "undo":
        node, redo = _undo(instance, event)
    elif event.kind == "redo":
        node, redo = _redo(instance, event)
    else:
        node, redo = _step(instance, event), None
    mark = _Mark(event.seq, node, instance._mark)
    return replace(instance, num_events=instance.num_events + 1, _top=node, _redo=redo, _mark=mark)


def _undo(instance: InstanceState, event: Event) -> tuple[_Node, _Undone]:
    node = instance._top
    if node.before is None:
        raise UndoError("There is nothing left to undo.", top=None)
    if event.payload["event_id"] != node.event_id:
        raise UndoError(f"Undo must name the newest event that stands, {node.event_id}.", top=node.event_id)
    return node.before, _Undone(event.event_id, node, instance._redo)


def _redo(instance: InstanceState, event: Event) -> tuple[_Node, _Undone | None]:
    undone = instance._redo
    if undone is None:
        raise UndoError("There is nothing to redo.", top=None)
    if event.payload["event_id"] != undone.undo_id:
        raise UndoError(f"Redo must name the newest undo, {undone.undo_id}.", top=undone.undo_id)
    return undone.node, undone.below


def _step(instance: InstanceState, event: Event) -> _Node:
    """The node that a new edit, choice, accept or delete puts on top."""
    assert event.kind in UNDOABLE_KINDS, event.kind
    top = instance._top
    if top.deleted:
        raise StateError(f"Instance {instance.instance_id} is deleted. Undo the delete first.")
    node = replace(top, event_id=event.event_id, kind=event.kind, before=top)
    payload = event.payload
    if event.kind in EDIT_KINDS:
        num_clicks = top.edits.num_clicks + (event.kind == "click")
        return replace(node, edits=_Edits(_edit(event), event.seq, top.edits, num_clicks))
    if event.kind == "category":
        return replace(node, category=payload["category"])
    if event.kind == "flag":
        return replace(node, unsure=payload["unsure"], note=payload["note"])
    if event.kind == "delete":
        return replace(node, deleted=True)
    return _accept(instance, node, event)


def _accept(instance: InstanceState, node: _Node, event: Event) -> _Node:
    seq = event.payload["seq"]
    mark: _Mark | None = instance._mark
    while mark is not None and mark.seq > seq:
        mark = mark.before
    if mark is None or mark.seq != seq:
        raise StateError(
            f"accept names seq {seq}, which is no event of instance {instance.instance_id}. "
            f"Name the event whose mask you were shown, now {instance.mask_seq}."
        )
    category = event.payload["category"]
    return replace(
        node,
        accepted=Accepted(event.event_id, seq),
        category=node.category if category is None else category,
    )


def _edit(event: Event) -> Edit:
    assert event.kind in EDIT_KINDS
    return Edit(kind=cast(EditKind, event.kind), payload=event.payload, payload_sha256=event.payload_sha256)
