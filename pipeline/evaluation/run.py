"""Evaluate a model over a data set with the robot user, and sum it up as a report."""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.clicks.misleading import Missteps, draw_missteps
from pipeline.clicks.simulate import PREDICTION_THRESHOLD
from pipeline.evaluation import metrics
from pipeline.evaluation.kept import KeptResults
from pipeline.evaluation.robot import BOUNDARY_DILATION_RATIO, evaluate_sample
from pipeline.inference.predictor import Predictor
from pipeline.models._base import InteractiveModel
from schemas import evaluation as records
from schemas.errors import BadInputError

logger = logging.getLogger(__name__)

STRATA = {
    "small": "fewer than 32x32 pixels",
    "thin": "at least 8 times the area of the square as wide as its widest place",
    "large": "more than half of the image",
}
Progress = Callable[[dict[str, Any]], None]


class Sample(Protocol):
    """One object of a data set."""

    @property
    def sample_id(self) -> str:
        """Unique in the data set."""

    @property
    def category(self) -> str | None:
        """Category name, if it has one."""

    def read_image(self) -> NDArray[np.uint8]:
        """HWC uint8 RGB."""

    def read_gt(self) -> NDArray[np.int8]:
        """(H, W): 1 object, 0 background, -1 doesn't count."""


def evaluate(
    model: InteractiveModel,
    samples: Iterable[Sample],
    targets: Sequence[float] = (0.85, 0.90),
    max_clicks: int = metrics.MAX_CLICKS,
    flip: bool = True,
    limit: int | None = None,
    target_size: tuple[int, int] | None = None,
    checkpoint_sha256: str | None = None,
    data: str = "",
    progress: Progress | None = None,
    misleading: int = 0,
    seed: int = 0,
    keep: Path | None = None,
    identity: str = "",
) -> records.NocReport:
    """Report the papers' figures of a model.

    Args:
        model: Any model.
        samples: The objects; read one at a time.
        targets: IoU thresholds in (0, 1]; an object is clicked until the largest.
        max_clicks: Cap per object.
        flip: Average with the mirrored view (the papers' evaluation; serving does not).
        limit: Stop after that many objects.
        target_size: (h, w) of the network input, None for the model's own.
        checkpoint_sha256: Of the weights, for the report.
        data: Name of the data, for the report.
        progress: Called after every object with {"step", "done", "noc..."}.
        misleading: So many clicks of each sequence are repeated or have the wrong sign (FDRN's Table 3 takes 5).
        seed: Of those.
        keep: File that gets each object's result at once; objects that it has already, evaluated likewise, are not
            clicked again.
        identity: What else results depend on, such as an adapter or the state of the data: decides what `keep` knows.

    Raises:
        BadInputError: There is no object to evaluate, or a target or the cap is out of range.
    """
    if not targets or not all(0 < target <= 1 for target in targets) or max_clicks < 1:
        raise BadInputError(f"Targets {tuple(targets)} must lie in (0, 1] and max_clicks {max_clicks} be at least 1.")
    protocol = records.Protocol(
        targets=tuple(sorted(targets)), max_clicks=max_clicks, threshold=PREDICTION_THRESHOLD, flip=flip,
        target_size=target_size, stops_at=max(targets), boundary_dilation_ratio=BOUNDARY_DILATION_RATIO, strata=STRATA,
        misleading=misleading, seed=seed,
    )  # fmt: skip
    settings = protocol.model_dump(mode="json") | {
        "model": model.model_id, "checkpoint": checkpoint_sha256, "data": data, "identity": identity
    }  # fmt: skip
    kept = KeptResults(keep, settings) if keep else None
    predictor = Predictor(model, flip=flip, target_size=target_size)
    results: list[records.SampleResult] = []
    taken = 0
    for taken, sample in enumerate(itertools.islice(samples, limit), start=1):
        result = kept.get(sample.sample_id) if kept else None
        if result is None:
            missteps = draw_missteps(sample.sample_id, seed, misleading, max_clicks) if misleading else None
            result = evaluate_one(predictor, sample, max(targets), max_clicks, missteps, seed)
            if result is None:
                continue
            if kept:
                kept.add(result)
        results.append(result)
        if progress:
            running = metrics.noc([r.ious for r in results], max(targets), max_clicks)
            progress({"step": "evaluate", "done": taken, f"noc{_percent(max(targets))}": running})
    if not results:
        raise BadInputError("There is no object to evaluate: the data hold none with a pixel that counts.")
    protocol = protocol.model_copy(update={"skipped": taken - len(results)})
    return summarise(results, protocol, model=model.model_id, checkpoint_sha256=checkpoint_sha256, data=data)


