"""Train an adapter on accepted masks: frozen model, cached encodings, recorded and simulated clicks.

Every draw is a function of (seed, step), so that a run killed and resumed from its checkpoint ends where an
uninterrupted one does. Batch norms stay frozen (RECIPE: adapters). Knows no database, no actor and no gate.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.adapters.kinds import adapted, adapter_tensors, student_of
from pipeline.adapters.replay import DrawnScenes
from pipeline.adapters.scenes import AdapterImage, SceneSource, Turn
from pipeline.adapters.steps import AdapterConfig, Material, optimize_step
from pipeline.adapters.validation import mean_iou, split_images
from pipeline.inference.engines import training_engine, with_engine
from pipeline.memory import keep_freed_memory
from pipeline.models._base import InteractiveModel
from pipeline.training.checkpoint import load_state, save_state
from schemas.errors import BadCheckpointError, BadInputError


@dataclass(frozen=True)
class AdapterResult:
    """What training gave.

    Attributes:
        tensors: The adapter: the averaged weights of the best validation (of the last step where nothing validates).
        steps: Optimiser steps made.
        best_step: The step that `tensors` are from.
        seconds: Of training, resumed runs included.
        live_iou: Mean IoU over clicks of the live model on the validation objects, None without any.
        best_iou: The same for `tensors`.
        history: One row per validation.
        finished: False when it was told to stop; the checkpoint then holds where.
    """

    tensors: dict[str, Tensor]
    steps: int
    best_step: int
    seconds: float
    live_iou: float | None
    best_iou: float | None
    history: list[dict[str, float]]
    finished: bool

    def metrics(self) -> dict[str, Any]:
        """JSON-serialisable figures."""
        return {name: value for name, value in vars(self).items() if name != "tensors"}


@dataclass
class _Run:
    """The mutable part of training: all that a checkpoint holds."""

    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[str, Any] | None = None
    step: int = 0
    best_step: int = 0
    seconds: float = 0.0
    live_iou: float | None = None
    best_iou: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)


Progress = Callable[[dict[str, Any]], None]


def train_adapter(
    model: InteractiveModel,
    images: Sequence[AdapterImage],
    source: SceneSource,
    config: AdapterConfig,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    turn: Turn = nullcontext,
    parent: dict[str, Tensor] | None = None,
) -> AdapterResult:
    """Train an adapter that starts from the live one.

    Args:
        model: Without an adapter. Its values are left as they are; its parameters ask for no gradients afterwards.
        images: With accepted masks, none of them held out.
        source: Brings scenes of these images.
        config: How.
        checkpoint: Where the state is kept; a state of the same training found there is continued.
        progress: Told {"step", "max_steps", "loss", "seconds", ...} after every step.
        should_stop: Asked before every step.
        turn: Entered around each click, where heavy work takes turns.
        parent: Tensors of the live adapter, of the same kind; None: the bare model is live.

    Raises:
        BadInputError: No image has a mask, or the model has no adapter of that kind.
        BadCheckpointError: The checkpoint is of another training.
    """
    keep_freed_memory()
    examples = [image for image in images if image.targets]
    if not examples:
        raise BadInputError("There is nothing to train on: no accepted mask in the snapshot.")
    training, validation = split_images(examples, config.validation_share, config.validation_objects, config.seed)
    live = parent if parent is not None else adapter_tensors(model, config.kind, config.seed)
    engine = training_engine(next(model.parameters()).device)
    teacher = with_engine(adapted(model, live).requires_grad_(False), engine)
    student, trained = student_of(model, live)
    student = with_engine(student, engine)
    fingerprint = _fingerprint(model, live, images, config)
    run = _resume(checkpoint, fingerprint) or _Run(live, _copy(live), _copy(live))
    _fill(trained, run.weights)
    optimizer = torch.optim.AdamW(trained.values(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    if run.optimizer is not None:
        optimizer.load_state_dict(run.optimizer)

    def validate(tensors: dict[str, Tensor]) -> float | None:
        if not validation:
            return None
        return mean_iou(adapted(model, tensors), validation, source, config.validation_clicks, config.max_side, turn)

    def keep() -> None:
        if checkpoint is not None:
            run.weights, run.optimizer = _copy(trained), optimizer.state_dict()
            save_state(checkpoint, {"fingerprint": fingerprint, **vars(run)})

    material = Material(training, source, DrawnScenes(teacher, config.seed, turn))
    started = time.monotonic() - run.seconds
    if run.step == 0:
        run.live_iou = validate(live)
    finished = True
    since_best = sum(row["step"] > run.best_step for row in run.history)
    while run.step < config.max_steps and since_best < config.patience and run.seconds < 60 * config.max_minutes:
        if should_stop is not None and should_stop():
            finished = False
            break
        loss = optimize_step(teacher, student, trained, optimizer, live, material, config, run.step, turn)
        run.step += 1
        rate = 1 - min(config.ema, (1 + run.step) / (10 + run.step))
        with torch.no_grad():
            for name, parameter in trained.items():
                run.average[name].lerp_(parameter.detach().float().cpu(), rate)
        run.seconds = time.monotonic() - started
        if run.step % config.validate_every == 0 or run.step == config.max_steps:
            towards = _between(live, run.average, config.stride)
            iou = validate(towards)
            if iou is not None:
                run.history.append({"step": run.step, "loss": loss, "iou": iou, "seconds": round(run.seconds, 1)})
            if iou is None or run.best_iou is None or iou > run.best_iou:
                run.best, run.best_iou, run.best_step = towards, iou, run.step
            since_best = sum(row["step"] > run.best_step for row in run.history)
            run.seconds = time.monotonic() - started
        if run.step % config.checkpoint_every == 0 or run.step == config.max_steps:
            keep()
        if progress is not None:
            progress({"step": run.step, "max_steps": config.max_steps, "loss": loss, "seconds": round(run.seconds, 1),
                      "live_iou": run.live_iou, "best_iou": run.best_iou})  # fmt: skip
    keep()
    if finished and run.best_step == 0:  # ended between validations
        run.best, run.best_step = _between(live, run.average, config.stride), run.step
    return AdapterResult(
        run.best, run.step, run.best_step, run.seconds, run.live_iou, run.best_iou, run.history, finished
    )


def _copy(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.detach().float().cpu().clone() for name, tensor in tensors.items()}


def _between(live: dict[str, Tensor], reached: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """New tensors a share of the way from `live` to `reached`."""
    return {name: tensor.lerp(reached[name], share) for name, tensor in _copy(live).items()}


def _fill(parameters: dict[str, torch.nn.Parameter], tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _fingerprint(
    model: InteractiveModel, live: dict[str, Tensor], images: Sequence[AdapterImage], config: AdapterConfig
) -> str:
    """What must be the same for a checkpoint to be continued: start, data and settings."""
    digest = hashlib.sha256(repr((model.model_id, sorted(asdict(config).items()))).encode())
    for name in sorted(live):
        digest.update(live[name].numpy().tobytes())
    for image in images:
        digest.update(repr((image.ref.sha256, [target.mask_id for target in image.targets])).encode())
    return digest.hexdigest()


def _resume(checkpoint: Path | None, fingerprint: str) -> _Run | None:
    if checkpoint is None or not checkpoint.exists():
        return None
    state = load_state(checkpoint)
    del state["format"]
    if state.pop("fingerprint") != fingerprint:
        raise BadCheckpointError(
            f"{checkpoint} is of another adapter training (other masks, settings or live adapter). Remove it."
        )
    return _Run(**state)
