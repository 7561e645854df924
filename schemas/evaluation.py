"""What an evaluation reports. Keys of thresholds are percents ("90"), keys of click counts whole numbers ("1")."""

from pydantic import BaseModel, ConfigDict, Field


class Protocol(BaseModel):
    """How the figures were made.

    Attributes:
        targets: IoU thresholds of NoC and NoF.
        max_clicks: Cap; objects that never reach a target count with it.
        threshold: Probability above which a pixel is in the mask.
        flip: Whether the mirrored view was averaged in.
        target_size: (h, w) of the network input, None for the model's own.
        stops_at: IoU at which clicking an object ends; later values of mIoU@k keep the last one.
        boundary_dilation_ratio: Width of the boundary band as a share of the image diagonal.
        user: How clicks are placed.
        strata: What the strata mean.
        skipped: Ground truth objects without any pixel that counts; they are left out.
        misleading: Clicks of each sequence that are repeated or have the wrong sign.
        seed: Of those.
    """

    model_config = ConfigDict(frozen=True)

    targets: tuple[float, ...]
    max_clicks: int
    threshold: float
    flip: bool
    target_size: tuple[int, int] | None
    stops_at: float
    boundary_dilation_ratio: float
    user: str = "first click from the empty prediction, next at the centre of the largest error (Euclidean)"
    strata: dict[str, str] = Field(default_factory=dict)
    skipped: int = 0
    misleading: int = 0
    seed: int = 0


class Stratum(BaseModel):
    """Figures of a part of the objects; None where it has none."""

    model_config = ConfigDict(frozen=True)

    samples: int
    noc: dict[str, float | None]
    nof: dict[str, int]


class NocReport(BaseModel):
    """Figures of one model on one data set, by simulated clicks.

    Attributes:
        model: Model id.
        checkpoint_sha256: Of the weights file, None for fresh weights.
        data: Name or path of the data.
        samples: Number of objects.
        noc: Mean number of clicks to reach each target, capped.
        nof: Objects that never reach it.
        at_cap: Objects whose number of clicks equals the cap (the official ">= 20" count).
        miou_at: Mean IoU after k clicks.
        biou_at: Mean boundary IoU after k clicks.
        spoilt: Pixels that were right before a click and wrong after it, as a share of the object; mean over all clicks
            but the first. None where no object took two.
        score_error: Mean of |IoU that the model states - its IoU| over all clicks; None for a model that states none.
        score_bias: Mean of (stated - IoU): above 0 it thinks too well of itself.
        strata: small, thin, large (see `protocol.strata`); an object may be in several.
        spc_ms: Wall milliseconds per click, encoding and click simulation included.
        protocol: How.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    checkpoint_sha256: str | None
    data: str
    samples: int
    noc: dict[str, float | None]
    nof: dict[str, int]
    at_cap: dict[str, int]
    miou_at: dict[str, float | None]
    biou_at: dict[str, float | None]
    spoilt: float | None = None
    score_error: float | None = None
    score_bias: float | None = None
    strata: dict[str, Stratum]
    spc_ms: float | None
    protocol: Protocol


class SampleResult(BaseModel):
    """One object's evaluation.

    Attributes:
        sample_id: Of the sample.
        category: Its category's name.
        ious: After click 1, 2, ...; ends once the largest target was reached.
        bious: Boundary IoUs likewise.
        scores: IoUs that the model states, likewise.
        spoilt: Pixels made wrong by each click that were right before, as a share of the object.
        clicks: (x, y, is_positive) in image pixels.
        seconds: Wall time of all its clicks.
        strata: Names of the strata that it is in.
    """

    model_config = ConfigDict(frozen=True)

    sample_id: str
    category: str | None = None
    ious: tuple[float, ...]
    bious: tuple[float, ...]
    scores: tuple[float, ...] = ()
    spoilt: tuple[float, ...] = ()
    clicks: tuple[tuple[float, float, bool], ...]
    seconds: float
    strata: tuple[str, ...] = ()


class Costs(BaseModel):
    """What a model needs; None where a figure does not exist.

    Attributes:
        parameters: In all.
        learnable: Of the adapter that is laid over it, or all of them.
        encode_gmacs: Multiply-accumulates (1e9) of encoding one image; None for cut "crop".
        refine_gmacs: Of one click (for cut "crop" the crop's encoding included), without flip.
        encode_ms: Median wall milliseconds of encoding one image; None for cut "crop".
        click_ms: Median wall milliseconds of one click on an encoded image.
        peak_mib: Peak memory beyond the interpreter with its libraries, weights included.
        threads: Torch threads.
        device: "cpu" or "cuda".
    """

    model_config = ConfigDict(frozen=True)

    parameters: int
    learnable: int
    encode_gmacs: float | None
    refine_gmacs: float
    encode_ms: float | None
    click_ms: float
    peak_mib: float | None
    threads: int
    device: str


class Comparison(BaseModel):
    """One model (with an adapter) in a comparison.

    Attributes:
        name: As it was asked for.
        weights: "shipped", the file's name, or "random": then its NoC says nothing.
        costs: See `Costs`.
        report: With right clicks.
        misled: With misleading clicks, if asked for.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    weights: str
    costs: Costs
    report: NocReport
    misled: NocReport | None = None
