"""What a request of each kind may say: checked before its flow runs, whoever inserted it."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from schemas.campaigns import CampaignName, CampaignSettings, TaskState
from schemas.errors import BadInputError, first_problem
from schemas.logs import without_password
from schemas.models import checked_model_id

Step = Literal["ingest", "precompute", "retrain", "export"]
Format = Literal["coco", "parquet", "png", "lvis", "yolo-seg", "hf"]
FORMATS: tuple[Format, ...] = get_args(Format)
ImportFormat = Literal["coco", "coco-results", "label-studio", "cvat", "yolo-seg", "label-map", "instance-map"]
IMPORT_FORMATS: tuple[ImportFormat, ...] = get_args(ImportFormat)
AdapterKind = Literal["head", "affine", "lora", "clickadapter", "full"]
OrderBy = Literal["uncertainty", "diversity", "gain", "mixed", "plain"]
Place = Annotated[str, AfterValidator(without_password)]
ADAPTER_KINDS: tuple[AdapterKind, ...] = get_args(AdapterKind)
MAX_GRID = 32
"""Clicks per side of a prelabel pass."""
DEFAULT_MIN_SCORE = 0.5


class _Payload(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Ingest(_Payload):
    """`images`: another source than the campaign's own. `readmit`: take images again that were purged."""

    images: Place | None = None
    readmit: bool = False


class Import(_Payload):
    """Masks at `source`; `format` None: by what is there. `look`: only count. Not `trusted`: they are proposals.

    `min_score`: leave out what COCO's results score lower.
    """

    source: Place
    format: ImportFormat | None = None
    category: str = Field(default="object", min_length=1, max_length=200)
    min_score: float | None = Field(default=None, ge=0, le=1)
    trusted: bool = False
    look: bool = False


class Propose(_Payload):
    """Says nothing."""


class Precompute(_Payload):
    """Says nothing."""


class Prelabel(_Payload):
    """A `grid` x `grid` of clicks; masks below `min_score` are dropped; at most `limit` images that were not tried."""

    grid: int = Field(default=8, ge=1, le=MAX_GRID)
    min_score: float = Field(default=DEFAULT_MIN_SCORE, ge=0, le=1)
    limit: int | None = Field(default=None, ge=1)


class Order(_Payload):
    """`by` which score the new tasks are handed out; `seed` of whatever is drawn."""

    by: OrderBy
    seed: int = Field(default=0, ge=0, le=2**32 - 1)


class Retrain(_Payload):
    """`adapter` None: by the model and the number of masks. `minutes` and `steps` bound the training."""

    adapter: AdapterKind | None = None
    promote: Literal["auto", "never"] = "auto"
    minutes: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)


class Export(_Payload):
    """`to` None: below the campaign's folder in the storage.

    Only what fits all of them: masks of `categories` (names), accepted from `since` on and before `until`, by
    `annotators` (names or pseudonyms), on images whose task is in one of `states`; with `sure` none that an annotator
    flagged as unsure, with `min_score` none whose model states a lower IoU. `val` and `test` are the shares of the
    images that these parts get. `images` "uri": image files are named instead of copied. `since_snapshot` (number or
    id): only what changed since.
    """

    to: Place | None = None
    formats: list[Format] = Field(default=["coco", "parquet"], min_length=1)
    categories: list[str] | None = Field(default=None, min_length=1)
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    annotators: list[str] | None = Field(default=None, min_length=1)
    states: list[TaskState] | None = Field(default=None, min_length=1)
    sure: Literal[True] | None = None
    min_score: float | None = Field(default=None, ge=0, le=1)
    val: float = Field(default=0.0, ge=0, lt=1)
    test: float = Field(default=0.0, ge=0, lt=1)
    images: Literal["embedded", "uri"] = "embedded"
    since_snapshot: str | None = None

    @model_validator(mode="after")
    def _something_is_left(self) -> "Export":
        if self.val + self.test >= 1:
            raise ValueError(f"val {self.val} and test {self.test} together leave nothing to train on")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError(f"since {self.since.isoformat()} is not before until {self.until.isoformat()}")
        return self


class Create(_Payload):
    """A new campaign; see `pipeline.campaigns.CampaignSpec`."""

    id: str
    name: CampaignName
    images: Place
    labels: list[str] = []
    annotations: Place | None = None
    model: str = "default"
    checkpoint: Place | None = None
    settings: CampaignSettings = CampaignSettings()


class Campaign(_Payload):
    """`create` makes the campaign first; `steps` None: all, or only ingest for a new one."""

    create: Create | None = None
    steps: list[Step] | None = None


PAYLOADS: dict[str, type[_Payload]] = {
    "ingest": Ingest,
    "import": Import,
    "propose": Propose,
    "precompute": Precompute,
    "prelabel": Prelabel,
    "order": Order,
    "retrain": Retrain,
    "export": Export,
    "campaign": Campaign,
}


def checked(kind: str, payload: dict[str, Any]) -> dict[str, Any]:
    """A request's payload with its defaults, as the flow's arguments.

    Raises:
        BadInputError: Unknown kind, or the payload says what the kind does not know.
        NotFoundError: A new campaign's model is unknown, or has no weights.
    """
    if kind not in PAYLOADS:
        raise BadInputError(f"Unknown kind of request {kind!r}. Known: {', '.join(PAYLOADS)}.")
    try:
        request = PAYLOADS[kind].model_validate(payload)
    except ValidationError as error:
        problems = error.errors()
        got = f" (got {problems[0].get('input')!r})" if problems[0]["loc"] else ""
        raise BadInputError(f"{kind}: {first_problem(problems, 'options')}{got}."[:500]) from error
    if isinstance(request, Campaign) and request.create is not None:
        checked_model_id(request.create.model, request.create.checkpoint is not None)
    return request.model_dump(mode="json")
