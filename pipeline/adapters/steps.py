"""One optimiser step of an adapter's training: which states are drawn, and what is minimised on them.

Every draw is a function of (seed, step). Knows nothing of checkpoints, averages and when to stop (see `train`).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.adapters.replay import DrawnScenes
from pipeline.adapters.scenes import AdapterImage, AdapterTarget, Scene, SceneSource, Turn
from pipeline.adapters.threads import thread_pool
from pipeline.adapters.trajectories import crop_target, refine_scene, trajectory
from pipeline.models._base import InteractiveModel
from pipeline.training.losses import nfl
from pipeline.training.objective import boundary_weights, mask_iou, soft_iou_loss
from schemas.clicks import Click


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """How an adapter is trained.

    Attributes:
        kind: What is trained, see `InteractiveModel.adapter_parameter_names`.
        seed: Of every draw.
        max_steps: Optimiser steps.
        max_minutes: Of training, summed over resumed runs; whatever comes first ends it.
        objects_per_step: Trajectories per optimiser step.
        max_clicks: Clicks of a trajectory, drawn from 1 to this: late clicks are what NoC@90 is made of.
        learning_rate: AdamW's, after the warm-up, falling linearly to a tenth at the last step.
        warmup_steps: Linear from 0.
        weight_decay: AdamW's, towards the live weights (not towards zero).
        clip_norm: Largest norm of the gradient.
        ema: Decay of the averaged weights.
        stride: How far towards the averaged weights the live ones go, from 0 to 1. Stopping short of them keeps more of
            what the model knew (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, section 3).
        recorded_share: Share of trajectories that follow the person's clicks where there are any.
        hold_share: Share of trajectories that hold to the live model on states that nobody labelled.
        replay_share: Share of trajectories on objects of drawn scenes, so that no other domain is forgotten.
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
    objects_per_step: int = 2
    max_clicks: int = 12
    learning_rate: float = 3e-4
    warmup_steps: int = 20
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.98
    stride: float = 0.75
    recorded_share: float = 0.5
    hold_share: float = 0.25
    replay_share: float = 0.25
    mirror: bool = True
    jitter: float = 0.1
    max_side: int = 1600
    validation_share: float = 0.2
    validation_objects: int = 12
    validation_clicks: int = 8
    validate_every: int = 25
    patience: int = 5
    checkpoint_every: int = 10

    @classmethod
    def for_masks(cls, masks: int, **chosen: Any) -> Self:
        """What suits so many accepted masks: six steps for each, from 300 to 900, and twelve validations.

        Args:
            masks: Accepted, on training images.
            chosen: What is not to follow from their number; None does.
        """
        steps = min(900, max(300, 6 * masks))
        sized = {
            "max_steps": steps,
            "max_minutes": steps / 30,
            "validate_every": steps // 12,
            "validation_objects": steps // 25,
            "patience": 8,
        }
        return cls(**sized | {name: value for name, value in chosen.items() if value is not None})


@dataclass(frozen=True)
class Material:
    """What the steps of a training draw from.

    Attributes:
        images: Each with at least one target.
        source: Brings their scenes.
        drawn: Scenes to replay.
    """

    images: Sequence[AdapterImage]
    source: SceneSource
    drawn: DrawnScenes


def optimize_step(
    model: InteractiveModel,
    student: InteractiveModel,
    trained: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    live: dict[str, Tensor],
    material: Material,
    config: AdapterConfig,
    step: int,
    turn: Turn = nullcontext,
) -> float:
    """One optimiser step over `objects_per_step` trajectories.

    Args:
        model: The live model, without gradients.
        student: Shares all weights with it but the trained ones.
        trained: The student's trained parameters by name.
        optimizer: Of those.
        live: The live model's values of them, which weight decay pulls towards.
        material: To draw from.
        config: How.
        step: Number of this step; with the seed it decides every draw.
        turn: Entered around each click's forward and each one's backward pass, by each thread.

    Returns:
        Mean loss of the clicks.
    """
    followed = [_losses(model, student, material, config, (step, number)) for number in range(config.objects_per_step)]
    gradients = _follow(followed, trained, turn)
    total, count = sum(own.loss for own in gradients), sum(own.clicks for own in gradients)
    if count == 0:
        return 0.0
    rate = config.learning_rate * _schedule(step, config)
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.no_grad():
        for name, parameter in trained.items():
            own = [gradient.by_name[name] for gradient in gradients if name in gradient.by_name]
            parameter.grad = torch.stack(own).sum(0) / count if own else None
            parameter.lerp_(live[name].to(parameter), rate * config.weight_decay)
    torch.nn.utils.clip_grad_norm_(trained.values(), config.clip_norm)
    optimizer.step()
    return total / count


def _losses(
    model: InteractiveModel,
    student: InteractiveModel,
    material: Material,
    config: AdapterConfig,
    number: tuple[int, int],
) -> Iterator[Tensor]:
    """The losses of a trajectory, whose step and place in it decide every draw."""
    rng = np.random.default_rng((config.seed, *number))
    aim = rng.random()
    if aim < config.replay_share:
        scene, mask = material.drawn.draw(rng)
        return _object_losses(student, scene, mask, [], rng, config)
    image, target = _draw(rng, material.images)
    mirrored = config.mirror and rng.random() < 0.5
    scene = material.source.scene(image, mirrored, config.max_side)
    if aim < config.replay_share + config.hold_share:
        return _hold_losses(model, student, scene, rng, config)
    recorded = scene.place_clicks(target.clicks) if rng.random() < config.recorded_share else []
    return _object_losses(student, scene, scene.target_mask(target), recorded, rng, config)


