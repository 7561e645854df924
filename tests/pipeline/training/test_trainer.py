"""A training run: goes on as if never stopped, stops in time, learns, refuses foreign states."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.configs.fdrn_compact import NATURAL_SETS, RUNS, on_device
from pipeline.data.samples import SampleConfig, TrainingBatches
from pipeline.models import load_model, save_checkpoint
from pipeline.training.checkpoint import load_state, save_state
from pipeline.training.optim import OptimConfig, learning_rate_at, training_device
from pipeline.training.trainer import TrainConfig, Trainer
from schemas.errors import BadCheckpointError, BadInputError

SAMPLES = SampleConfig(natural=NATURAL_SETS, image_size=64, crop_size=32, num_images=2, rois_per_image=2)


def trainer(out: Path, steps: int, resume: Path | None = None, workers: int = 0, threads: int = 1) -> Trainer:
    torch.set_num_threads(1)
    config = TrainConfig(
        steps=steps,
        seed=3,
        loader_workers=workers,
        click_threads=threads,
        log_every=1,
        optim=OptimConfig(warmup_steps=2, ema=0.9),
    )
    return Trainer(config, TrainingBatches(None, SAMPLES, 3, steps), out, resume)


def test_resumed_run_equals_uninterrupted_run(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", 4).run()
    first = trainer(tmp_path / "parts", 4).run(minutes=0)
    assert first.step == 1 and not first.finished
    second = trainer(tmp_path / "parts", 4, first.state_path).run()
    assert second.finished and second.samples == whole.samples == 16
    a, b = load_state(whole.state_path), load_state(second.state_path)
    for part in ("model", "average"):
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part])
    assert len((tmp_path / "parts" / "log.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_after_the_step_at_work(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    result = trainer(tmp_path, 4).run(progress=lambda *_: os.kill(os.getpid(), number))
    assert (result.step, result.interrupted, result.finished) == (1, True, False)
    assert load_state(result.state_path)["step"] == 1
    assert signal.getsignal(number) is before


def test_a_second_interrupt_ends_it_at_once(tmp_path: Path) -> None:
    def twice(*_: object) -> None:
        for _time in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, 4).run(progress=twice)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_that_reach_the_processes_that_make_batches_too(tmp_path: Path, number: signal.Signals) -> None:
    """As a terminal's Ctrl-C and a scheduler's SIGTERM do."""
    body = (
        "import pathlib, sys; from tests.pipeline.training.test_trainer import trainer;"
        "run = trainer(pathlib.Path(sys.argv[1]), 100_000, workers=2);"
        "print(run.run(progress=lambda *_: print('step', flush=True)).interrupted)"
    )
    words = (sys.executable, "-c", body, str(tmp_path))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, **pipes, text=True, start_new_session=True) as training:  # type: ignore[call-overload]
        assert training.stdout.readline() == "step\n"
        os.killpg(training.pid, number)
        out, err = training.communicate(timeout=60)
    assert out.splitlines()[-1] == "True" and "Traceback" not in err, err
    assert load_state(tmp_path / "state.pt")["step"] >= 1


def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    states = [load_state(trainer(tmp_path / str(n), 2, threads=n).run().state_path)["model"] for n in (1, 3)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_gpu_that_is_not_there_is_said_to_be_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInputError, match="--device cpu"):
        training_device("cuda")
    assert on_device(RUNS["gpu"](), "cpu").train.device == "cpu"


def test_averaged_weights_make_a_checkpoint_that_loads(tmp_path: Path) -> None:
    run = trainer(tmp_path, 1)
    result = run.run()
    average = load_state(result.state_path)["average"]
    save_checkpoint(run.model, tmp_path / "w.safetensors", tensors=average)
    model = load_model("fdrn-compact", tmp_path / "w.safetensors")
    name = "f2.fuse.weight"
    assert torch.allclose(model.state_dict()[name], average[name], atol=1e-3)


def test_states_are_whole_and_foreign_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.pt"
    save_state(path, {"step": 1})
    assert load_state(path)["step"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["state.pt"]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadCheckpointError):
        load_state(path)
    torch.save({"step": 1}, path)
    with pytest.raises(BadCheckpointError, match="training state"):
        load_state(path)
    with pytest.raises(BadCheckpointError):
        load_state(tmp_path / "none.pt")


def test_rate_warms_up_holds_and_decays() -> None:
    config = OptimConfig(learning_rate=1.0, warmup_steps=10, decay_steps=20)
    rates = [learning_rate_at(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[10:80] == [1.0] * 70
    assert rates[90] == pytest.approx(0.5) and rates[99] == pytest.approx(0.05)


def test_only_refinable_models_train(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="toy-color"):
        Trainer(TrainConfig(model_id="toy-color"), TrainingBatches(None, SAMPLES, 0, 1), tmp_path)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_named_runs_are_consistent(name: str) -> None:
    run = RUNS[name]()
    assert run.train.steps > run.train.optim.warmup_steps + run.train.optim.decay_steps
    assert sum(run.samples.mix) == pytest.approx(1) and sum(run.samples.early_mix) == pytest.approx(1)
