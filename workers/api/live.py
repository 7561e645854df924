"""Sessions held in memory: the fold of each one's events, rebuilt from the log whenever the log is ahead.

The log is the truth; what is here is a copy that any gateway can make again. Knows nothing about HTTP.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.sessions.fold import InstanceState, SessionState, effective_edits, fold, get_instance
from pipeline.storage.campaigns import get_campaign
from pipeline.storage.database import Database
from pipeline.storage.images import get_image
from pipeline.storage.masks import get_mask
from pipeline.storage.sessions import get_session, session_events
from schemas.campaigns import CampaignRecord, ImageRecord, SessionRecord
from schemas.errors import ForbiddenError, NotFoundError
from schemas.events import Event
from schemas.masks import Rle
from schemas.predictions import Pins, RefineRequest
from workers.api.metrics import Metrics
from workers.api.work import read

MAX_LIVE = 2000
"""Sessions that are kept in memory; older ones are rebuilt from the log when they are needed."""


class Watcher(Protocol):
    """A connection that wants to know when the session is opened elsewhere."""

    async def superseded(self, epoch: int) -> None:
        """The session's epoch is now this."""
        ...


@dataclass(eq=False)
class LiveSession:
    """A session in memory.

    Attributes:
        lock: Held while an event of this session is checked and committed, which keeps them in order.
        seen: Ids of its events: a known one is a repetition, whatever its seq.
        opened_from: Stored masks that instances were opened from, by mask id.
    """

    record: SessionRecord
    image: ImageRecord
    campaign: CampaignRecord
    state: SessionState = field(default_factory=SessionState)
    seen: set[str] = field(default_factory=set)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    opened_from: dict[str, Rle] = field(default_factory=dict)
    watchers: set[Watcher] = field(default_factory=set)

    @property
    def id(self) -> str:
        """The session's id."""
        return self.record.id

    def advance(self, event: Event, state: SessionState) -> None:
        """Take over what was just committed."""
        self.state = state
        self.seen.add(event.event_id)
        self.record = self.record.model_copy(update={"last_seq": state.last_seq, "state": state.state})

    def own(self, annotator_id: str) -> None:
        """Refuse anybody but the session's annotator.

        Raises:
            ForbiddenError: It is somebody else's.
        """
        if self.record.annotator_id != annotator_id:
            raise ForbiddenError("This session belongs to another annotator.")

    def to_json(self) -> dict[str, Any]:
        """What a client needs to go on where the session stands."""
        return {
            **self.record.model_dump(),
            "image": self.image.model_dump(),
            "categories": [category.model_dump() for category in self.campaign.categories],
            "instances": [_instance_json(instance) for instance in self.state.instances.values()],
        }


def _instance_json(instance: InstanceState) -> dict[str, Any]:
    accepted = instance.accepted
    return {
        "id": instance.instance_id,
        "state": instance.status,
        "category": instance.category,
        "unsure": instance.unsure,
        "note": instance.note,
        "accepted": {"mask_id": accepted.mask_id, "seq": accepted.seq} if accepted else None,
        "seq": instance.mask_seq,
        "top": instance.top,
        "redo_top": instance.redo_top,
        "num_clicks": instance.num_clicks,
        "pins": dict(instance.pins),
    }


class Hub:
    """The sessions that this gateway holds."""

    def __init__(self, database: Database, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics
        self._live: OrderedDict[str, LiveSession] = OrderedDict()

    async def get(self, session_id: str) -> LiveSession:
        """The session, from memory or rebuilt from the log.

        Raises:
            NotFoundError: There is none with this id.
        """
        live = self._live.get(session_id)
        if live is None:
            loaded = await read(self._load, session_id)
            live = self._live.setdefault(session_id, loaded)
            self._shrink()
        self._live.move_to_end(session_id)
        return live

    async def fresh(self, session_id: str) -> LiveSession:
        """The session as the log has it now, also where another gateway wrote to it."""
        live = await self.get(session_id)
        async with live.lock:
            await self.refresh(live)
        return live

    async def refresh(self, live: LiveSession) -> bool:
        """Read what the log has beyond our copy, and the campaign, which imports add categories to; call with its lock
        held.

        Returns:
            Whether there was anything new.
        """
        before = live.state.last_seq
        record, campaign, events = await read(self._read_after, live.id, before)
        live.state = fold(events, live.state)
        live.seen.update(event.event_id for event in events)
        live.record, live.campaign = record, campaign
        return live.state.last_seq != before

    async def refresh_campaign(self, live: LiveSession) -> None:
        """Read the campaign again: its categories and live adapter may have changed."""
        live.campaign = await read(self._campaign, live.record.campaign_id)

    async def question(
        self, live: LiveSession, state: SessionState, instance_id: str, seq: int | None, mask_format: str
    ) -> RefineRequest:
        """What to ask a refiner for the mask of an instance.

        Args:
            state: Of the session; may be ahead of what is committed.
            seq: As of this event; None: now.
            mask_format: bits, rle or none.
        """
        edits = effective_edits(state, instance_id, seq)
        mask_id = edits[0].payload.get("mask_id")
        if mask_id is not None and mask_id not in live.opened_from:
            live.opened_from[mask_id] = await read(self._stored_mask, live, mask_id)
        return RefineRequest(
            image=live.image.ref,
            pins=Pins.model_validate(get_instance(state, instance_id).pins),
            edits=edits,
            initial_mask=live.opened_from[mask_id] if mask_id is not None else None,
            mask_format=mask_format,
        )

    def _shrink(self) -> None:
        for session_id in list(self._live)[:-1]:  # the last was just asked for
            if len(self._live) <= MAX_LIVE:
                break
            if not self._live[session_id].lock.locked() and not self._live[session_id].watchers:
                del self._live[session_id]
        self._metrics.live_sessions.set(len(self._live))

    def _load(self, session_id: str) -> LiveSession:
        with self._database.connect() as conn:
            record = get_session(conn, session_id)
            live = LiveSession(record, get_image(conn, record.image_id), get_campaign(conn, record.campaign_id))
            events = session_events(conn, session_id)
        live.state = fold(events)
        live.seen = {event.event_id for event in events}
        return live

    def _read_after(self, session_id: str, seq: int) -> tuple[SessionRecord, CampaignRecord, list[Event]]:
        with self._database.connect() as conn:
            record = get_session(conn, session_id)
            events = session_events(conn, session_id, after_seq=seq) if record.last_seq > seq else []
            return record, get_campaign(conn, record.campaign_id), events

    def _campaign(self, campaign_id: str) -> CampaignRecord:
        with self._database.connect() as conn:
            return get_campaign(conn, campaign_id)

    def _stored_mask(self, live: LiveSession, mask_id: str) -> Rle:
        with self._database.connect() as conn:
            mask = get_mask(conn, mask_id)
        if mask.image_id != live.image.id:
            raise NotFoundError(f"Image {live.image.id} has no mask {mask_id}.")
        return mask.rle
