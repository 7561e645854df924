"""The event kinds and their payloads: what people did, as it is logged and replayed.

A payload is validated against its kind at the edge and stored as the client sent it (with defaults filled in), so that
its hash is stable. Coordinates are (x, y) floats in image pixels. Knows nothing about storage or models.
"""

import hashlib
import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from schemas.errors import BadInputError, first_problem
from schemas.masks import Rle

MAX_BRUSH_BYTES = 64 * 1024
Coordinate: TypeAlias = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6, strict=False)]


class _Payload(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    v: Literal[1] = 1


class OpenPayload(_Payload):
    """Begin an instance, empty or from a stored mask. The server adds the pins beside the payload."""

    mask_id: str | None = None


class ClickPayload(_Payload):
    """One positive or negative click."""

    x: Coordinate
    y: Coordinate
    is_positive: bool


class BoxPayload(_Payload):
    """A box prompt (x0, y0, x1, y1) around the object, half-open."""

    x0: Coordinate
    y0: Coordinate
    x1: Coordinate
    y1: Coordinate


class BrushPayload(_Payload):
    """One stroke: the painted pixels inside `box`, and the polyline and radius that made them (for training).

    `rle.size` is the size of the box (x0, y0, x1, y1), which lies inside the image.
    """

    is_positive: bool
    box: tuple[int, int, int, int]
    rle: Rle
    polyline: list[tuple[Coordinate, Coordinate]] = Field(default_factory=list, max_length=5000)
    radius: float = Field(default=0.0, ge=0, le=2000)


class MaskEditPayload(_Payload):
    """A tool's change of the mask: what was added and what was erased, in `box` (x0, y0, x1, y1)."""

    tool: Literal["polygon", "fill_holes", "keep_largest"]
    box: tuple[int, int, int, int]
    added: Rle
    erased: Rle
    polygon: list[tuple[Coordinate, Coordinate]] = Field(default_factory=list, max_length=5000)


class CandidatePayload(_Payload):
    """Choose another candidate of the last prediction."""

    index: int = Field(ge=0, le=63)


class CategoryPayload(_Payload):
    """Give the instance a category (its number in the campaign), or none."""

    category: int | None


class FlagPayload(_Payload):
    """Mark the instance as unsure (or not)."""

    unsure: bool
    note: str = Field(default="", max_length=1000)


class UndoPayload(_Payload):
    """Undo the newest not-undone edit of this instance, named by its event id."""

    event_id: UUID


class RedoPayload(_Payload):
    """Redo what the named undo undid."""

    event_id: UUID


class AcceptPayload(_Payload):
    """Accept the mask as of `seq`; `mask_sha256` is the digest of the mask that was shown."""

    seq: int = Field(ge=1)
    mask_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    category: int | None = None


class EmptyPayload(_Payload):
    """delete, submit and release carry nothing."""


class SkipPayload(_Payload):
    """Skip the task, with a reason."""

    reason: str = Field(default="", max_length=1000)


Payload: TypeAlias = (
    OpenPayload | ClickPayload | BoxPayload | BrushPayload | MaskEditPayload | CandidatePayload | CategoryPayload
    | FlagPayload | UndoPayload | RedoPayload | AcceptPayload | EmptyPayload | SkipPayload
)  # fmt: skip

PAYLOADS: dict[str, type[_Payload]] = {
    "open": OpenPayload,
    "click": ClickPayload,
    "box": BoxPayload,
    "brush": BrushPayload,
    "mask_edit": MaskEditPayload,
    "candidate": CandidatePayload,
    "category": CategoryPayload,
    "flag": FlagPayload,
    "undo": UndoPayload,
    "redo": RedoPayload,
    "accept": AcceptPayload,
    "delete": EmptyPayload,
    "submit": EmptyPayload,
    "skip": SkipPayload,
    "release": EmptyPayload,
}
EventKind = Literal[
    "open", "click", "box", "brush", "mask_edit", "candidate", "category", "flag", "undo", "redo", "accept", "delete",
    "submit", "skip", "release",
]  # fmt: skip
EDIT_KINDS = frozenset({"open", "click", "box", "brush", "mask_edit", "candidate"})
"""Kinds that change an instance's mask."""
SESSION_KINDS = frozenset({"submit", "skip", "release"})
"""Kinds that concern the whole session and carry no instance_id."""
UNDOABLE_KINDS = frozenset({"click", "box", "brush", "mask_edit", "candidate", "category", "flag", "accept", "delete"})


class EventIn(BaseModel):
    """An event as a client sends it.

    Attributes:
        event_id: Client-made UUID; resending the same event is safe.
        seq: 1, 2, 3, ... in the session.
        instance_id: Client-made id of the instance, None for session events.
        client_time: Stored, never trusted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    event_id: UUID
    seq: int = Field(ge=1, le=1_000_000)
    session_epoch: int = Field(ge=1)
    lease_no: int = Field(ge=1)
    instance_id: UUID | None = None
    kind: EventKind
    payload: dict[str, Any] = Field(default_factory=dict)
    client_time: datetime | None = None

    @field_validator("client_time")
    @classmethod
    def _in_utc(cls, time: datetime | None) -> datetime | None:
        """Stored so: in UTC, which the client's clock says where it names no zone."""
        if time is None or time.tzinfo is None:
            return time if time is None else time.replace(tzinfo=UTC)
        try:
            return time.astimezone(UTC)
        except OverflowError:
            raise ValueError("outside the years 1 to 9999 in UTC") from None


class Event(BaseModel):
    """An event as it stands in the log."""

    model_config = ConfigDict(frozen=True)

    event_id: str
    session_id: str
    seq: int
    session_epoch: int
    lease_no: int
    instance_id: str | None
    kind: EventKind
    payload: dict[str, Any]
    payload_sha256: str
    pins: dict[str, Any] | None = None
    client_time: datetime | None = None
    server_time: datetime | None = None
    annotator_id: str


def parse_payload(kind: str, payload: dict[str, Any]) -> Payload:
    """Validate a payload against its kind.

    Raises:
        BadInputError: The kind is unknown, a field is missing, unknown, of a wrong type or out of range.
    """
    if kind not in PAYLOADS:
        raise BadInputError(f"Unknown event kind {kind!r}. Known: {', '.join(sorted(PAYLOADS))}.")
    try:
        return TypeAdapter(PAYLOADS[kind]).validate_python(payload)  # type: ignore[return-value]
    except ValidationError as error:
        raise BadInputError(f"Event of kind {kind!r}: {first_problem(error.errors(), 'payload')}.") from error


def normalise_payload(kind: str, payload: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Validate a payload and give its stored form and hash.

    Returns:
        The JSON-ready payload with defaults filled in, and the sha256 (hex) of its canonical JSON (sorted keys, no
        spaces).
    """
    stored = parse_payload(kind, payload).model_dump(mode="json")
    canonical = json.dumps(stored, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return stored, hashlib.sha256(f"{kind}:{canonical}".encode()).hexdigest()
