"""Builders of events for the tests of the fold, the log and the gateway."""

from typing import Any
from uuid import UUID, uuid4

from schemas.events import Event, EventIn, normalise_payload


def event_in(
    seq: int,
    kind: str,
    instance: str | None = None,
    /,
    *,
    own_id: str | None = None,
    epoch: int = 1,
    lease_no: int = 1,
    **payload: Any,
) -> EventIn:
    """An event as a client sends it."""
    return EventIn(
        event_id=UUID(own_id) if own_id else uuid4(),
        seq=seq,
        session_epoch=epoch,
        lease_no=lease_no,
        instance_id=UUID(instance) if instance else None,
        kind=kind,  # type: ignore[arg-type]
        payload=payload,
    )


def logged(event: EventIn, session_id: str = "session", pins: dict[str, Any] | None = None) -> Event:
    """The event as the log would hold it."""
    payload, digest = normalise_payload(event.kind, event.payload)
    return Event(
        event_id=str(event.event_id),
        session_id=session_id,
        seq=event.seq,
        session_epoch=event.session_epoch,
        lease_no=event.lease_no,
        instance_id=str(event.instance_id) if event.instance_id else None,
        kind=event.kind,
        payload=payload,
        payload_sha256=digest,
        pins=pins,
        annotator_id="annotator",
    )
