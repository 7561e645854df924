"""The event path: validate, check against the fold, ask for the mask, commit, acknowledge.

Events of one session pass one at a time; those of all sessions share the writer's transactions. The question to the
refiner starts before the commit (it is pure, so a refused event costs only its computing); an acknowledgement never
waits for it, except where the event's meaning depends on the mask: `accept`, and `candidate`, which must exist.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.sessions.checks import check_event
from pipeline.sessions.fold import SessionState, apply, get_instance, num_clicks_at
from pipeline.storage.click_log import Appended, Effects, InstanceChange, NewMask, append_event, record_results
from pipeline.storage.database import Database
from pipeline.storage.images import embedding_digest
from pipeline.storage.writer import GroupWriter
from schemas.catalogue import EventResultRecord
from schemas.errors import (
    BadInputError,
    ClickloopError,
    ConflictError,
    DatabaseUnavailableError,
    StalePreviewError,
    TooLargeError,
)
from schemas.events import EDIT_KINDS, SESSION_KINDS, Event, EventIn, normalise_payload
from schemas.predictions import MaskReply, Pins, RefineRequest
from schemas.settings import Settings
from workers.api.live import Hub, LiveSession
from workers.api.metrics import Metrics
from workers.api.refining import Refining
from workers.api.work import read, write

MASK_KINDS = EDIT_KINDS | {"undo", "redo"}
"""Kinds after which the client wants a mask."""
_SPARE_EVENTS = 20
"""An instance at its limit can still be accepted or deleted."""


@dataclass
class Plan:
    """What an event will do once it is committed.

    Attributes:
        state: Of the session after it.
        new_mask: What it accepts.
        question: For the mask after the event; None where it leaves the mask alone.
    """

    event: Event
    state: SessionState
    new_mask: NewMask | None = None
    effects: Effects = field(default_factory=Effects)
    question: RefineRequest | None = None


OnQuestion = Callable[[Plan, RefineRequest], None]


class Intake:
    """Takes events into the log."""

    def __init__(
        self,
        database: Database,
        writer: GroupWriter,
        hub: Hub,
        refining: Refining,
        metrics: Metrics,
        settings: Settings,
    ) -> None:
        self._database = database
        self._writer = writer
        self._hub = hub
        self._refining = refining
        self._metrics = metrics
        self._settings = settings

    async def append(
        self,
        live: LiveSession,
        annotator_id: str,
        event: EventIn,
        mask_format: str = "bits",
        on_question: OnQuestion | None = None,
    ) -> Appended:
        """Commit one event; returns once it is durable.

        Args:
            mask_format: Of the mask asked for through `on_question`.
            on_question: Called before the commit with what to ask a refiner. The caller must not show the answer
                before this method returned, and drops it when it raises.

        Raises:
            ClickloopError: Nothing was stored; or, for DatabaseUnavailableError, perhaps: resend the event to know.
        """
        started = time.monotonic()
        try:
            live.own(annotator_id)
            async with live.lock:
                waited = time.monotonic()
                plan = await self._plan(live, event, mask_format)
                planned = time.monotonic()
                if plan is not None and plan.question is not None and on_question is not None:
                    on_question(plan, plan.question)
                    await asyncio.sleep(0)  # it leaves before the writer's thread competes for the interpreter
                appended = await self._commit(live, annotator_id, event, plan)
        except ClickloopError as error:
            self._metrics.refusal(error.code)
            raise
        done = time.monotonic()
        self._metrics.observe_stages(
            {"wait": (waited - started) * 1e3, "check": (planned - waited) * 1e3, "commit": (done - planned) * 1e3}
        )
        self._metrics.events.labels(event.kind).inc()
        return appended

    async def save_result(self, event_id: str, reply: MaskReply) -> None:
        """Keep what computing added to an event; off the click path."""
        result = EventResultRecord(
            event_id=event_id,
            mask_sha256=reply.mask_sha256,
            roi=reply.roi,
            scores=reply.scores,
            embedding_digest=reply.embedding_digest,
            engine=reply.engine.model_dump(),
            latency_ms=reply.latency_ms,
        )
        await write(self._writer, lambda conn: record_results(conn, [result]))

    async def _commit(self, live: LiveSession, annotator_id: str, event: EventIn, plan: Plan | None) -> Appended:
        pins = plan.event.pins if plan is not None else None
        effects = plan.effects if plan is not None else None
        lease_s = live.campaign.settings.lease_s or self._settings.lease_s
        try:
            appended = await write(
                self._writer,
                lambda conn: append_event(
                    conn, live.id, event, annotator_id, lease_s=lease_s, pins=pins, effects=effects
                ),
            )
        except ConflictError:
            await self._hub.refresh(live)
            raise
        if appended.duplicate or plan is None:
            await self._hub.refresh(live)
        else:
            live.advance(plan.event, plan.state)
        return appended

    async def _plan(self, live: LiveSession, event: EventIn, mask_format: str) -> Plan | None:
        """What the event does; None where the log alone decides: a repetition, a conflict or a gap."""
        if self._is_next(live, event):
            try:
                return await self._plan_next(live, event, mask_format)
            except DatabaseUnavailableError:
                raise  # another wait would be longer than the page's
            except ClickloopError:
                if not await self._hub.refresh(live):
                    raise
        elif event.seq > live.state.last_seq + 1:
            await self._hub.refresh(live)
        return await self._plan_next(live, event, mask_format) if self._is_next(live, event) else None

    @staticmethod
    def _is_next(live: LiveSession, event: EventIn) -> bool:
        return event.seq == live.state.last_seq + 1 and str(event.event_id) not in live.seen

    async def _plan_next(self, live: LiveSession, event: EventIn, mask_format: str) -> Plan:
        payload, digest = normalise_payload(event.kind, event.payload)
        await self._check(live, event)
        logged = Event(
            event_id=str(event.event_id),
            session_id=live.id,
            seq=event.seq,
            session_epoch=event.session_epoch,
            lease_no=event.lease_no,
            instance_id=str(event.instance_id) if event.instance_id else None,
            kind=event.kind,
            payload=payload,
            payload_sha256=digest,
            pins=await self._pins(live) if event.kind == "open" else None,
            annotator_id=live.record.annotator_id,
        )
        plan = Plan(logged, apply(live.state, logged))
        if event.kind in SESSION_KINDS:
            return plan
        await self._consult(live, plan)
        if event.kind in MASK_KINDS and _changes_mask(live.state, plan):
            plan.question = await self._hub.question(live, plan.state, str(event.instance_id), None, mask_format)
        plan.effects = _effects(live.state, plan)
        return plan

    async def _check(self, live: LiveSession, event: EventIn) -> None:
        size = (live.image.height, live.image.width)
        known = {category.number for category in live.campaign.categories}
        if event.payload.get("category") not in {None, *known}:
            await self._hub.refresh_campaign(live)
            known = {category.number for category in live.campaign.categories}
        check_event(event.kind, event.payload, size, known)
        instance = live.state.instances.get(str(event.instance_id))
        spare = _SPARE_EVENTS if event.kind in ("accept", "delete") else 0
        if instance is not None and instance.num_events >= self._settings.max_events_per_instance + spare:
            raise TooLargeError(
                f"This instance has {instance.num_events} events, the limit. Accept or delete it and open another."
            )

    async def _pins(self, live: LiveSession) -> dict[str, object]:
        await self._hub.refresh_campaign(live)
        campaign = live.campaign
        pins = Pins(
            model_digest=campaign.model_digest,
            model_key=campaign.model_key,
            adapter_digest=campaign.live_adapter,
            embedding_digest=await read(self._embedding_digest, live.image.sha256, campaign.model_key),
        )
        return pins.model_copy(update={"engine": await self._refining.engine(pins)}).model_dump()

    def _embedding_digest(self, sha256: str, model_key: str) -> str | None:
        with self._database.connect() as conn:
            return embedding_digest(conn, sha256, model_key)

    async def _consult(self, live: LiveSession, plan: Plan) -> None:
        """Ask a refiner where the event cannot be judged without the mask."""
        event, payload = plan.event, plan.event.payload
        instance_id = str(event.instance_id)
        if event.kind == "candidate":
            reply = await self._refining.ask(await self._hub.question(live, live.state, instance_id, None, "none"))
            if payload["index"] >= len(reply.scores):
                raise BadInputError(
                    f"There is no candidate {payload['index']}: the last prediction has {len(reply.scores)}."
                )
        elif event.kind == "accept":
            question = await self._hub.question(live, live.state, instance_id, payload["seq"], "rle")
            reply = await self._refining.ask(question)
            plan.new_mask = _new_mask(plan, question, reply)


def _new_mask(plan: Plan, question: RefineRequest, reply: MaskReply) -> NewMask:
    event, payload = plan.event, plan.event.payload
    if reply.mask_sha256 != payload["mask_sha256"]:
        raise StalePreviewError(
            f"The mask as of seq {payload['seq']} is not the one that was shown. Look at this one and accept again.",
            seq=payload["seq"],
            instance_id=event.instance_id,
            mask=reply.model_dump(mode="json"),
        )
    if reply.area == 0:
        raise BadInputError("The mask is empty: there is nothing to accept. Click first, or delete the instance.")
    assert reply.rle is not None and event.instance_id is not None
    return NewMask(
        mask_id=event.event_id,
        instance_id=event.instance_id,
        seq=payload["seq"],
        category_number=get_instance(plan.state, event.instance_id).category,
        height=reply.rle.size[0],
        width=reply.rle.size[1],
        rle_counts=reply.rle.counts,
        mask_sha256=reply.mask_sha256,
        area=reply.area,
        bbox=reply.box_xywh,
        num_clicks=num_clicks_at(plan.state, event.instance_id, payload["seq"]),
        model_digest=question.pins.model_digest,
        adapter_digest=question.pins.adapter_digest,
        embedding_digest=reply.embedding_digest,
        engine=reply.engine.model_dump(),
        score=reply.scores[reply.candidate] if reply.scores else None,
    )


def _changes_mask(before: SessionState, plan: Plan) -> bool:
    instance_id = str(plan.event.instance_id)
    old = before.instances.get(instance_id)
    return old is None or plan.state.instances[instance_id].mask_seq != old.mask_seq


def _effects(before: SessionState, plan: Plan) -> Effects:
    """The instance's projection, where the event changed it."""
    instance_id = str(plan.event.instance_id)
    changes = []
    if _projection(plan.state, instance_id) != _projection(before, instance_id):
        changes = [_projection(plan.state, instance_id)]
    return Effects(instances=[change for change in changes if change is not None], new_mask=plan.new_mask)


def _projection(state: SessionState, instance_id: str) -> InstanceChange | None:
    instance = state.instances.get(instance_id)
    if instance is None:
        return None
    return InstanceChange(
        instance_id=instance_id,
        state=instance.status,
        category_number=instance.category,
        unsure=instance.unsure,
        mask_id=instance.accepted.mask_id if instance.accepted else None,
    )