@dataclass
class _Gradient:
    """Summed over the clicks of a trajectory, with their losses."""

    by_name: dict[str, Tensor] = field(default_factory=dict)
    loss: float = 0.0
    clicks: int = 0

    def add(self, loss: float, by_name: dict[str, Tensor]) -> None:
        for name, gradient in by_name.items():
            self.by_name[name] = self.by_name[name] + gradient if name in self.by_name else gradient
        self.loss, self.clicks = self.loss + loss, self.clicks + 1


def _follow(
    trajectories: Sequence[Iterator[Tensor]], trained: dict[str, torch.nn.Parameter], turn: Turn
) -> list[_Gradient]:
    """The gradient of each trajectory, added click by click, so that it does not depend on which thread did what.

    A click's forward pass needs those before it and nothing its backward pass, which any idle thread makes: of two
    trajectories one is often much longer. Leaves the parameters' own gradients alone.
    """

    def forward(losses: Iterator[Tensor]) -> Tensor | None:
        with turn():
            return next(losses, None)

    def backward(loss: Tensor) -> tuple[float, dict[str, Tensor]]:
        with turn():
            found = torch.autograd.grad(loss, tuple(trained.values()), allow_unused=True)
        named = zip(trained, found, strict=True)
        return float(loss.detach()), {name: gradient for name, gradient in named if gradient is not None}

    with thread_pool() as pool:
        gradients = [_Gradient() for _ in trajectories]
        made: list[deque[Future[tuple[float, dict[str, Tensor]]]]] = [deque() for _ in trajectories]
        ahead = {pool.submit(forward, losses): number for number, losses in enumerate(trajectories)}
        while ahead:
            for done in wait(ahead, return_when=FIRST_COMPLETED).done:
                number, loss = ahead.pop(done), done.result()
                if loss is not None:  # backward first: few graphs wait in memory
                    made[number].append(pool.submit(backward, loss))
                    ahead[pool.submit(forward, trajectories[number])] = number
                while made[number] and (loss is None or made[number][0].done()):
                    gradients[number].add(*made[number].popleft().result())
    return gradients


def _object_losses(
    student: InteractiveModel,
    scene: Scene,
    mask: NDArray[np.bool_],
    recorded: Sequence[Click],
    rng: np.random.Generator,
    config: AdapterConfig,
) -> Iterator[Tensor]:
    """The loss of each click on an object of known mask, bool (H, W), along a person's clicks where there are any."""
    if not mask.any():
        return
    num_clicks = int(rng.integers(1, config.max_clicks + 1))
    skip = _num_skipped(rng, num_clicks, len(recorded))
    for step in trajectory(student, scene, mask, rng, num_clicks, recorded, config.jitter, skip):
        logits = step.prediction.logits[:, :1].float()
        size = (logits.shape[2], logits.shape[3])
        truth = crop_target(student, scene, mask, step.roi, size).to(logits.device)
        weights = boundary_weights(truth, 2.0, 3)
        loss = nfl(logits, truth, weight=weights).mean() + 0.5 * soft_iou_loss(logits, truth, weights)
        if step.prediction.scores.requires_grad:
            iou = mask_iou(logits.detach(), truth, torch.ones_like(truth))
            loss = loss + 0.2 * (step.prediction.scores[:, 0].float() - iou).square().mean()
        yield loss


def _hold_losses(
    model: InteractiveModel, student: InteractiveModel, scene: Scene, rng: np.random.Generator, config: AdapterConfig
) -> Iterator[Tensor]:
    """How far the student leaves the live model where somebody clicks on anything else."""
    height, width = scene.size
    clicks = [
        Click(x=float(rng.integers(width)), y=float(rng.integers(height)), is_positive=index == 0 or rng.random() < 0.5)
        for index in range(int(rng.integers(1, config.max_clicks + 1)))
    ]
    nothing = np.zeros(scene.size, np.bool_)
    for step in trajectory(model, scene, nothing, rng, len(clicks), clicks, config.jitter):
        prediction = refine_scene(student, scene, step.clicks, step.roi, step.previous)
        held = step.prediction.logits.float().sigmoid()
        yield F.binary_cross_entropy_with_logits(prediction.logits.float(), held) - F.binary_cross_entropy(held, held)


def _num_skipped(rng: np.random.Generator, num_clicks: int, num_recorded: int) -> int:
    """Clicks that lead up to the learned ones: anywhere in a record, 1 to 4 in a tenth of the simulated cases."""
    if num_recorded:
        return int(rng.integers(0, max(0, min(num_recorded - num_clicks, 8)) + 1))
    return int(rng.integers(1, 5)) if rng.random() < 0.1 else 0


def _draw(rng: np.random.Generator, images: Sequence[AdapterImage]) -> tuple[AdapterImage, AdapterTarget]:
    """An image, by the square root of its number of masks, and one of them."""
    shares = np.sqrt([len(image.targets) for image in images])
    image = images[int(rng.choice(len(images), p=shares / shares.sum()))]
    return image, image.targets[int(rng.integers(len(image.targets)))]


def _schedule(step: int, config: AdapterConfig) -> float:
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return warm * (1 - 0.9 * step / config.max_steps)
