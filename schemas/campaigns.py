"""Campaign records that cross HTTP and processes."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, field_validator

from schemas.predictions import ImageRef, Window

TaskState = Literal["new", "leased", "submitted", "skipped", "done"]
"""Of an image in the queue. new to leased: an annotator claims; leased to new: released, to leased: claimed by another
after expiry, to submitted or skipped: by the holder; submitted to done: by the server once its masks are complete;
skipped, done and submitted to leased: opened again for correction; skipped to new: handed out again."""


def is_name(text: str) -> bool:
    """Whether people can call something by it: 1 to 200 printable characters, not all of them blanks."""
    return bool(text.strip()) and len(text) <= 200 and text.isprintable()


def checked_campaign_name(name: str) -> str:
    """A campaign's name as it is. It stands in URLs, from which clients take the segments "." and ".." away.

    Raises:
        ValueError: It cannot be a name.
    """
    if not is_name(name):
        raise ValueError("A campaign name has 1 to 200 printable characters")
    if "/" in name or name in (".", ".."):
        raise ValueError("A campaign's name is part of URLs and holds no '/', nor is it '.' or '..'")
    return name


CampaignName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(checked_campaign_name)]


class CampaignSettings(BaseModel):
    """What a campaign's owner may choose.

    Attributes:
        holdout_fraction: Share of images (by content hash) kept for evaluation; annotators label them, training never
            sees them.
        lease_s: Seconds that a claim lasts without an event; None: the server's default.
        retrain_every_masks: Retrain when so many masks were accepted since the last one; 0: never by count.
        retrain_every_s: Retrain when so many seconds passed and there are new masks; 0: never by time.
        seed: Of every random choice made for the campaign.
        window: Grey samples of more than 8 bits that become black (0) and white (255), the first below the second;
            None: each file by itself. Part of the key of embeddings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    holdout_fraction: float = Field(default=0.2, ge=0.0, le=0.9)
    lease_s: float | None = Field(default=None, gt=0, le=30 * 86_400)
    retrain_every_masks: int = Field(default=0, ge=0, le=10**9)
    retrain_every_s: float = Field(default=0.0, ge=0, le=10**9)
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    window: tuple[FiniteFloat, FiniteFloat] | None = None

    @field_validator("window")
    @classmethod
    def _rises(cls, window: Window | None) -> Window | None:
        if window is not None and window[0] >= window[1]:
            raise ValueError("its first sample must be below its second")
        return window


class CategoryRecord(BaseModel):
    """A category: `number` is the COCO category id."""

    number: int
    name: str


class CampaignRecord(BaseModel):
    """A campaign as every part sees it."""

    id: str
    name: str
    state: str
    source_url: str
    model_id: str
    model_digest: str
    model_key: str
    live_adapter: str | None
    live_version: int
    settings: CampaignSettings
    categories: list[CategoryRecord]
    created_at: datetime


class ImageRecord(BaseModel):
    """An image of a campaign."""

    id: str
    campaign_id: str
    number: int
    uri: str
    file_name: str
    sha256: str
    width: int
    height: int
    holdout: bool
    window: Window | None = None
    quarantine_reason: str | None = None

    @property
    def ref(self) -> ImageRef:
        """What actors need to read it."""
        return ImageRef(sha256=self.sha256, uri=self.uri, width=self.width, height=self.height, window=self.window)


class Claim(BaseModel):
    """A task given to an annotator.

    Attributes:
        lease_no: Fencing token: every event carries it.
        epoch: Session epoch: every event carries it.
        last_seq: Newest event of the session, 0 at first.
        look_ahead: Images that will probably come next, to be warmed.
    """

    task_id: str
    campaign_id: str
    session_id: str
    lease_no: int
    epoch: int
    last_seq: int
    lease_s: float
    image: ImageRecord
    look_ahead: list[ImageRecord] = []


class SessionRecord(BaseModel):
    """A session's row."""

    id: str
    campaign_id: str
    task_id: str
    image_id: str
    annotator_id: str
    lease_no: int
    epoch: int
    last_seq: int
    state: str


class OpenSession(BaseModel):
    """A session that its annotator can go on with."""

    id: str
    campaign_id: str
    campaign: str
    image_number: int
    file_name: str


class RequestRecord(BaseModel):
    """A long job."""

    id: str
    kind: str
    payload: dict[str, Any]
    campaign_id: str | None
    state: str
    progress: dict[str, Any]
    result: dict[str, Any] | None
    error: str | None
    attempt: int
    cancel: bool
    created_at: datetime
    updated_at: datetime


class AnnotatorRecord(BaseModel):
    """Who acts, and with which rights."""

    id: str
    name: str
    scopes: frozenset[str]


SCOPES = ("label", "review", "train", "export", "admin")


class CampaignStatus(BaseModel):
    """The figures of `campaign status`.

    `masks` of annotators count; `imported` ones count as they came; `proposals` wait to be accepted.
    """

    campaign: CampaignRecord
    images: int
    holdout_images: int
    duplicates: int
    quarantined: list[dict[str, str]]
    tasks: dict[str, int]
    embeddings: int
    masks: int
    imported: int
    proposals: int
    masks_by_category: dict[str, int]
    clicks: int
    clicks_per_mask: float | None
    adapters: list[dict[str, Any]]
    requests: list[RequestRecord]
