"""The catalogue's tables. Queries live in `pipeline.storage`; migrations in `schemas.migrations`.

Ids are client- or server-made UUID strings, except where a natural key exists (sha256 digests) or a file format wants
small integers (`number` columns: stable, from 1, never reused). Times are UTC, by the database's clock.
"""

from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from schemas.campaigns import TaskState
from schemas.columns import UtcDateTime, after_create, make_append_only
from schemas.tallies import sources, triggers

NAMING = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

CampaignState = Literal["active", "paused"]
SessionState = Literal["open", "submitted", "skipped", "released", "lost"]
InstanceState = Literal["open", "accepted", "deleted"]
RequestState = Literal["queued", "running", "done", "failed", "cancelled"]
RequestKind = Literal["ingest", "import", "propose", "precompute", "prelabel", "order", "retrain", "export", "campaign"]
PurgeState = Literal["running", "done"]
AdapterState = Literal["candidate", "rejected", "promoted", "retired"]
SourceState = Literal["registered", "duplicate", "quarantined"]

ACTIVE_REQUEST = "state IN ('queued', 'running') AND kind IN ('retrain', 'precompute')"
"""Of these there is at most one per campaign."""


HAS_PARENT = "parent_id IS NOT NULL"
"""Few masks have one. A foreign key without an index costs a look at every row when what it names is purged."""


IS_LEASED = "state = 'leased'"
BY_ANNOTATOR = "source = 'annotator'"
"""Conditions of partial indexes, which a query has to name with the value in its text: SQLite plans without values."""


class Base(DeclarativeBase):
    """Declarative base with stable constraint names, so that migrations can name what they change."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
        datetime: UtcDateTime(),
        str: String(255),
    }


def _one_of(values: Any) -> CheckConstraint:
    """`state` is one of a Literal's values."""
    return CheckConstraint(f"state IN ({', '.join(repr(v) for v in get_args(values))})", name="state")


def _only(name: str, where: str, *columns: str) -> Index:
    """An index of the rows of which this is so."""
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


