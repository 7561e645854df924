"""Training runs of fdrn-compact: how the shipped weights were made, in slices."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.data.samples import SampleConfig, TrainingBatches
from pipeline.inference.engines import training_engine
from pipeline.models import save_checkpoint
from pipeline.training.optim import OptimConfig, training_device
from pipeline.training.trainer import TrainConfig, Trainer, TrainResult

NATURAL_SETS = (
    "rf_animals",
    "rf_kuih",
    "rf_underwater",
    "rf_feralcat",
    "rf_teacher",
    "coco_panoptic200",
    "coco_by_a",
    "coco_by_b",
    "rf_human",
    "mit_firetruck",
    "balloon",
    "rf_fruits",
    "mit_strawb",
    "mit_mandarin",
    "rf_mcu",
    "tony607_nuts",
    "rf_strawberry",
)
"""Sets of varied photographs of whole objects; every other set that may train counts as narrow."""
LATE_CLICKS = (0.2, 0.15, 0.15, 0.1, 0.1, 0.1, 0.08, 0.07, 0.05)
"""How often 0, 1, ... clicks come before the one that learns; the last are about masks that are nearly done."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run whole: what it learns from and how."""

    train: TrainConfig
    samples: SampleConfig


def cpu_small(steps: int = 800) -> Run:
    """About an hour of two busy CPU cores, two ranks: half resolution throughout, the last third decays."""
    return Run(
        train=TrainConfig(
            steps=steps,
            seed=20261121,
            optim=OptimConfig(learning_rate=1.5e-3, warmup_steps=100, decay_steps=steps // 3, ema=0.98),
        ),
        samples=SampleConfig(
            natural=NATURAL_SETS,
            mix=(0.58, 0.25, 0.09, 0.08),
            image_size=256,
            crop_size=128,
            num_images=4,
            rois_per_image=3,
            early_steps=300,
        ),
    )


def cpu_more(steps: int = 4000) -> Run:
    """Goes on from weights (`--resume WEIGHTS.safetensors`) with larger batches, still at half resolution."""
    return Run(
        train=TrainConfig(
            steps=steps,
            seed=20261126,
            optim=OptimConfig(learning_rate=1.2e-3, warmup_steps=150, decay_steps=steps // 3, ema=0.995),
        ),
        samples=SampleConfig(
            natural=NATURAL_SETS,
            mix=(0.55, 0.28, 0.07, 0.1),
            image_size=256,
            crop_size=128,
            num_images=6,
            rois_per_image=4,
        ),
    )


def cpu_full(steps: int = 1000) -> Run:
    """Goes on from weights at the working resolution, the rate falling most of the way: how a CPU run ends."""
    return Run(
        train=TrainConfig(
            steps=steps,
            seed=20261127,
            optim=OptimConfig(learning_rate=6e-4, warmup_steps=60, decay_steps=steps * 7 // 10, ema=0.99),
        ),
        samples=SampleConfig(
            natural=NATURAL_SETS,
            mix=(0.6, 0.26, 0.05, 0.09),
            num_images=4,
            rois_per_image=4,
        ),
    )


def cpu_long(steps: int = 3540) -> Run:
    """`cpu_more` for one core that multiplies in bfloat16 (AVX-512 BF16 or AMX; slower than float32 on others), with
    close-ups. Its rate does not fall: `cpu_long_full` goes on from its averaged weights."""
    run = cpu_more(steps)
    return Run(
        train=replace(
            run.train,
            seed=20261128,
            bfloat16=True,
            optim=OptimConfig(learning_rate=1.2e-3, warmup_steps=150, decay_steps=0, ema=0.998),
        ),
        samples=replace(run.samples, close_ups=0.08),
    )


def cpu_long_full(steps: int = 1300) -> Run:
    """Ends `cpu_long` at the working resolution, the rate falling for three quarters of the way."""
    run = cpu_full(steps)
    return Run(
        train=replace(
            run.train,
            seed=20261129,
            bfloat16=True,
            optim=OptimConfig(learning_rate=9e-4, warmup_steps=60, decay_steps=steps * 3 // 4, ema=0.99),
        ),
        samples=replace(run.samples, close_ups=0.1),
    )


def cpu_late(steps: int = 800) -> Run:
    """Goes on from weights at the working resolution, with up to eight clicks before the one that learns. The others
    see three at most, and masks that are nearly done are what the last clicks to a high IoU are about."""
    run = cpu_long_full(steps)
    return Run(
        train=replace(
            run.train,
            seed=20261130,
            click_passes=LATE_CLICKS,
            optim=OptimConfig(learning_rate=6e-4, warmup_steps=60, decay_steps=steps * 3 // 4, ema=0.99),
        ),
        samples=run.samples,
    )


def gpu(steps: int = 6000) -> Run:
    """The recipe of `cpu_late` for a GPU and some ten CPU cores beside it, which make the batches and place the clicks:
    one core makes about 320 regions a second (AMD EPYC). From weights of before or from none."""
    return Run(
        train=TrainConfig(
            steps=steps,
            seed=20261201,
            device="cuda",
            bfloat16=True,
            loader_workers=min(8, os.cpu_count() or 1),
            click_threads=8,
            save_every_s=60.0,
            click_passes=LATE_CLICKS,
            optim=OptimConfig(learning_rate=1e-3, warmup_steps=200, decay_steps=steps // 3, ema=0.999),
        ),
        samples=SampleConfig(natural=NATURAL_SETS, mix=(0.5, 0.22, 0.18, 0.1), close_ups=0.1),
    )


RUNS = {
    "gpu": gpu,
    "cpu-small": cpu_small,
    "cpu-more": cpu_more,
    "cpu-full": cpu_full,
    "cpu-long": cpu_long,
    "cpu-long-full": cpu_long_full,
    "cpu-late": cpu_late,
}
"""Name of a run -> function that returns it."""


def on_device(run: Run, name: str) -> Run:
    """The run on "cpu" or "cuda", in bfloat16 where that is faster.

    Raises:
        BadInputError: There is no such device here.
    """
    fast = training_engine(training_device(name)) == "torch-bfloat16"
    return replace(run, train=replace(run.train, device=name, bfloat16=fast))


def train(
    run: Run, data: Path | None, out: Path, resume: Path | None = None, minutes: float | None = None
) -> TrainResult:
    """Carry out a run on the sets under `data`, or on procedural scenes alone; see `Trainer`."""
    batches = TrainingBatches(data, run.samples, run.train.seed, run.train.steps)
    return Trainer(run.train, batches, out, resume).run(minutes)


def export(run: Run, state: Path, path: Path) -> None:
    """Write the weights to ship, stored as float16, from a training state of a run.

    Args:
        run: The run that the state comes from.
        state: See `pipeline.training.checkpoint`.
        path: The .safetensors file to write.
    """
    trainer = Trainer(run.train, TrainingBatches(None, run.samples, run.train.seed, 0), path.parent, state)
    model = trainer.finish()
    counters = {"steps": trainer.step, "samples": trainer.samples, "minutes": round(trainer.seconds / 60)}
    save_checkpoint(
        model, path, {**{name: str(value) for name, value in counters.items()}, "seed": str(run.train.seed)}
    )
