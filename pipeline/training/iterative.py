"""Iterative training as the papers do it: a few clicks of the model's own, then one step on the last prediction.

Plain PyTorch, any model. Where `torch.distributed` is initialised, ranks learn from different samples and average their
gradients; rank 0 keeps the log and the state. A resumed run goes on as an uninterrupted one would.

Source: Sofiiuk et al., RITM, ICIP 2022, section 3.3, with the constants of design facts, section 1.11.
"""

import csv
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.clicks.simulate import add_training_click, next_training_click
from pipeline.models import begin_model, create_model, save_checkpoint
from pipeline.models._base import InteractiveModel
from pipeline.training.checkpoint import load_state, save_state
from pipeline.training.interrupts import ignore_interrupts, noted_interrupts
from pipeline.training.optim import training_device
from pipeline.training.published import LOSSES, SET_LOSS, training_loss
from pipeline.training.trainer import TrainResult
from schemas.clicks import Click
from schemas.errors import BadInputError

logger = logging.getLogger(__name__)
Validate = Callable[[InteractiveModel], float]


class Batch(Protocol):
    """What a step learns from; see `pipeline.data.paper_samples.PaperBatch`, which training does not import: it runs
    where masks cannot be read."""

    @property
    def crops(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def clicks(self) -> list[list[Click]]: ...
    @property
    def images(self) -> Tensor | None: ...
    @property
    def rois(self) -> Tensor | None: ...


class Samples(Protocol):
    """Sample number -> sample, and samples -> batch."""

    def __getitem__(self, number: int) -> Any: ...

    def collate(self, samples: list[Any]) -> Any:
        """A batch of samples."""
        ...


@dataclass(frozen=True, kw_only=True)
class IterativeConfig:
    """One run.

    Attributes:
        model_id: What to train.
        loss: Of `published.LOSSES`, or "adaptiveclick".
        epochs: In all.
        epoch_samples: Samples of an epoch.
        batch_size: Over all devices.
        learning_rate: Before the milestones.
        milestones: Epochs after which it falls to a tenth.
        optimizer: "adam" or "adamw".
        weight_decay: Of the optimiser.
        slow_prefix: Parameters whose names begin with it learn at a tenth of the rate; empty: none.
        max_next_clicks: 0 to so many clicks of the model's own precede a step.
        seed: Of everything.
        device: "cpu" or "cuda".
        bfloat16: Autocast; for GPUs.
        loader_workers: Processes that make samples; 0 makes them in this one.
        save_every_s: Seconds between states on disk.
        log_every: Steps between lines of the log.
        validate_every: Epochs between validations.
    """

    model_id: str
    loss: str = "nfl"
    epochs: int = 55
    epoch_samples: int = 30_000
    batch_size: int = 32
    learning_rate: float = 5e-5
    milestones: tuple[int, ...] = (50, 55)
    optimizer: str = "adam"
    weight_decay: float = 0.0
    slow_prefix: str = ""
    max_next_clicks: int = 3
    seed: int = 0
    device: str = "cpu"
    bfloat16: bool = False
    loader_workers: int = 0
    save_every_s: float = 180.0
    log_every: int = 20
    validate_every: int = 1

    def __post_init__(self) -> None:
        if self.loss not in LOSSES and self.loss != SET_LOSS:
            raise BadInputError(f"Unknown loss {self.loss!r}. Known: {', '.join([*LOSSES, SET_LOSS])}.")
        if self.epoch_samples < self.batch_size:
            raise BadInputError(f"An epoch of {self.epoch_samples} samples holds no batch of {self.batch_size}.")

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch."""
        return self.epoch_samples // self.batch_size


class IterativeTrainer:
    """Model, optimiser and counters of one run.

    Args:
        config: The run.
        samples: Sample number -> sample; `epochs` times `epoch_samples` of them.
        out: Folder of the state, the log and the weights.
        resume: A state to go on from, or a weights file to begin from; None starts afresh.
        validate: Gives NoC@90 of a model, logged after each epoch; None: nothing is validated.
        model: Made already; None makes `config.model_id`.

    Raises:
        BadCheckpointError: The state or weights don't fit.
    """

    def __init__(
        self,
        config: IterativeConfig,
        samples: Samples,
        out: Path,
        resume: Path | None = None,
        validate: Validate | None = None,
        model: InteractiveModel | None = None,
    ) -> None:
        self.config, self.samples, self.out, self.validate = config, samples, out, validate
        self.device = training_device(config.device)
        torch.manual_seed(config.seed)
        weights = resume if resume is not None and resume.suffix in (".safetensors", ".pth") else None
        if model is None:
            model = create_model(config.model_id) if weights is None else begin_model(config.model_id, weights)
        self.model = model.to(self.device)
        self.optimizer = _make_optimizer(self.model, config)
        self.step, self.seconds = 0, 0.0
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if together else 0
        self.ranks = torch.distributed.get_world_size() if together else 1
        if config.batch_size % self.ranks:
            raise BadInputError(f"A batch of {config.batch_size} cannot be shared out over {self.ranks} devices.")
        if resume is not None and weights is None:
            state = load_state(resume, config.model_id)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]

    @property
    def state_path(self) -> Path:
        """Where the state is written."""
        return self.out / "state.pt"

    def run(self, minutes: float | None = None) -> TrainResult:
        """Train until the epochs or the minutes are used up; state and weights are on disk afterwards.

        Ctrl-C or SIGTERM ends it after the step at work.

        Args:
            minutes: Of this call; None means no limit.
        """
        config, started = self.config, time.monotonic()
        before, saved, losses = self.seconds, started, list[float]()
        total = config.epochs * config.steps_per_epoch
        with noted_interrupts() as interrupted:
            for batch in self._batches(total):
                losses.append(self.train_step(batch))
                now = time.monotonic()
                self.seconds = before + now - started
                if self.step % config.steps_per_epoch == 0 and self.rank == 0 and self.validate is not None:
                    epoch = self.step // config.steps_per_epoch
                    if epoch % config.validate_every == 0:
                        self._log(losses, self.validate(self.model.eval()))
                        losses = []
                elif self.step % config.log_every == 0 and self.rank == 0:
                    self._log(losses, None)
                    losses = []
                if now - saved > config.save_every_s and self.rank == 0:
                    self.save()
                    saved = now
                if self._anyone(interrupted() or (minutes is not None and now - started > minutes * 60)):
                    break
        if self.rank == 0:
            self.save()
            save_checkpoint(self.model, self.out / f"{config.model_id}.safetensors", {"steps": str(self.step)})
        samples = self.step * config.batch_size
        return TrainResult(self.step, samples, self.seconds, self.step >= total, interrupted(), self.state_path)

    def train_step(self, batch: Batch) -> float:
        """One update; the loss."""
        config = self.config
        torch.manual_seed((config.seed * 1_000_003 + self.step) * self.ranks + self.rank)  # of dropout
        epoch = self.step // config.steps_per_epoch
        rate = config.learning_rate * 0.1 ** sum(epoch >= milestone for milestone in config.milestones)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        crops = batch.crops.to(self.device).float() / 255
        images = crops if batch.images is None else batch.images.to(self.device).float() / 255
        rois = None if batch.rois is None else batch.rois.to(self.device)
        target = batch.targets.to(self.device)[:, None].float()
        own_crops = None if batch.images is None else crops
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.bfloat16):
            clicks, previous = self._click(batch, images, own_crops, rois)
            self.model.train()
            encoding = self.model.encode(images)
            loss = training_loss(
                config.loss, self.model, encoding, clicks, previous, target, own_crops, rois
            )  # fmt: skip
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._average_gradients()
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    def save(self) -> None:
        """Write the full state."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        save_state(self.state_path, {**state, "seconds": self.seconds, "config": asdict(self.config)})

    @torch.no_grad()
    def _click(
        self, batch: Batch, images: Tensor, crops: Tensor | None, rois: Tensor | None
    ) -> tuple[list[list[Click]], Tensor]:
        """0 to `max_next_clicks` clicks into the model's own errors: clicks and the last probability."""
        rng = np.random.default_rng((self.config.seed, self.step, 1 + self.rank))
        passes = int(np.random.default_rng((self.config.seed, self.step)).integers(self.config.max_next_clicks + 1))
        clicks = [list(own) for own in batch.clicks]
        previous = torch.zeros(len(clicks), 1, *batch.crops.shape[2:], device=self.device)
        if passes == 0:
            return clicks, previous
        self.model.eval()
        encoding = self.model.encode(images)
        truth = batch.targets.numpy()
        for iteration in range(1, passes + 1):
            logits = self.model.refine(encoding, clicks, previous, crops, rois).logits[:, :1]
            previous = logits.float().sigmoid()
            for index, probability in enumerate(previous[:, 0].cpu().numpy()):
                click = next_training_click(truth[index], probability, rng)
                if click is not None:
                    clicks[index] = add_training_click(clicks[index], click, iteration)
        return clicks, previous

    def _batches(self, total: int) -> Iterable[Batch]:
        """This rank's part of every batch from the next step on."""
        own = self.config.batch_size // self.ranks
        numbers = [
            [step * self.config.batch_size + self.rank * own + index for index in range(own)]
            for step in range(self.step, total)
        ]
        samples: Any = self.samples
        return DataLoader(
            samples,
            batch_sampler=numbers,
            collate_fn=samples.collate,
            num_workers=self.config.loader_workers,
            worker_init_fn=ignore_interrupts,
        )

    def _average_gradients(self) -> None:
        if self.ranks > 1:
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                    torch.distributed.all_reduce(gradient)
                    parameter.grad = gradient / self.ranks

    def _anyone(self, wish: bool) -> bool:
        """Whether any rank wishes so; all ranks get the same answer."""
        if self.ranks == 1:
            return wish
        votes = torch.tensor(float(wish), device=self.device)
        torch.distributed.all_reduce(votes)
        return bool(votes > 0)

    def _log(self, losses: list[float], noc: float | None) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / "log.csv"
        fresh = not path.exists()
        loss = float(np.mean(losses)) if losses else float("nan")
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(["step", "seconds", "learning_rate", "loss", "noc90"])
            rate = self.optimizer.param_groups[0]["lr"]
            shown = "" if noc is None else f"{noc:.3f}"
            writer.writerow([self.step, f"{self.seconds:.1f}", f"{rate:.3g}", f"{loss:.5f}", shown])
        logger.info("step %d loss %.4f noc90 %s", self.step, loss, noc)


def _make_optimizer(model: InteractiveModel, config: IterativeConfig) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [{"params": [], "factor": 1.0}, {"params": [], "factor": 0.1}]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            slow = bool(config.slow_prefix) and name.startswith(config.slow_prefix)
            groups[slow]["params"].append(parameter)
    kinds: dict[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if config.optimizer not in kinds:
        raise BadInputError(f"Unknown optimiser {config.optimizer!r}. Known: {', '.join(kinds)}.")
    made: torch.optim.Optimizer = kinds[config.optimizer](
        [group for group in groups if group["params"]], lr=config.learning_rate, betas=(0.9, 0.999), eps=1e-8,
        weight_decay=config.weight_decay,
    )  # fmt: skip
    return made
