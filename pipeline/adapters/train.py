"""Train an adapter on accepted masks: frozen model, cached encodings, recorded and simulated clicks.

Every draw is a function of (seed, step), so that a run killed and resumed from its checkpoint ends where an
uninterrupted one does. Batch norms stay frozen (RECIPE: adapters). Knows no database, no actor and no gate.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.adapters.head import adapted, adapter_tensors
from pipeline.adapters.scenes import AdapterImage, AdapterTarget, Scene, SceneSource
from pipeline.adapters.trajectories import crop_target, refine_scene, trajectory
from pipeline.adapters.validation import mean_iou, split_images
from pipeline.models._base import InteractiveModel
from pipeline.training.checkpoint import load_state, save_state
from pipeline.training.objective import boundary_weights, mask_iou, soft_iou_loss, weighted_nfl
from schemas.clicks import Click
from schemas.errors import BadCheckpointError, BadInputError


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """How an adapter is trained.

    Attributes:
        kind: What is trained, see `InteractiveModel.adapter_parameter_names`.
        seed: Of every draw.
        max_steps: Optimiser steps.
        max_minutes: Of training, summed over resumed runs; whatever comes first ends it.
        objects_per_step: Trajectories per optimiser step.
        max_clicks: Clicks of a trajectory, drawn from 1 to this.
        learning_rate: AdamW's, after the warm-up, falling linearly to a tenth at the last step.
        warmup_steps: Linear from 0.
        weight_decay: AdamW's, towards the live weights (not towards zero).
        clip_norm: Largest norm of the gradient.
        ema: Decay of the averaged weights, which are what is kept.
        recorded_share: Share of trajectories that follow the person's clicks where there are any.
        hold_share: Share of trajectories that hold to the live model on states that nobody labelled.
        mirror: Train on mirrored images, too (each is encoded once).
        jitter: Of ROIs, see `trajectories.trajectory`.
        max_side: Images are shrunk to this side for training, in pixels.
        validation_share: Of the training images, for early stopping.
        validation_objects: At most so many.
        validation_clicks: Clicks per object in validation.
        validate_every: Steps.
        patience: Validations without a better one after which training ends.
        checkpoint_every: Steps.
    """

    kind: str = "head"
    seed: int = 0
    max_steps: int = 300
    max_minutes: float = 10.0
    objects_per_step: int = 4
    max_clicks: int = 4
    learning_rate: float = 3e-4
    warmup_steps: int = 20
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.98
    recorded_share: float = 0.5
    hold_share: float = 0.25
    mirror: bool = True
    jitter: float = 0.1
    max_side: int = 1600
    validation_share: float = 0.2
    validation_objects: int = 24
    validation_clicks: int = 4
    validate_every: int = 25
    patience: int = 5
    checkpoint_every: int = 10


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
) -> AdapterResult:
    """Train an adapter that starts from the live model.

    Args:
        model: The live model, its adapter included; left as it is.
        images: With accepted masks, none of them held out.
        source: Brings scenes of these images.
        config: How.
        checkpoint: Where the state is kept; a state of the same training found there is continued.
        progress: Told {"step", "max_steps", "loss", "seconds", ...} after every step.
        should_stop: Asked before every step.

    Raises:
        BadInputError: No image has a mask, or the model has no adapter of that kind.
        BadCheckpointError: The checkpoint is of another training.
    """
    examples = [image for image in images if any(target.rle for target in image.targets)]
    if not examples:
        raise BadInputError("There is nothing to train on: no accepted mask in the snapshot.")
    training, validation = split_images(examples, config.validation_share, config.validation_objects, config.seed)
    live = adapter_tensors(model, config.kind)
    student = _student(model, live)
    fingerprint = _fingerprint(model, live, images, config)
    run = _resume(checkpoint, fingerprint) or _Run(live, _copy(live), _copy(live))
    trained = {name: p for name, p in student.named_parameters() if name in live}
    _fill(trained, run.weights)
    optimizer = torch.optim.AdamW(trained.values(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    if run.optimizer is not None:
        optimizer.load_state_dict(run.optimizer)

    def validate(tensors: dict[str, Tensor]) -> float | None:
        if not validation:
            return None
        return mean_iou(adapted(model, tensors), validation, source, config.validation_clicks, config.max_side)

    def keep() -> None:
        if checkpoint is not None:
            run.weights, run.optimizer = _copy(trained), optimizer.state_dict()
            save_state(checkpoint, {"fingerprint": fingerprint, **vars(run)})

    started = time.monotonic() - run.seconds
    if run.step == 0:
        run.live_iou = validate(live)
    finished = True
    since_best = sum(row["step"] > run.best_step for row in run.history)
    while run.step < config.max_steps and since_best < config.patience and run.seconds < 60 * config.max_minutes:
        if should_stop is not None and should_stop():
            finished = False
            break
        loss = _step(model, student, trained, optimizer, live, training, source, config, run.step)
        run.step += 1
        rate = 1 - min(config.ema, (1 + run.step) / (10 + run.step))
        with torch.no_grad():
            for name, parameter in trained.items():
                run.average[name].lerp_(parameter.detach().float().cpu(), rate)
        run.seconds = time.monotonic() - started
        if run.step % config.validate_every == 0 or run.step == config.max_steps:
            iou = validate(run.average)
            if iou is not None:
                run.history.append({"step": run.step, "loss": loss, "iou": iou, "seconds": round(run.seconds, 1)})
            if iou is None or run.best_iou is None or iou > run.best_iou:
                run.best, run.best_iou, run.best_step = _copy(run.average), iou, run.step
            since_best = sum(row["step"] > run.best_step for row in run.history)
            run.seconds = time.monotonic() - started
        if run.step % config.checkpoint_every == 0 or run.step == config.max_steps:
            keep()
        if progress is not None:
            progress({"step": run.step, "max_steps": config.max_steps, "loss": loss, "seconds": round(run.seconds, 1),
                      "live_iou": run.live_iou, "best_iou": run.best_iou})  # fmt: skip
    keep()
    if finished and run.best_step == 0:  # ended between validations
        run.best, run.best_step = run.average, run.step
    return AdapterResult(
        run.best, run.step, run.best_step, run.seconds, run.live_iou, run.best_iou, run.history, finished
    )


def _step(
    model: InteractiveModel,
    student: InteractiveModel,
    trained: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    live: dict[str, Tensor],
    images: Sequence[AdapterImage],
    source: SceneSource,
    config: AdapterConfig,
    step: int,
) -> float:
    """One optimiser step over `objects_per_step` trajectories; gives the mean loss of their clicks."""
    rng = np.random.default_rng((config.seed, step))
    total, count = 0.0, 0
    optimizer.zero_grad(set_to_none=True)
    for _ in range(config.objects_per_step):
        image, target = _draw(rng, images)
        mirrored = config.mirror and rng.random() < 0.5
        scene = source.scene(image, mirrored, config.max_side)
        if rng.random() < config.hold_share:
            losses = _hold_losses(model, student, scene, rng, config)
        else:
            losses = _object_losses(student, scene, target, rng, config)
        for loss in losses:
            loss.backward()  # type: ignore[no-untyped-call]
            total, count = total + float(loss.detach()), count + 1
    if count == 0:
        return 0.0
    rate = config.learning_rate * _schedule(step, config)
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.no_grad():
        for name, parameter in trained.items():
            if parameter.grad is not None:
                parameter.grad /= count
            parameter.lerp_(live[name].to(parameter), rate * config.weight_decay)
    torch.nn.utils.clip_grad_norm_(trained.values(), config.clip_norm)
    optimizer.step()
    return total / count


def _object_losses(
    student: InteractiveModel, scene: Scene, target: AdapterTarget, rng: np.random.Generator, config: AdapterConfig
) -> Any:
    """The loss of each click on one accepted mask."""
    mask = scene.target_mask(target)
    if not mask.any():
        return
    recorded = scene.place_clicks(target.clicks) if rng.random() < config.recorded_share else []
    num_clicks = int(rng.integers(1, config.max_clicks + 1))
    for step in trajectory(student, scene, mask, rng, num_clicks, recorded, config.jitter):
        logits = step.prediction.logits[:, :1].float()
        truth = crop_target(student, scene, mask, step.roi).to(logits.device)
        weights = boundary_weights(truth, 2.0, 3)
        loss = weighted_nfl(logits, truth, weights) + 0.5 * soft_iou_loss(logits, truth, weights)
        if step.prediction.scores.requires_grad:
            iou = mask_iou(logits.detach(), truth, torch.ones_like(truth))
            loss = loss + 0.2 * (step.prediction.scores[:, 0].float() - iou).square().mean()
        yield loss


def _hold_losses(
    model: InteractiveModel, student: InteractiveModel, scene: Scene, rng: np.random.Generator, config: AdapterConfig
) -> Any:
    """How far the student leaves the live model where somebody clicks on anything else."""
    height, width = scene.size
    clicks = [
        Click(x=float(rng.integers(width)), y=float(rng.integers(height)), is_positive=index == 0 or rng.random() < 0.5)
        for index in range(int(rng.integers(1, config.max_clicks + 1)))
    ]
    nothing = np.zeros(scene.size, np.bool_)
    with torch.no_grad():
        steps = list(trajectory(model, scene, nothing, rng, len(clicks), clicks, config.jitter))
    for step in steps:
        prediction = refine_scene(student, scene, step.clicks, step.roi, step.previous)
        held = step.prediction.logits.float().sigmoid()
        yield F.binary_cross_entropy_with_logits(prediction.logits.float(), held) - F.binary_cross_entropy(held, held)


def _draw(rng: np.random.Generator, images: Sequence[AdapterImage]) -> tuple[AdapterImage, AdapterTarget]:
    """An image, by the square root of its number of masks, and one of them."""
    shares = np.sqrt([len(image.targets) for image in images])
    image = images[int(rng.choice(len(images), p=shares / shares.sum()))]
    return image, image.targets[int(rng.integers(len(image.targets)))]


def _schedule(step: int, config: AdapterConfig) -> float:
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return warm * (1 - 0.9 * step / config.max_steps)


def _student(model: InteractiveModel, live: dict[str, Tensor]) -> InteractiveModel:
    student = adapted(model, live)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in live)
    return student


def _copy(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.detach().float().cpu().clone() for name, tensor in tensors.items()}


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
