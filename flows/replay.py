"""Recompute masks from the event log with the weights that they are pinned to, and compare with what was stored.

Uses the refiner itself, in this process. Only checks: stored masks are never replaced (a lost embedding is encoded
again under its key, as a click would do).
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from pipeline.evaluation.metrics import iou
from pipeline.masks.rle import rle_to_mask
from pipeline.sessions.fold import effective_edits, fold
from pipeline.storage import images, masks, sessions, tombstones
from pipeline.storage.database import Database
from schemas.campaigns import CampaignRecord, SessionRecord
from schemas.catalogue import EventResultRecord, MaskRecord
from schemas.errors import ClickloopError, NotFoundError
from schemas.masks import Rle
from schemas.predictions import MaskReply, Pins, RefineRequest
from schemas.settings import Settings
from workers.encoder import Encoder
from workers.refiner import Refiner
from workers.router import LocalRouter

MAX_LISTED = 100


class Mismatch(BaseModel):
    """A mask that did not come out as it was stored.

    Attributes:
        what: mask or event.
        id: Of the mask or event.
        iou: With the stored mask, None where only its digest was stored or nothing could be computed.
        differs: The pins that are not as they were; empty where all agree, which should not happen.
        reason: Why nothing could be computed.
    """

    what: str
    id: str
    session_id: str
    iou: float | None = None
    differs: list[str] = []
    reason: str = ""


class ReplayReport(BaseModel):
    """What a replay found.

    Attributes:
        masks: Stored masks of annotators that were recomputed.
        identical: Of those, the ones with the same bytes.
        events: Logged mask digests that were recomputed.
        events_identical: Of those, the same ones.
        purged: Sessions that were purged with their image, which leaves nothing to check.
        min_iou: Smallest IoU of a recomputed with its stored mask.
        mismatches: The first `MAX_LISTED`.
    """

    sessions: int = 0
    masks: int = 0
    identical: int = 0
    events: int = 0
    events_identical: int = 0
    purged: int = 0
    min_iou: float = 1.0
    seconds: float = 0.0
    mismatches: list[Mismatch] = []

    @property
    def ok(self) -> bool:
        """Whether everything came out as it was stored."""
        return self.identical == self.masks and self.events_identical == self.events


def replay(
    settings: Settings,
    database: Database,
    campaign: CampaignRecord,
    session_id: str | None = None,
    progress: Callable[[dict[str, Any]], None] = lambda facts: None,
) -> ReplayReport:
    """Recompute a campaign's masks, or one session's.

    Raises:
        NotFoundError: The campaign has no such session.
    """
    began = time.monotonic()
    with database.connect() as conn:
        chosen = sessions.list_sessions(conn, campaign.id)
        purged = tombstones.purged_sessions(conn, campaign.id)
    if session_id is not None:
        chosen = [session for session in chosen if session.id == session_id]
        if not chosen:
            gone = f" {purged} of its sessions were purged." if purged else ""
            raise NotFoundError(f"Campaign {campaign.name!r} has no session {session_id!r}.{gone}")
    report = ReplayReport(purged=0 if session_id else purged)
    asyncio.run(_replay_all(settings, database, chosen, report, progress))
    report.seconds = round(time.monotonic() - began, 3)
    return report


async def _replay_all(
    settings: Settings,
    database: Database,
    chosen: list[SessionRecord],
    report: ReplayReport,
    progress: Callable[[dict[str, Any]], None],
) -> None:
    options: dict[str, Any] = {
        "storage_url": settings.resolved_storage_url,
        "cache_dir": str(settings.workspace.resolve() / "cache"),
        "max_image_pixels": settings.max_image_pixels,
    }
    refiner = Refiner(**options, threads=settings.refiner_threads)
    router = LocalRouter(refiner, Encoder(**options, threads=settings.encoder_threads))
    try:
        for session in chosen:
            try:
                log = _Session(database, session, router, report)
            except NotFoundError:  # purged since the sessions were listed
                report.purged += 1
                continue
            await log.replay()
            report.sessions += 1
            progress({"step": "replay", "done": report.sessions, "total": len(chosen), "masks": report.masks})
    finally:
        await router.close()


class _Session:
    """One session: its log, folded, and what was stored of it."""

    def __init__(self, database: Database, session: SessionRecord, router: LocalRouter, report: ReplayReport) -> None:
        self.session, self.router, self.report = session, router, report
        self.database = database
        with database.connect() as conn:
            self.events = sessions.session_events(conn, session.id)
            self.results = sessions.session_results(conn, session.id)
            self.masks = masks.session_masks(conn, session.id)
            self.image = images.get_image(conn, session.image_id).ref
        self.state = fold(self.events)

    async def replay(self) -> None:
        """Check every logged digest, then every stored mask."""
        for event in self.events:
            result = self.results.get(event.event_id)
            if result is not None and event.instance_id is not None:
                await self._check_event(event.instance_id, event.seq, result)
        for mask in self.masks:
            await self._check_mask(mask)

    async def _check_event(self, instance_id: str, seq: int, result: EventResultRecord) -> None:
        self.report.events += 1
        try:
            reply = await self._compute(instance_id, seq, result.embedding_digest, "none")
        except ClickloopError as error:
            self._mismatch("event", result.event_id, reason=error.message)
            return
        if reply.mask_sha256 == result.mask_sha256:
            self.report.events_identical += 1
        else:
            differs = changed_pins(reply, result.embedding_digest, result.engine)
            self._mismatch("event", result.event_id, differs=differs)

    async def _check_mask(self, mask: MaskRecord) -> None:
        assert mask.seq is not None, "masks of a session name the event that they show"
        self.report.masks += 1
        try:
            reply = await self._compute(mask.instance_id, mask.seq, mask.embedding_digest, "rle")
        except ClickloopError as error:
            self.report.min_iou = 0.0
            self._mismatch("mask", mask.id, reason=error.message)
            return
        if reply.mask_sha256 == mask.mask_sha256 and reply.rle == mask.rle:
            self.report.identical += 1
            return
        assert reply.rle is not None
        overlap = float(iou(rle_to_mask(reply.rle), rle_to_mask(mask.rle)))
        self.report.min_iou = min(self.report.min_iou, overlap)
        differs = changed_pins(reply, mask.embedding_digest, mask.engine or {})
        self._mismatch("mask", mask.id, iou=overlap, differs=differs)

    async def _compute(self, instance_id: str, seq: int, embedding: str | None, mask_format: Any) -> MaskReply:
        edits = effective_edits(self.state, instance_id, seq)
        pins = Pins.model_validate({**self.state.instances[instance_id].pins, "embedding_digest": embedding})
        request = RefineRequest(
            image=self.image,
            pins=pins,
            edits=edits,
            initial_mask=self._initial_mask(edits[0].payload.get("mask_id")),
            mask_format=mask_format,
        )
        return await self.router.refine(request)

    def _initial_mask(self, mask_id: str | None) -> Rle | None:
        if mask_id is None:
            return None
        with self.database.connect() as conn:
            return masks.get_mask(conn, mask_id).rle

    def _mismatch(self, what: str, id: str, **facts: Any) -> None:
        if len(self.report.mismatches) < MAX_LISTED:
            self.report.mismatches.append(Mismatch(what=what, id=id, session_id=self.session.id, **facts))


def changed_pins(reply: MaskReply, embedding_digest: str | None, engine: Mapping[str, Any]) -> list[str]:
    """The pins that a recomputed mask does not share with the stored one."""
    changed = [] if reply.embedding_digest == embedding_digest else ["embedding"]
    now = reply.engine.model_dump()
    return changed + [f"engine.{name}" for name in now if engine.get(name) != now[name]]
