"""Training runs of fdrn-compact: how the shipped weights were made, in slices."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.data.samples import SampleConfig, TrainingBatches
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


def cpu_small(steps: int = 2600) -> Run:
    """First slice on a CPU: half resolution, no decay."""
    return Run(
        train=TrainConfig(
            steps=steps, seed=20261121, optim=OptimConfig(learning_rate=1.5e-3, warmup_steps=100, ema=0.995)
        ),
        samples=SampleConfig(
            natural=NATURAL_SETS, image_size=256, crop_size=128, num_images=6, rois_per_image=3, early_steps=300
        ),
    )


RUNS = {"cpu-small": cpu_small}
"""Name of a run -> function that returns it."""


def train(
    run: Run, data: Path | None, out: Path, resume: Path | None = None, minutes: float | None = None
) -> TrainResult:
    """Carry out a run on the sets under `data`, or on procedural scenes alone; see `Trainer`."""
    batches = TrainingBatches(data, run.samples, run.train.seed, run.train.steps)
    return Trainer(run.train, batches, out, resume).run(minutes)