class Campaign(Base):
    """A set of images to label with one pinned model."""

    __tablename__ = "campaigns"
    __table_args__ = (_one_of(CampaignState),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    state: Mapped[str] = mapped_column(String(16), default="active")
    source_url: Mapped[str] = mapped_column(Text)
    model_id: Mapped[str]
    model_digest: Mapped[str] = mapped_column(String(64))
    model_key: Mapped[str] = mapped_column(String(64))
    live_adapter: Mapped[str | None] = mapped_column(String(64))
    live_version: Mapped[int] = mapped_column(Integer, default=0)
    """Counts promotions and rollbacks; the compare-and-set of a promotion names the one it saw."""
    settings: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """See `schemas.campaigns.CampaignSettings`."""
    created_at: Mapped[datetime]


class Category(Base):
    """A label. `number` is the COCO category id."""

    __tablename__ = "categories"
    __table_args__ = (UniqueConstraint("campaign_id", "number"), UniqueConstraint("campaign_id", "name"))

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.id"))
    number: Mapped[int]
    name: Mapped[str]


class Image(Base):
    """One image, once per campaign by content."""

    __tablename__ = "images"
    __table_args__ = (
        UniqueConstraint("campaign_id", "sha256"),
        UniqueConstraint("campaign_id", "number"),
        Index("ix_images_campaign_group", "campaign_id", "group_key"),
        Index("ix_images_sha256", "sha256"),
        _only("ix_images_quarantined", "quarantine_reason IS NOT NULL", "campaign_id", "number"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.id"))
    number: Mapped[int]
    uri: Mapped[str] = mapped_column(Text)
    file_name: Mapped[str] = mapped_column(Text)
    """Relative POSIX path below the campaign's source."""
    sha256: Mapped[str] = mapped_column(String(64))
    phash: Mapped[str] = mapped_column(String(16))
    """64-bit perceptual hash, hex."""
    group_key: Mapped[str] = mapped_column(String(64))
    """sha256 of the first image of its near-duplicate group; groups never straddle the hold-out."""
    holdout: Mapped[bool] = mapped_column(Boolean)
    width: Mapped[int]
    height: Mapped[int]
    format: Mapped[str] = mapped_column(String(16))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    encode_attempts: Mapped[int] = mapped_column(Integer, default=0)
    quarantine_reason: Mapped[str | None] = mapped_column(Text)
    """Set when the image could be read at ingest but killed or failed the encoder three times."""
    created_at: Mapped[datetime]
    window: Mapped[list[Any] | None]
    """Of its campaign when it was ingested: part of its pixel space."""


class Source(Base):
    """One file seen at ingest: registered, a duplicate of an image, or quarantined with the reason.

    A duplicate without an image is a file of one that was purged; its `uri` is empty.
    """

    __tablename__ = "sources"
    __table_args__ = (
        UniqueConstraint("campaign_id", "uri_sha256"),
        Index("ix_sources_image_id", "image_id"),
        Index("ix_sources_state", "campaign_id", "state"),
        _one_of(SourceState),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.id"))
    uri: Mapped[str] = mapped_column(Text)
    uri_sha256: Mapped[str] = mapped_column(String(64))
    version: Mapped[str]
    """Size and ETag or mtime as listed: unchanged means it need not be read again."""
    state: Mapped[str] = mapped_column(String(16))
    image_id: Mapped[str | None] = mapped_column(ForeignKey("images.id"))
    reason: Mapped[str | None] = mapped_column(Text)
    seen_at: Mapped[datetime]


class Embedding(Base):
    """That an embedding is stored, and the digest of its bytes. The store is the truth; this row saves a look."""

    __tablename__ = "embeddings"

    image_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    model_key: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]


class Annotator(Base):
    """A person, or a simulated one. Exports carry the pseudonym."""

    __tablename__ = "annotators"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    pseudonym: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime]


class Token(Base):
    """An access token, hashed at rest."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    annotator_id: Mapped[str] = mapped_column(ForeignKey("annotators.id"))
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[Any]]
    """Of label, review, train, export, admin."""
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class Task(Base):
    """The work item of one image. `lease_no` is the fencing token."""

    __tablename__ = "tasks"
    __table_args__ = (
        UniqueConstraint("campaign_id", "image_id"),
        Index("ix_tasks_image_id", "image_id"),
        Index("ix_tasks_queue", "campaign_id", "state", "priority", "position"),
        Index("ix_tasks_browsed", "campaign_id", "state", "position"),
        _only("ix_tasks_leased", IS_LEASED, "campaign_id"),
        _one_of(TaskState),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.id"))
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id"))
    state: Mapped[str] = mapped_column(String(16), default="new")
    priority: Mapped[float] = mapped_column(Float, default=0.0)
    """Smaller first."""
    position: Mapped[int]
    """The image's number."""
    lease_no: Mapped[int] = mapped_column(Integer, default=0)
    annotator_id: Mapped[str | None] = mapped_column(ForeignKey("annotators.id"))
    lease_expires_at: Mapped[datetime | None]
    updated_at: Mapped[datetime]


class Lease(Base):
    """The history of claims: one row per (task, lease_no)."""

    __tablename__ = "leases"

    task_id: Mapped[str] = mapped_column(ForeignKey("tasks.id"), primary_key=True)
    lease_no: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    claim_id: Mapped[str] = mapped_column(String(36), unique=True)
    """Client-made: claiming again with it gives the same lease."""
    annotator_id: Mapped[str] = mapped_column(ForeignKey("annotators.id"))
    session_id: Mapped[str] = mapped_column(String(36))
    acquired_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    end_reason: Mapped[str | None] = mapped_column(String(16))


class Session(Base):
    """One annotator at work on one task under one lease."""

    __tablename__ = "sessions"
    __table_args__ = (
        UniqueConstraint("task_id", "lease_no"),
        Index("ix_sessions_browsed", "campaign_id", "annotator_id", "image_number"),
        _one_of(SessionState),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.id"), index=True)
    task_id: Mapped[str] = mapped_column(ForeignKey("tasks.id"))
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id"), index=True)
    annotator_id: Mapped[str] = mapped_column(ForeignKey("annotators.id"))
    lease_no: Mapped[int]
    epoch: Mapped[int] = mapped_column(Integer, default=1)
    last_seq: Mapped[int] = mapped_column(Integer, default=0)
    state: Mapped[str] = mapped_column(String(16), default="open")
    created_at: Mapped[datetime]
    image_number: Mapped[int] = mapped_column(Integer, server_default="0")
    """Of its image: what one annotator did is gone through in this order."""


class EventRow(Base):
    """What people did. Append-only: a trigger refuses update, and delete unless a running purge names the image."""

    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("session_id", "seq"),)

    event_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id"))
    seq: Mapped[int]
    session_epoch: Mapped[int]
    lease_no: Mapped[int]
    instance_id: Mapped[str | None] = mapped_column(String(36), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    payload: Mapped[dict[str, Any]]
    payload_sha256: Mapped[str] = mapped_column(String(64))
    pins: Mapped[dict[str, Any] | None]
    client_time: Mapped[datetime | None]
    server_time: Mapped[datetime]
    annotator_id: Mapped[str] = mapped_column(ForeignKey("annotators.id"))


class EventResult(Base):
    """What computing added to an event. Can be rebuilt."""

    __tablename__ = "event_results"

    event_id: Mapped[str] = mapped_column(ForeignKey("events.event_id"), primary_key=True)
    mask_sha256: Mapped[str] = mapped_column(String(64))
    roi: Mapped[list[Any] | None]
    scores: Mapped[list[Any]]
    embedding_digest: Mapped[str | None] = mapped_column(String(64))
    engine: Mapped[dict[str, Any]]
    latency_ms: Mapped[dict[str, Any]]


class Instance(Base):
    """One object of a session: a projection of its events, kept for queries. An imported mask has one, too."""

    __tablename__ = "instances"
    __table_args__ = (
        Index("ix_instances_campaign_image", "campaign_id", "image_id"),
        Index("ix_instances_image_id", "image_id"),
        Index("ix_instances_browsed", "campaign_id", "category_number", "image_number"),
        _only("ix_instances_unsure", "unsure", "campaign_id", "image_number"),
        _one_of(InstanceState),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.id"))
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id"))
    session_id: Mapped[str | None] = mapped_column(ForeignKey("sessions.id"), index=True)
    """None: imported."""
    state: Mapped[str] = mapped_column(String(16), default="open")
    category_number: Mapped[int | None]
    unsure: Mapped[bool] = mapped_column(Boolean, default=False)
    mask_id: Mapped[str | None] = mapped_column(ForeignKey("masks.id"), index=True)
    """The accepted mask version, None while open."""
    opened_mask_id: Mapped[str | None] = mapped_column(ForeignKey("masks.id"), index=True)
    """The stored mask that it was opened from: accepting or deleting the instance replaces that mask."""
    image_number: Mapped[int] = mapped_column(Integer, server_default="0")
    """Of its image: what is of one category is gone through in this order."""


class MaskRow(Base):
    """An accepted mask: an immutable version with its lineage, protected as the events are."""

    __tablename__ = "masks"
    __table_args__ = (
        UniqueConstraint("campaign_id", "number"),
        UniqueConstraint("instance_id", "version"),
        CheckConstraint("source IN ('annotator', 'import')", name="source"),
        Index("ix_masks_session_id", "session_id"),
        _only("ix_masks_parent_id", HAS_PARENT, "parent_id"),
        _only("ix_masks_made", BY_ANNOTATOR, "campaign_id", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.id"))
    number: Mapped[int]
    """COCO annotation id: from 1, unique in the campaign, never reused."""
    image_id: Mapped[str] = mapped_column(ForeignKey("images.id"), index=True)
    instance_id: Mapped[str] = mapped_column(String(36))
    """No foreign key: an instance names its mask, and each is written first once."""
    version: Mapped[int]
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("masks.id"))
    """The version or opened mask that this one came from."""
    source: Mapped[str] = mapped_column(String(16))
    """annotator or import."""
    session_id: Mapped[str | None] = mapped_column(ForeignKey("sessions.id"))
    event_id: Mapped[str | None] = mapped_column(ForeignKey("events.event_id"), unique=True)
    """The accept event."""
    seq: Mapped[int | None]
    """The event of the session whose mask was accepted."""
    annotator_id: Mapped[str | None] = mapped_column(ForeignKey("annotators.id"))
    category_number: Mapped[int | None]
    height: Mapped[int]
    width: Mapped[int]
    rle_counts: Mapped[str] = mapped_column(Text)
    mask_sha256: Mapped[str] = mapped_column(String(64))
    area: Mapped[int]
    bbox: Mapped[list[Any]]
    num_clicks: Mapped[int]
    model_digest: Mapped[str | None] = mapped_column(String(64))
    adapter_digest: Mapped[str | None] = mapped_column(String(64))
    embedding_digest: Mapped[str | None] = mapped_column(String(64))
    engine: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    score: Mapped[float | None] = mapped_column(Float)
    """The IoU that the model states of what it predicted, in [0, 1]; None where it predicted nothing."""


class Model(Base):
    """Model weights copied by digest into the storage."""

    __tablename__ = "models"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    model_id: Mapped[str]
    uri: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]


class Adapter(Base):
    """A trained adapter: content-addressed weights with lineage and gate outcome."""

    __tablename__ = "adapters"
    __table_args__ = (UniqueConstraint("campaign_id", "number"), _one_of(AdapterState))

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.id"))
    number: Mapped[int]
    kind: Mapped[str] = mapped_column(String(32))
    uri: Mapped[str] = mapped_column(Text)
    model_digest: Mapped[str] = mapped_column(String(64))
    model_key: Mapped[str] = mapped_column(String(64))
    parent_digest: Mapped[str | None] = mapped_column(String(64))
    snapshot_id: Mapped[str | None] = mapped_column(ForeignKey("snapshots.id"))
    seed: Mapped[int]
    state: Mapped[str] = mapped_column(String(16), default="candidate")
    metrics: Mapped[dict[str, Any]]
    gate: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    removed_at: Mapped[datetime | None]
    """When `gc` removed its file; the row stays, as lineage."""


class Promotion(Base):
    """The history of what was live: one row per change of `campaigns.live_adapter`."""

    __tablename__ = "promotions"

    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.id"), primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    adapter_digest: Mapped[str | None] = mapped_column(String(64))
    previous_digest: Mapped[str | None] = mapped_column(String(64))
    reason: Mapped[str] = mapped_column(String(32))
    """promote or rollback."""
    created_at: Mapped[datetime]


class Evaluation(Base):
    """A NoC report of a model or adapter."""

    __tablename__ = "evaluations"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    campaign_id: Mapped[str | None] = mapped_column(ForeignKey("campaigns.id"), index=True)
    model_digest: Mapped[str] = mapped_column(String(64))
    adapter_digest: Mapped[str | None] = mapped_column(String(64))
    report: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class Request(Base):
    """A long job: inserted by the gateway, claimed by the flow runner."""

    __tablename__ = "requests"
    __table_args__ = (
        Index("ix_requests_queue", "state", "created_at"),
        Index(
            "uq_requests_active",
            "campaign_id",
            "kind",
            unique=True,
            sqlite_where=text(ACTIVE_REQUEST),
            postgresql_where=text(ACTIVE_REQUEST),
        ),
        _one_of(RequestState),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    payload: Mapped[dict[str, Any]]
    payload_sha256: Mapped[str] = mapped_column(String(64))
    campaign_id: Mapped[str | None] = mapped_column(ForeignKey("campaigns.id"), index=True)
    state: Mapped[str] = mapped_column(String(16), default="queued")
    progress: Mapped[dict[str, Any]]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[str | None] = mapped_column(Text)
    owner: Mapped[str | None] = mapped_column(String(64))
    heartbeat_at: Mapped[datetime | None]
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    cancel: Mapped[bool] = mapped_column(Boolean, default=False)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class Snapshot(Base):
    """A named, immutable set of mask versions."""

    __tablename__ = "snapshots"
    __table_args__ = (UniqueConstraint("campaign_id", "number"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.id"))
    number: Mapped[int]
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("snapshots.id"))
    purpose: Mapped[str] = mapped_column(String(16))
    """export or retrain."""
    filters: Mapped[dict[str, Any]]
    categories: Mapped[list[Any]]
    """(number, name) of the campaign's categories at that time."""
    created_at: Mapped[datetime]
    masks: Mapped[int] = mapped_column(Integer, server_default="0")
    """How many of its items are masks; counted when it is made, and less what is purged."""
    images: Mapped[int] = mapped_column(Integer, server_default="0")
    """Likewise, those that it has items of."""


class SnapshotItem(Base):
    """One mask version of a snapshot, or (mask_id None) one image verified to be empty; beside masks of an image, that
    others without a category were left out.

    Image and mask are no foreign keys: one statement copies them from rows that name them, on SQLite while clicks wait,
    and looking each up once more took half of its time. Whatever removes images or masks removes these first.
    """

    __tablename__ = "snapshot_items"
    __table_args__ = (
        Index("ix_snapshot_items_snapshot", "snapshot_id", "image_id", "mask_id", "category_number", "unsure"),
    )

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    snapshot_id: Mapped[str] = mapped_column(ForeignKey("snapshots.id"))
    image_id: Mapped[str] = mapped_column(String(36))
    mask_id: Mapped[str | None] = mapped_column(String(36))
    category_number: Mapped[int | None]
    unsure: Mapped[bool] = mapped_column(Boolean, server_default=false())
    """Whether the annotator had flagged it."""


class Purge(Base):
    """The tombstone of an image or (image_id None) a whole campaign: written before the first row goes, and kept."""

    __tablename__ = "purges"
    __table_args__ = (Index("ix_purges_campaign_image", "campaign_id", "image_sha256"), _one_of(PurgeState))

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    campaign_id: Mapped[str] = mapped_column(String(36))
    """No foreign key: the campaign may be what went."""
    campaign_name: Mapped[str] = mapped_column(String(200))
    image_id: Mapped[str | None] = mapped_column(String(36))
    image_number: Mapped[int | None]
    image_sha256: Mapped[str | None] = mapped_column(String(64))
    """By which ingest knows the image again."""
    mask_number: Mapped[int] = mapped_column(Integer, default=0)
    """The largest of the purged masks' numbers: they are not given again."""
    state: Mapped[str] = mapped_column(String(16), default="running")
    purged_by: Mapped[str] = mapped_column(String(200))
    counts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Rows that went, by kind; written in the transactions that removed them."""
    snapshots: Mapped[list[Any]] = mapped_column(default=list)
    """Exports that still hold the data: number, id, places, and the adapters that made a mask of it."""
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    readmitted_at: Mapped[datetime | None]
    """When ingest was told to take the image again."""


class Tally(Base):
    """How many rows of a kind a campaign has: the sum over `shard`. These tables are written as `schemas.tallies` says.

    Kinds, and what their keys are: `image` ('holdout' or ''), `embedding` (of its images under its model key), `task`
    (state), `click`, `mask` (current, by annotators: category number or ''), `mask_click` (likewise, their clicks),
    `proposal`.
    """

    __tablename__ = "tallies"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    campaign_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    key: Mapped[str] = mapped_column(String(16), primary_key=True)
    shard: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    amount: Mapped[int] = mapped_column(BigInteger)


class WorkTally(Base):
    """Masks that annotators accepted and did not take back, by slots of time."""

    __tablename__ = "work_tallies"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    campaign_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    slot: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    """Since 1970, of `schemas.tallies.SLOT_S` seconds."""
    annotator_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    adapter_digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Empty for none."""
    category_number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    """`schemas.tallies.NO_CATEGORY` for none."""
    shard: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    masks: Mapped[int] = mapped_column(BigInteger)
    clicks: Mapped[int] = mapped_column(BigInteger)
    micros: Mapped[int] = mapped_column(BigInteger)
    """Microseconds from opening to accepting, of those masks that are `timed`."""
    timed: Mapped[int] = mapped_column(BigInteger)


class LatencyTally(Base):
    """Clicks by slots of time and by bins of what computing them took."""

    __tablename__ = "latency_tallies"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012

    campaign_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    slot: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    bin: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    """Index in `schemas.tallies.EDGES_MS`."""
    shard: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    clicks: Mapped[int] = mapped_column(BigInteger)


APPEND_ONLY = {
    "events": (
        "SELECT 1 FROM sessions JOIN purges ON purges.campaign_id = sessions.campaign_id "
        "AND coalesce(purges.image_id, sessions.image_id) = sessions.image_id "
        "WHERE sessions.id = OLD.session_id AND purges.state = 'running'"
    ),
    "masks": (
        "SELECT 1 FROM purges WHERE purges.campaign_id = OLD.campaign_id "
        "AND coalesce(purges.image_id, OLD.image_id) = OLD.image_id AND purges.state = 'running'"
    ),
}
"""Tables whose rows a trigger protects from update, and from delete unless the query finds a running purge."""

for _name, _unless in APPEND_ONLY.items():
    make_append_only(Base.metadata.tables[_name], _unless)
for _name in sources():
    for _dialect in ("sqlite", "postgresql"):
        after_create(Base.metadata.tables[_name], _dialect, triggers(_name, _dialect))
