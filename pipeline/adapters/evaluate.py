"""How good an adapter is on held-out objects: simulated clicks to the target IoU, kept promises, recorded clicks.

Everything runs on the live path with cached encodings, so it measures what would be served (threshold 0.5, no flip).
A record's truth is the mask that somebody accepted, often under the live model, so replaying recorded clicks favours
the live model by construction: those figures are reported, the gate does not look at them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.adapters.gate import ObjectResult
from pipeline.adapters.monotone import keeps_promise, probe_clicks
from pipeline.adapters.scenes import AdapterImage, AdapterTarget, Scene, SceneSource, Turn
from pipeline.adapters.threads import map_in_threads
from pipeline.adapters.validation import click_edit
from pipeline.clicks.simulate import next_click
from pipeline.evaluation.metrics import clicks_to_reach, iou, mean_at, noc, nof
from pipeline.inference.instance import apply_edit, final_mask, start
from pipeline.models._base import InteractiveModel


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How held-out objects are clicked on.

    Attributes:
        target_iou: Where the robot user stops.
        max_clicks: Its patience, and the NoC of an object that never gets there.
        max_masks: At most so many objects, spread evenly over the images.
        replay: Replay recorded clicks, too.
    """

    target_iou: float = 0.90
    max_clicks: int = 20
    max_masks: int = 200
    replay: bool = True


@dataclass(frozen=True)
class RecordedCurve:
    """IoU with the accepted mask after each recorded click, and after all edits."""

    mask_id: str
    ious: tuple[float, ...]
    final_iou: float


@dataclass(frozen=True)
class AdapterReport:
    """One adapter on the held-out objects.

    Attributes:
        objects: For the gate, in a fixed order.
        curves: IoU after each simulated click, per object, in that order.
        recorded: Of objects that have recorded clicks.
        config: How it was measured.
    """

    objects: tuple[ObjectResult, ...]
    curves: tuple[tuple[float, ...], ...]
    recorded: tuple[RecordedCurve, ...]
    config: EvaluationConfig

    def summary(self) -> dict[str, Any]:
        """JSON-serialisable means: NoC and NoF at 85 and 90, mean IoU by click, recorded clicks, monotonicity."""
        cap = self.config.max_clicks
        targets = {"85": 0.85, "90": 0.90}
        shown = sorted({min(k, cap) for k in (1, 2, 3, 5, cap)})
        clicks = sum(o.clicks for o in self.objects)
        first = [r.ious[0] for r in self.recorded if r.ious]
        return {
            "objects": len(self.objects),
            "noc": {name: noc(self.curves, target, cap) for name, target in targets.items() if self.curves},
            "nof": {name: nof(self.curves, target, cap) for name, target in targets.items()},
            "miou_at": {str(k): mean_at(self.curves, k) for k in shown if any(self.curves)},
            "monotone": {"clicks": clicks, "violations": sum(o.violations for o in self.objects)},
            "recorded": {
                "objects": len(self.recorded),
                "first_click_iou": float(np.mean(first)) if first else None,
                "miou": float(np.mean([i for r in self.recorded for i in r.ious])) if first else None,
                "final_iou": float(np.mean([r.final_iou for r in self.recorded])) if self.recorded else None,
            },
            "protocol": asdict(self.config) | {"threshold": 0.5, "flip": False, "path": "live"},
        }


@dataclass(frozen=True)
class _Clicked:
    """What came of one object."""

    result: ObjectResult
    curve: tuple[float, ...]
    recorded: RecordedCurve | None


