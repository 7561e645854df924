"""Rows of the catalogue as other parts see them (campaigns, images and sessions: `schemas.campaigns`)."""

import shlex
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from schemas.campaigns import CategoryRecord
from schemas.masks import Rle


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class MaskRecord(_Row):
    """An accepted mask version.

    Attributes:
        number: COCO annotation id, from 1.
        image_number: COCO image id, from 1.
        parent_id: The version, or the opened mask, that it came from.
        seq: Event of the session whose mask was accepted.
        rle_counts: COCO compressed counts, ASCII.
        bbox: (x, y, width, height) in pixels.
        pseudonym: Of the annotator; None for imported masks.
    """

    id: str
    campaign_id: str
    number: int
    image_id: str
    image_number: int
    instance_id: str
    version: int
    parent_id: str | None
    source: str
    session_id: str | None
    event_id: str | None
    seq: int | None
    annotator_id: str | None
    pseudonym: str | None
    category_number: int | None
    height: int
    width: int
    rle_counts: str
    mask_sha256: str
    area: int
    bbox: tuple[int, int, int, int]
    num_clicks: int
    model_digest: str | None
    adapter_digest: str | None
    embedding_digest: str | None
    engine: dict[str, Any] | None
    created_at: datetime
    score: float | None = None

    @property
    def rle(self) -> Rle:
        """The mask itself."""
        return Rle(size=(self.height, self.width), counts=self.rle_counts)


class InstanceRecord(_Row):
    """The projection of one instance; the events are the truth."""

    id: str
    image_id: str
    session_id: str | None
    state: str
    category_number: int | None
    unsure: bool
    mask_id: str | None
    opened_mask_id: str | None


class EventResultRecord(_Row):
    """What computing added to an event; can be rebuilt.

    Attributes:
        roi: (y0, x0, y1, x1) in image pixels.
        latency_ms: By stage.
    """

    event_id: str
    mask_sha256: str
    roi: tuple[int, int, int, int] | None = None
    scores: tuple[float, ...] = ()
    embedding_digest: str | None = None
    engine: dict[str, Any]
    latency_ms: dict[str, float] = {}


class ModelRecord(_Row):
    """Model weights in the storage."""

    digest: str
    model_id: str
    uri: str
    size_bytes: int
    created_at: datetime


class AdapterRecord(_Row):
    """An adapter with its lineage and what the gate said.

    Attributes:
        removed_at: When its file was removed as of no use, None while it is there.
        live: It is the campaign's live one.
    """

    digest: str
    campaign_id: str
    number: int
    kind: str
    uri: str
    model_digest: str
    model_key: str
    parent_digest: str | None
    snapshot_id: str | None
    seed: int
    state: str
    metrics: dict[str, Any]
    gate: dict[str, Any]
    created_at: datetime
    removed_at: datetime | None
    live: bool


class SnapshotRecord(_Row):
    """A named, immutable set of mask versions, with the categories as they were then."""

    id: str
    campaign_id: str
    number: int
    parent_id: str | None
    purpose: str
    filters: dict[str, Any]
    categories: list[CategoryRecord]
    created_at: datetime
    masks: int
    images: int


class TombstoneRecord(_Row):
    """What was purged, or is being.

    Attributes:
        image_id: None: the whole campaign.
        state: running or done.
        counts: Rows that went, by kind.
        snapshots: Exports that still hold the data: number, id, paths, adapters.
        readmitted_at: When ingest was told to take the image again.
    """

    id: str
    campaign_id: str
    campaign_name: str
    image_id: str | None
    image_number: int | None
    image_sha256: str | None
    state: str
    purged_by: str
    counts: dict[str, int]
    snapshots: list[dict[str, Any]]
    started_at: datetime
    finished_at: datetime | None
    readmitted_at: datetime | None

    @property
    def what(self) -> str:
        """Its name for people."""
        campaign = f"ampaign {self.campaign_name!r}"
        return f"C{campaign}" if self.image_id is None else f"Image {self.image_number} of c{campaign}"

    @property
    def text(self) -> str:
        """One sentence for whoever asks for it."""
        when = self.started_at.isoformat(" ", "seconds")
        return f"{self.what} was purged on {when}." if self.state == "done" else f"{self.what} is being purged."

    @property
    def command(self) -> str:
        """What to type to go on with it."""
        name = shlex.quote(self.campaign_name)
        return (
            f"clickloop purge campaign {name}"
            if self.image_id is None
            else (f"clickloop purge image {name} {self.image_number}")
        )


class TokenRecord(_Row):
    """An access token without its secret."""

    id: str
    annotator: str
    scopes: frozenset[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
