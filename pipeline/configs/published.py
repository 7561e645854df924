"""The papers' training runs, one function each: networks, data sets and schedules as published.

Source: design facts, sections 1.11, 2.5, 3.3, 4.2, 5, 6 and 7, read from the official code where there is any. None of
them was carried out here: they want days of several GPUs and data that is not ours to ship.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.data.coco_lvis import CocoLvisInstances
from pipeline.data.paper_samples import PaperSampleConfig, PaperSamples, SceneSet
from pipeline.data.sbd import SbdInstances
from pipeline.data.training_sets import Scene, TrainingImage, read_set
from pipeline.training.iterative import IterativeConfig, IterativeTrainer, Validate
from pipeline.training.trainer import TrainResult
from schemas.errors import BadInputError

DataSet = Literal["sbd", "cocolvis"]
_SBD_EPOCH = 8498
_STUFF_PROB = 0.30


@dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """A run whole.

    Attributes:
        train: How.
        samples: What a sample is.
        data: Which data set it is published on; any COCO-format folder will do instead.
    """

    train: IterativeConfig
    samples: PaperSampleConfig
    data: DataSet


COCO_LVIS = PaperSampleConfig()
SBD = PaperSampleConfig(scale=(0.75, 1.25), turns=True, min_area=80, keep_background_prob=0.01)


def _run(model_id: str, data: DataSet, crop: tuple[int, int] = (448, 448), **train: object) -> PublishedRun:
    samples = replace(COCO_LVIS if data == "cocolvis" else SBD, crop_size=crop)
    epoch = 30_000 if data == "cocolvis" else _SBD_EPOCH
    config = IterativeConfig(model_id=model_id, epoch_samples=epoch, **train)  # type: ignore[arg-type]
    return PublishedRun(train=config, samples=samples, data=data)


def simpleclick(size: str, data: DataSet) -> PublishedRun:
    """SimpleClick: Adam 5e-5, 55 epochs, a tenth from epoch 50 on; xTiny from scratch for longer."""
    model_id = f"simpleclick-{size}-448"
    if size == "xtiny" and data == "cocolvis":
        return _run(model_id, data, epochs=230, milestones=(200, 230))
    if size == "xtiny":
        return _run(model_id, data, epochs=1001, milestones=(800, 900), learning_rate=1e-5)
    batch = {"base": 140, "large": 72, "huge": 32}[size]
    return _run(model_id, data, batch_size=batch)


def icmformer(size: str, data: DataSet) -> PublishedRun:
    """iCMFormer: as SimpleClick, 85 epochs on COCO+LVIS, batches of 24; Swin at its own crop."""
    side = {"swin-small": 224, "swin-base": 384}.get(size, 448)
    epochs, milestones = (85, (80, 85)) if data == "cocolvis" else (55, (50, 55))
    return _run(
        f"icmformer-{size}-{side}", data, (side, side), epochs=epochs, milestones=milestones, batch_size=24
    )  # fmt: skip


def adaptiveclick(size: str, data: DataSet) -> PublishedRun:
    """AdaptiveClick: its set loss, 60 epochs, batches of 48 (Base) or 24 (Huge); SBD objects from 20 px on."""
    batch = {"base": 48, "huge": 24}[size]
    run = _run(
        f"adaptiveclick-{size}-448", data, loss="adaptiveclick", epochs=60, milestones=(40, 60), batch_size=batch
    )  # fmt: skip
    return replace(run, samples=replace(run.samples, min_area=20)) if data == "sbd" else run


def ritm(size: str, data: DataSet) -> PublishedRun:
    """RITM: Adam 5e-4 (backbone a tenth), crop 320 x 480, 230 epochs, NFL and 0.4 BCE on the coarse mask."""
    return _run(
        f"ritm-{size}", data, (320, 480), epochs=230, milestones=(200, 220), learning_rate=5e-4,
        slow_prefix="feature_extractor.",
    )  # fmt: skip


def fdrn(variant: str, data: DataSet) -> PublishedRun:
    """FDRN: whole image 480, crop 320 (RITM's) or 256 (FocalClick's), Adam 5e-4, 230 epochs (300 on COCO+LVIS)."""
    focal = variant.endswith("focal") or "segformer" in variant
    side = 256 if focal else 320
    run = _run(
        f"fdrn-{variant}", data, (side, side), loss="focal-click" if focal else "nfl",
        epochs=300 if data == "cocolvis" else 230, milestones=(190, 210), learning_rate=5e-4, batch_size=48,
    )  # fmt: skip
    return replace(run, samples=replace(run.samples, global_size=480))


def clickadapter(host: str, data: DataSet) -> PublishedRun:
    """ClickAdapter: the host frozen, AdamW 5e-6, a tenth from epochs 50 and 55 on, 60 epochs."""
    return _run(
        f"clickadapter-{host}", data, loss="nfl-dice", epochs=60, milestones=(50, 55), learning_rate=5e-6,
        optimizer="adamw", weight_decay=0.01,
    )  # fmt: skip


def _all_runs() -> dict[str, Callable[[], PublishedRun]]:
    families: list[tuple[Callable[[str, DataSet], PublishedRun], str, tuple[str, ...]]] = [
        (simpleclick, "simpleclick", ("xtiny", "base", "large", "huge")),
        (icmformer, "icmformer", ("base", "large", "huge", "swin-small", "swin-base")),
        (adaptiveclick, "adaptiveclick", ("base", "huge")),
        (ritm, "ritm", ("hrnet18s", "hrnet18", "hrnet32")),
        (fdrn, "fdrn", ("h1-hrnet18", "h2-hrnet18", "h2-hrnet18s", "h2-hrnet18s-focal", "b0-segformerb0",
                        "b1-segformerb0", "b0-segformerb3")),
        (clickadapter, "clickadapter", ("simpleclick-base-448", "simpleclick-large-448", "segformer-b0-448",
                                        "segformer-b3-448")),
    ]  # fmt: skip
    sets: tuple[DataSet, ...] = ("sbd", "cocolvis")
    return {
        f"{family}-{size}-{data}": partial(make, size, data)
        for make, family, sizes in families
        for size in sizes
        for data in sets
    }


PUBLISHED = _all_runs()
"""Name of a run, such as "simpleclick-base-sbd" -> function that returns it."""


class CocoScenes:
    """A COCO-format folder (images/ and annotations.json) as scenes.

    Args:
        folder: Of the set.
        split: Of its images; those that state none count as "train".
    """

    def __init__(self, folder: Path, split: Literal["train", "val"] = "train") -> None:
        self.images: list[TrainingImage] = read_set(folder, split, min_area=1)

    def __len__(self) -> int:
        return len(self.images)

    def scene(self, index: int, rng: np.random.Generator) -> Scene:
        """One photograph with its instances."""
        return self.images[index].load()


def open_scenes(folder: Path, data: DataSet) -> SceneSet:
    """The training split of a run's data set, or of a COCO-format folder.

    Raises:
        BadInputError: The folder is neither; the message says what is expected.
    """
    if not folder.is_dir():
        raise BadInputError(f"There is no folder {folder}. Give the data set's folder by --data.")
    if (folder / "annotations.json").exists():
        return CocoScenes(folder)
    return SbdInstances(folder, "train") if data == "sbd" else CocoLvisInstances(folder, "train", _STUFF_PROB)


def train_published(
    run: PublishedRun,
    data: Path,
    out: Path,
    resume: Path | None = None,
    minutes: float | None = None,
    validate: Validate | None = None,
) -> TrainResult:
    """Carry out a run on one device, or on every rank of an initialised `torch.distributed`.

    Args:
        run: Of `PUBLISHED`, or changed from one.
        data: The data set's folder.
        out: Folder of state, log and weights.
        resume: A state to go on from, or weights to begin with: see `begin_model`.
        minutes: Stop in time and save.
        validate: See `IterativeTrainer`.
    """
    scenes = open_scenes(data, run.data)
    samples = PaperSamples(scenes, run.samples, run.train.seed, run.train.epochs * run.train.epoch_samples)
    return IterativeTrainer(run.train, samples, out, resume, validate).run(minutes)