def evaluate_one(
    predictor: Predictor,
    sample: Sample,
    target: float,
    max_clicks: int = metrics.MAX_CLICKS,
    missteps: Missteps | None = None,
    seed: int = 0,
) -> records.SampleResult | None:
    """Let the robot click one object; None if it has no pixel that counts."""
    gt = sample.read_gt()
    if not (gt == 1).any():
        logger.warning("sample %s has no pixel that counts and is left out", sample.sample_id)
        return None
    curve = evaluate_sample(
        predictor, sample.read_image(), gt, target, max_clicks, missteps=missteps, sample_id=sample.sample_id, seed=seed
    )
    return records.SampleResult(
        sample_id=sample.sample_id, category=sample.category, ious=curve.ious, bious=curve.bious,
        scores=curve.scores, spoilt=curve.spoilt,
        clicks=tuple((c.x, c.y, c.is_positive) for c in curve.clicks), seconds=curve.seconds, strata=tuple(strata(gt)),
    )  # fmt: skip


def summarise(
    results: Sequence[records.SampleResult],
    protocol: records.Protocol,
    *,
    model: str,
    checkpoint_sha256: str | None,
    data: str,
) -> records.NocReport:
    """Sum up what the objects gave."""
    curves = [r.ious for r in results]
    steps = range(1, protocol.max_clicks + 1)
    stated = [pair for r in results for pair in zip(r.scores, r.ious, strict=False)]
    if all(score == 1 for score, _ in stated):  # of models without a score
        stated = []
    spc = metrics.seconds_per_click([r.seconds for r in results], [len(r.ious) for r in results])
    return records.NocReport(
        model=model,
        checkpoint_sha256=checkpoint_sha256,
        data=data,
        samples=len(results),
        noc=_nocs(curves, protocol),
        nof=_nofs(curves, protocol),
        at_cap={_percent(t): metrics.at_cap(curves, t, protocol.max_clicks) for t in protocol.targets},
        miou_at={str(k): _finite(metrics.mean_at(curves, k)) for k in steps},
        biou_at={str(k): _finite(metrics.mean_at([r.bious for r in results], k)) for k in steps},
        spoilt=_mean([share for r in results for share in r.spoilt[1:]]),
        score_error=_mean([abs(score - own) for score, own in stated]),
        score_bias=_mean([score - own for score, own in stated]),
        strata={name: _stratum([r.ious for r in results if name in r.strata], protocol) for name in STRATA},
        spc_ms=_finite(1000 * spc),
        protocol=protocol,
    )


def strata(gt: NDArray[np.int8]) -> Iterator[str]:
    """Names of the strata that an object belongs to (definitions in `STRATA`).

    Args:
        gt: (H, W): 1 object, 0 background, -1 doesn't count.
    """
    inside = (gt == 1).astype(np.uint8)
    area = int(inside.sum())
    if area < 32 * 32:
        yield "small"
    widest = 2 * float(cv2.distanceTransform(np.pad(inside, 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE).max()) - 1
    if area >= 8 * widest**2:
        yield "thin"
    if area > inside.size / 2:
        yield "large"


def _stratum(curves: Sequence[Sequence[float]], protocol: records.Protocol) -> records.Stratum:
    return records.Stratum(samples=len(curves), noc=_nocs(curves, protocol), nof=_nofs(curves, protocol))


def _nocs(curves: Sequence[Sequence[float]], protocol: records.Protocol) -> dict[str, float | None]:
    return {_percent(t): _finite(metrics.noc(curves, t, protocol.max_clicks)) for t in protocol.targets}


def _nofs(curves: Sequence[Sequence[float]], protocol: records.Protocol) -> dict[str, int]:
    return {_percent(t): metrics.nof(curves, t, protocol.max_clicks) for t in protocol.targets}


def _percent(target: float) -> str:
    return f"{100 * target:g}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