def evaluate_adapter(
    model: InteractiveModel,
    images: Sequence[AdapterImage],
    source: SceneSource,
    config: EvaluationConfig,
    progress: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    turn: Turn = nullcontext,
) -> AdapterReport | None:
    """Click every held-out object to the target, probe its promises, replay its record.

    Args:
        model: With the adapter laid over it.
        images: Held-out images; the same list and order for every adapter that is compared.
        source: Brings scenes.
        config: How.
        progress: Told {"object", "objects"}.
        should_stop: Asked between objects.
        turn: Entered around each click, where heavy work takes turns.

    Returns:
        The report, None when told to stop.
    """
    chosen = choose_objects(images, config.max_masks)

    def click(found: tuple[AdapterImage, AdapterTarget, Scene]) -> _Clicked:
        image, target, scene = found
        truth = scene.target_mask(target)
        curve, clicks, violations = _click_object(model, scene, truth, config, turn)
        needed = clicks_to_reach(curve, config.target_iou, config.max_clicks)
        result = ObjectResult(target.mask_id, image.group, target.category, needed, clicks, violations)
        is_replayed = config.replay and _replayable(target)
        recorded = replay_recorded(model, scene, target, truth, turn) if is_replayed else None
        return _Clicked(result, tuple(curve), recorded)

    def scenes() -> Iterator[tuple[AdapterImage, AdapterTarget, Scene]]:
        for image, target in chosen:
            if should_stop is not None and should_stop():
                return
            yield image, target, source.scene(image)

    done: list[_Clicked] = []
    for clicked in map_in_threads(click, scenes()):
        done.append(clicked)
        if progress is not None:
            progress({"object": len(done), "objects": len(chosen)})
    if len(done) < len(chosen):
        return None
    return AdapterReport(
        tuple(own.result for own in done),
        tuple(own.curve for own in done),
        tuple(own.recorded for own in done if own.recorded is not None),
        config,
    )


def choose_objects(images: Sequence[AdapterImage], max_masks: int) -> list[tuple[AdapterImage, AdapterTarget]]:
    """At most so many objects: the first of each image, then the second of each, ...; grouped by image at the end."""
    most = max((len(image.targets) for image in images), default=0)
    order = [(rank, number) for rank in range(most) for number, i in enumerate(images) if rank < len(i.targets)]
    kept = sorted((number, rank) for rank, number in order[:max_masks])
    return [(images[number], images[number].targets[rank]) for number, rank in kept]


def replay_recorded(
    model: InteractiveModel, scene: Scene, target: AdapterTarget, truth: NDArray[np.bool_], turn: Turn = nullcontext
) -> RecordedCurve:
    """What this model makes of the clicks (and boxes, strokes, ...) that somebody made on an object."""
    state = start(scene.image)
    ious: list[float] = []
    for edit in target.edits:
        with turn():
            state = apply_edit(model, scene.image, scene.encoding, state, edit)
            if edit.kind == "click":
                ious.append(iou(truth, final_mask(state, scene.size)))
    return RecordedCurve(target.mask_id, tuple(ious), iou(truth, final_mask(state, scene.size)))


def _click_object(
    model: InteractiveModel, scene: Scene, truth: NDArray[np.bool_], config: EvaluationConfig, turn: Turn
) -> tuple[list[float], int, int]:
    """The robot user on one object: IoU after each click, clicks checked for monotonicity, broken promises."""
    state, mask = start(scene.image), np.zeros(scene.size, np.bool_)
    clicked = np.zeros(scene.size, np.bool_)
    curve: list[float] = []
    checks: list[bool] = []
    while len(curve) < config.max_clicks and not (curve and curve[-1] >= config.target_iou):
        with turn():
            click = next_click(truth, mask, clicked)
            if click is None:
                break
            clicked[int(click.y), int(click.x)] = True
            before = state
            state = apply_edit(model, scene.image, scene.encoding, before, click_edit(click))
            checks += keeps_promise(model, scene.size, before, state, click)
            mask = final_mask(state, scene.size)
        curve.append(iou(truth, mask))
    for click in probe_clicks(truth, mask):
        with turn():
            after = apply_edit(model, scene.image, scene.encoding, state, click_edit(click))
            checks += keeps_promise(model, scene.size, state, after, click)
    return curve, len(checks), checks.count(False)


def _replayable(target: AdapterTarget) -> bool:
    """Whether it was clicked and its edits start from nothing: the mask it was opened from would be needed as well."""
    return any(e.kind == "click" for e in target.edits) and not any(e.payload.get("mask_id") for e in target.edits)
