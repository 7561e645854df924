"""What crosses between the gateway and a refiner: the edits of one instance in, one encoded mask out."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.masks import PackedMask, Rle

EditKind = Literal["open", "click", "box", "brush", "mask_edit", "candidate"]


Window = tuple[float, float]
"""Grey samples of more than 8 bits that become black (0) and white (255)."""


class ImageRef(BaseModel):
    """An image in the catalogue: enough to find, read and check it without the database.

    Attributes:
        sha256: Of the file's bytes, hex; the image key.
        uri: fsspec URL or path of the file.
        width: In pixels after EXIF orientation.
        height: In pixels after EXIF orientation.
        window: Of its campaign; None: see `pipeline.ingest.decode`.
    """

    model_config = ConfigDict(frozen=True)

    sha256: str
    uri: str
    width: int
    height: int
    window: Window | None = None


class Engine(BaseModel):
    """What computed a mask."""

    model_config = ConfigDict(frozen=True)

    runtime: str
    version: str
    dtype: str


class Pins(BaseModel):
    """What an instance's masks are computed with, fixed by its first event.

    Attributes:
        model_digest: sha256 of the model's weights file.
        model_key: Key of the embeddings that it reads (see `pipeline.embeddings.key`).
        adapter_digest: sha256 of the adapter file, None for the bare model.
        embedding_digest: sha256 of the stored embedding's bytes, None until it was first computed.
        engine: What new clicks are computed with; None: float32 on torch (see `schemas.engines`).
    """

    model_config = ConfigDict(frozen=True)

    model_digest: str
    model_key: str
    adapter_digest: str | None = None
    embedding_digest: str | None = None
    engine: Engine | None = None


class Edit(BaseModel):
    """One event of an instance that changes its mask, after undone ones were taken out.

    Attributes:
        kind: Event kind.
        payload: The event's payload as stored (see `schemas.events`).
        payload_sha256: Its hash, used in the digest of the event prefix.
    """

    model_config = ConfigDict(frozen=True)

    kind: EditKind
    payload: dict[str, Any]
    payload_sha256: str


class RefineRequest(BaseModel):
    """A pure question: what is the mask of these edits on this image with these weights?

    Attributes:
        initial_mask: The stored mask that the `open` edit names (its mask_id), None where it names none.
        mask_format: "bits" for the page, "rle" for storage and scripts, "none" for the digest only.
    """

    model_config = ConfigDict(frozen=True)

    image: ImageRef
    pins: Pins
    edits: tuple[Edit, ...]
    initial_mask: Rle | None = None
    mask_format: Literal["bits", "rle", "none"] = "bits"


class MaskReply(BaseModel):
    """The answer.

    Attributes:
        mask_sha256: Digest of the mask's pixels (`pipeline.masks.digest.mask_digest`).
        area: Pixels of the mask.
        box_xywh: Bounding box (x, y, width, height) in pixels, as COCO's `toBbox` gives it.
        bits: Present for mask_format "bits".
        rle: Present for mask_format "rle".
        roi: (y0, x0, y1, x1) in image pixels, half-open: where the last prediction looked; None before one.
        scores: Estimated quality of each candidate in [0, 1].
        candidate: Index of the chosen candidate.
        embedding_digest: sha256 of the embedding that was used (None for cut "crop").
        engine: What computed it.
        latency_ms: Milliseconds by stage (fetch, model, post, encode, ...).
        cache: How warm it was: "memo" (the state was known), the embedding was in "memory" or in the "store", or it had
            to be "encoded" first.
        steps: Edits that had to be applied: 0 for a known state, 1 for a click on a warm refiner.
    """

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    mask_sha256: str
    area: int
    box_xywh: tuple[int, int, int, int]
    bits: PackedMask | None = None
    rle: Rle | None = None
    roi: tuple[int, int, int, int] | None = None
    scores: tuple[float, ...] = ()
    candidate: int = 0
    embedding_digest: str | None = None
    engine: Engine
    latency_ms: dict[str, float] = Field(default_factory=dict)
    cache: Literal["memo", "memory", "store", "encoded"] = "memory"
    steps: int = 0


class Encoded(BaseModel):
    """An embedding that stands in the store.

    Attributes:
        sha256: Image key.
        digest: sha256 of the stored bytes.
        size: Of the stored bytes.
        is_new: False when it was there already.
    """

    model_config = ConfigDict(frozen=True)

    sha256: str
    digest: str
    size: int
    is_new: bool = True


class EncodeFailure(BaseModel):
    """Why an image of a chunk has no embedding, or no prelabels.

    Attributes:
        sha256: Image key.
        code: Of the error (see `schemas.errors`), or "error".
        reason: For people.
        is_image_fault: True when the image is to blame (count an attempt); False when the store is (pause, try later).
    """

    model_config = ConfigDict(frozen=True)

    sha256: str
    code: str
    reason: str
    is_image_fault: bool


class Prelabel(BaseModel):
    """A mask that a model found by itself, with one click.

    Attributes:
        rle: At the image's size.
        mask_sha256: Digest of its pixels.
        area: Pixels.
        box_xywh: (x, y, width, height) in pixels.
        score: The model's estimate of the mask's quality, in [0, 1].
        stability: IoU of the mask at a lower and at a higher probability, in [0, 1].
        click: (x, y) in image pixels.
    """

    model_config = ConfigDict(frozen=True)

    rle: Rle
    mask_sha256: str
    area: int
    box_xywh: tuple[int, int, int, int]
    score: float
    stability: float
    click: tuple[float, float]


class Prelabels(BaseModel):
    """What a model found on an image (see `pipeline.prelabels`).

    Attributes:
        sha256: Image key.
        masks: By falling score.
        uncertainty: In [0, 1]: how little the model trusts its first clicks; 0 where none was made.
        feature: Mean-pooled encoding; empty for cut "crop".
        is_new: False when it was computed before.
    """

    model_config = ConfigDict(frozen=True)

    sha256: str
    masks: tuple[Prelabel, ...] = ()
    uncertainty: float = 0.0
    feature: tuple[float, ...] = ()
    is_new: bool = True
