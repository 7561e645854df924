"""Training runs of fdrn-compact: how the shipped weights were made, in slices."""

from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.data.samples import SampleConfig, TrainingBatches
from pipeline.models import save_checkpoint
from pipeline.training.optim import OptimConfig
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


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run whole: what it learns from and how."""

    train: TrainConfig
    samples: SampleConfig


def cpu_small(steps: int = 960) -> Run:
    """First slice on a CPU: half resolution. Its second half decays; `cpu_medium` ends it."""
    return Run(
        train=TrainConfig(steps=steps, seed=20261121, optim=_CPU_OPTIM),
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


def cpu_medium(steps: int = 960) -> Run:
    """Last slice: goes on from a state of `cpu_small` at three quarters of the working resolution."""
    run = cpu_small(steps)
    return replace(
        run, samples=replace(run.samples, image_size=384, crop_size=192, num_images=2, rois_per_image=3, early_steps=0)
    )


_CPU_OPTIM = OptimConfig(learning_rate=1.5e-3, warmup_steps=100, decay_steps=480, ema=0.995)

RUNS = {"cpu-small": cpu_small, "cpu-medium": cpu_medium}
"""Name of a run -> function that returns it."""


def train(
    run: Run, data: Path | None, out: Path, resume: Path | None = None, minutes: float | None = None
) -> TrainResult:
    """Carry out a run on the sets under `data`, or on procedural scenes alone; see `Trainer`."""
    batches = TrainingBatches(data, run.samples, run.train.seed, run.train.steps)
    return Trainer(run.train, batches, out, resume).run(minutes)


def export(run: Run, data: Path | None, state: Path, path: Path, num_batches: int = 24) -> None:
    """Write the weights to ship from a training state.

    Args:
        run: The run that the state comes from.
        data: As for `train`.
        state: A state of it.
        path: The .safetensors file to write, stored as float16.
        num_batches: Batches at full resolution to measure the statistics of the norms on; 0 keeps the running ones.
    """
    full = replace(run.samples, image_size=512, crop_size=256, num_images=4, rois_per_image=2, early_steps=0)
    batches = TrainingBatches(data, full, run.train.seed + 1, num_batches)
    trainer = Trainer(run.train, batches, path.parent, state)
    model = trainer.finish(batches[step] for step in range(num_batches))
    header = {"steps": str(trainer.step), "samples": str(trainer.samples), "minutes": f"{trainer.seconds / 60:.0f}"}
    save_checkpoint(model, path, {**header, "seed": str(run.train.seed)})
