"""The gate: may a candidate adapter replace the live one? Decides from figures alone.

Knows clicks per held-out object, categories and broken promises of single clicks; knows no model, image or database.
It errs on the side of the live adapter: whatever is not shown clearly is not promoted.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """What the gate asks for.

    Attributes:
        margin: Clicks that the candidate must save per object on average, in NoC@90.
        min_masks: Held-out masks below which nothing is promoted.
        min_groups: Held-out images (near-duplicates count as one) below which nothing is promoted: an interval over
            fewer says nothing.
        min_category_masks: Held-out masks, on `min_groups` images, from which a category is judged by itself.
        confidence: Of the bootstrap intervals, in (0, 1).
        num_resamples: Bootstrap resamples.
        max_violation_share: Share of clicks whose promise the candidate may break (or the live one's share, where that
            is larger: the candidate is not blamed for what it inherited).
        seed: Of the resampling.
    """

    margin: float = 0.05
    min_masks: int = 30
    min_groups: int = 6
    min_category_masks: int = 10
    confidence: float = 0.95
    num_resamples: int = 4000
    max_violation_share: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class ObjectResult:
    """How one held-out object went with one adapter.

    Attributes:
        mask_id: The object.
        group: What was drawn into the hold-out together (an image or its near-duplicates): resampled as a whole.
        category: Category number, None without one.
        noc: Clicks to the target IoU, the cap where it was never reached.
        clicks: Clicks checked for monotonicity.
        violations: Of those, the ones that moved the mask the wrong way at their point.
    """

    mask_id: str
    group: str
    category: int | None
    noc: float
    clicks: int = 0
    violations: int = 0


@dataclass(frozen=True)
class Improvement:
    """Clicks saved per object: the mean and its interval. Positive is better."""

    masks: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class GateDecision:
    """The outcome, with every figure that led to it.

    Attributes:
        promote: Whether the candidate may go live.
        reasons: Why not; empty when it may.
        figures: JSON-serialisable.
    """

    promote: bool
    reasons: tuple[str, ...]
    figures: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For the catalogue."""
        return asdict(self) | {"reasons": list(self.reasons)}


def paired_bootstrap(
    saved: NDArray[np.float64], groups: Sequence[str], config: GateConfig, rng: np.random.Generator
) -> Improvement:
    """Mean of paired differences with an expanded percentile interval, resampling whole groups.

    Objects of one image are not independent, so images are drawn with replacement and bring all their objects. The
    percentiles lie further out the fewer groups there are: plain ones are too narrow then.

    Args:
        saved: Clicks saved per object, shape (N,), N >= 1.
        groups: N group names.
        config: Confidence and number of resamples.
        rng: Source of chance.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, sections 8 and 13 (percentile interval);
    Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69, 2015 (expanded).
    """
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(index, weights=saved), np.bincount(index).astype(float)
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=config.num_resamples)
    means = (drawn @ sums) / (drawn @ counts)
    tail, count = (1 - config.confidence) / 2, len(sums)
    if count > 1:  # Student's quantile, as a share of the normal distribution
        tail = float(ndtr(stdtrit(count - 1, tail) * (count / (count - 1)) ** 0.5))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Improvement(len(saved), float(saved.mean()), float(low), float(high))


def decide(live: Sequence[ObjectResult], candidate: Sequence[ObjectResult], config: GateConfig) -> GateDecision:
    """Compare two adapters on the same held-out objects.

    Promoted only if all hold: enough masks; mean NoC better by the margin; the interval of the improvement above zero;
    no category with enough masks on enough images worse by more than its interval; clicks keep their promises.

    Args:
        live: Results of what is live now.
        candidate: Results of the candidate, for the same masks in any order.
        config: See `GateConfig`.

    Raises:
        ValueError: The two do not cover the same masks, or a mask comes twice.
    """
    by_id = {result.mask_id: result for result in candidate}
    if {r.mask_id for r in live} != set(by_id) or len(by_id) != len(candidate) or len(live) != len(candidate):
        raise ValueError("The gate compares two adapters on the same masks: evaluate both on the same list.")
    groups = [r.group for r in live]
    figures: dict[str, Any] = {"config": asdict(config), "masks": len(live), "groups": len(set(groups))}
    if len(live) < config.min_masks or len(set(groups)) < config.min_groups:
        reason = (
            f"not enough data, not promoted: {len(live)} held-out masks on {len(set(groups))} images,"
            f" {config.min_masks} on {config.min_groups} are needed"
        )
        return GateDecision(False, (reason,), figures)

    rng = np.random.default_rng(config.seed)
    live_noc = np.array([r.noc for r in live], float)
    candidate_noc = np.array([by_id[r.mask_id].noc for r in live], float)
    overall = paired_bootstrap(live_noc - candidate_noc, groups, config, rng)
    figures |= {
        "live_noc": float(live_noc.mean()),
        "candidate_noc": float(candidate_noc.mean()),
        "improvement": asdict(overall),
    }
    reasons = _judge_overall(overall, config)

    figures["categories"] = {}
    for category in sorted({r.category for r in live if r.category is not None}):
        chosen = np.array([r.category == category for r in live])
        own_groups = [group for group, is_own in zip(groups, chosen, strict=True) if is_own]
        if chosen.sum() < config.min_category_masks or len(set(own_groups)) < config.min_groups:
            continue
        part = paired_bootstrap((live_noc - candidate_noc)[chosen], own_groups, config, rng)
        figures["categories"][str(category)] = asdict(part)
        if part.high < 0:
            reasons.append(
                f"category {category} got worse: {-part.mean:.2f} more clicks per object (at least {-part.high:.2f})"
            )

    live_share, share = _violation_share(live), _violation_share(candidate)
    figures |= {"live_violation_share": live_share, "candidate_violation_share": share}
    if share > max(config.max_violation_share, live_share):
        reasons.append(
            f"clicks are not monotone: {share:.1%} of them move the mask the wrong way at their point"
            f" (allowed {config.max_violation_share:.1%}, live {live_share:.1%})"
        )
    return GateDecision(not reasons, tuple(reasons), figures)


def _judge_overall(overall: Improvement, config: GateConfig) -> list[str]:
    reasons = []
    if not overall.mean >= config.margin:
        reasons.append(f"NoC@90 improved by {overall.mean:.2f} clicks, less than the margin of {config.margin:.2f}")
    if not overall.low > 0:
        reasons.append(
            f"the {config.confidence:.0%} interval of the improvement [{overall.low:.2f}, {overall.high:.2f}]"
            " is not above zero"
        )
    return reasons


def _violation_share(results: Sequence[ObjectResult]) -> float:
    clicks = sum(r.clicks for r in results)
    return sum(r.violations for r in results) / clicks if clicks else 0.0
