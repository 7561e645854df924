"""Iterative training: every architecture learns, a resumed run equals an uninterrupted one, runs are whole."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.configs.published import PUBLISHED, train_published
from pipeline.data.paper_samples import PaperSampleConfig, PaperSamples
from pipeline.models import list_models, load_model
from pipeline.training.iterative import IterativeConfig, IterativeTrainer
from schemas.errors import BadInputError
from tests.pipeline.data.layouts import write_sbd
from tests.pipeline.data.test_paper_samples import Ellipses
from tests.pipeline.models.small import SMALL

STEPS = 3


def samples(has_global: bool = False, count: int = 64) -> PaperSamples:
    config = PaperSampleConfig(crop_size=(64, 64), min_area=50, global_size=96 if has_global else None)
    return PaperSamples(Ellipses(), config, 0, count)


def config(**changes: object) -> IterativeConfig:
    base = IterativeConfig(
        model_id="simpleclick-xtiny-448",
        epochs=1,
        epoch_samples=2 * STEPS,
        batch_size=2,
        learning_rate=1e-3,
        log_every=1,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in SMALL if name != "toy"])
def test_every_architecture_trains_and_learns(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = SMALL[name]()
    model.model_id = model.model_id or name
    loss = "adaptiveclick" if name == "adaptiveclick" else "focal-click" if "segformer" in name else "nfl"
    trainer = IterativeTrainer(config(loss=loss, epochs=4), samples(model.cut == "image"), tmp_path, model=model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batch = next(iter(trainer._batches(1)))
    losses = [trainer.train_step(batch) for _ in range(12)]
    assert all(torch.isfinite(torch.tensor(losses))) and min(losses[-4:]) < losses[0]
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("loss", ["nfl", "afl", "bce", "poly", "dice", "soft-iou", "nfl-dice"])
def test_any_loss_drops_in(loss: str, tmp_path: Path) -> None:
    trainer = IterativeTrainer(config(loss=loss), samples(), tmp_path, model=SMALL["simpleclick"]())
    assert trainer.train_step(next(iter(trainer._batches(1)))) > 0


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    torch.set_num_threads(1)

    def run(out: Path, stop_at: int | None = None, resume: Path | None = None) -> IterativeTrainer:
        torch.manual_seed(1)
        trainer = IterativeTrainer(config(), samples(), out, resume, model=SMALL["simpleclick"]())
        if stop_at is None:
            trainer.run()
        else:
            for batch in trainer._batches(stop_at):
                trainer.train_step(batch)
            trainer.save()
        return trainer

    whole = run(tmp_path / "whole")
    run(tmp_path / "part", stop_at=1)
    resumed = run(tmp_path / "part", resume=tmp_path / "part" / "state.pt")
    assert whole.step == resumed.step == STEPS
    other = resumed.model.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in whole.model.state_dict().items())


def test_the_log_holds_loss_and_validation(tmp_path: Path) -> None:
    model = SMALL["simpleclick"]()
    model.model_id = "small"
    IterativeTrainer(config(epochs=2), samples(), tmp_path, validate=lambda own: 7.5, model=model).run()
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [row["noc90"] for row in rows if row["noc90"]] == ["7.500", "7.500"]
    assert int(rows[-1]["step"]) == 2 * STEPS and float(rows[-1]["loss"]) > 0


def test_rates_fall_at_the_milestones_and_slow_parts_learn_at_a_tenth(tmp_path: Path) -> None:
    run = config(epochs=3, milestones=(1, 2), slow_prefix="backbone.")
    trainer = IterativeTrainer(run, samples(), tmp_path, model=SMALL["simpleclick"]())
    rates = []
    for batch in trainer._batches(2 * STEPS + 1):
        trainer.train_step(batch)
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
    assert rates[0] == pytest.approx([1e-3, 1e-4]) and rates[STEPS] == pytest.approx([1e-4, 1e-5])
    assert rates[-1] == pytest.approx([1e-5, 1e-6])


def test_published_runs_name_models_that_are_there() -> None:
    for name, make in PUBLISHED.items():
        run = make()
        family = run.train.model_id.removeprefix("clickadapter-")
        assert family in list_models(), name
        assert run.train.milestones[-1] <= run.train.epochs and run.data in name
    simple = PUBLISHED["simpleclick-base-cocolvis"]()
    assert (simple.train.epochs, simple.train.milestones, simple.train.learning_rate) == (55, (50, 55), 5e-5)
    assert simple.samples.scale == (0.75, 1.40) and simple.train.epoch_samples == 30_000


def test_a_published_run_trains_on_its_data_set(tmp_path: Path) -> None:
    run = PUBLISHED["ritm-hrnet18s-sbd"]()
    run = replace(
        run,
        train=replace(run.train, epochs=1, epoch_samples=2, batch_size=2),
        samples=replace(run.samples, crop_size=(64, 96), min_area=5),
    )
    result = train_published(run, write_sbd(tmp_path / "sbd"), tmp_path / "out")
    assert result.finished and result.step == 1
    assert load_model("ritm-hrnet18s", tmp_path / "out" / "ritm-hrnet18s.safetensors").model_id == "ritm-hrnet18s"


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(BadInputError, match="Unknown loss"):
        config(loss="nosuch")
    with pytest.raises(BadInputError, match="holds no batch"):
        config(epoch_samples=1)
