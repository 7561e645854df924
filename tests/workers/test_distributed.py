"""A published run on two devices through Ray Train, on CPUs, with a rank that is killed on the way."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pipeline.configs.published import PUBLISHED, PublishedRun
from tests.pipeline.data.layouts import write_sbd

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]


def small_run(epochs: int) -> PublishedRun:
    """Two steps an epoch."""
    run = PUBLISHED["simpleclick-xtiny-sbd"]()
    return replace(
        run,
        train=replace(run.train, epochs=epochs, epoch_samples=4, batch_size=2),
        samples=replace(run.samples, crop_size=(224, 224), min_area=5),
    )


def kill_a_rank_once(state: Path, killed: list[int]) -> None:
    """kill -9 of one rank once there is a state to go on from."""
    while not state.exists():
        time.sleep(0.05)
    for process in psutil.process_iter(["name", "cmdline"]):
        if any("RayTrainWorker" in word for word in process.info["cmdline"] or ()):
            process.kill()
            killed.append(process.pid)
            return


def test_two_ranks_train_one_model_and_go_on_from_its_state(tmp_path: Path) -> None:
    import ray

    from workers.distributed import train_on_devices

    data, out = write_sbd(tmp_path / "sbd"), tmp_path / "out"
    ray.init(num_cpus=3, include_dashboard=False)
    try:
        first = train_on_devices(small_run(1), data, out, 2)
        second = train_on_devices(small_run(2), data, out, 2)
        third = train_on_devices(small_run(4), data, out, 2, minutes=1e-6)
    finally:
        ray.shutdown()
    assert first.finished and first.step == 2
    assert not third.finished and third.step == 5
    assert second.finished and second.step == 4 and (out / "simpleclick-xtiny-448.safetensors").exists()


def test_a_run_survives_a_rank_that_is_killed(tmp_path: Path) -> None:
    import ray

    from workers.distributed import train_on_devices

    data, out = write_sbd(tmp_path / "sbd"), tmp_path / "out"
    killed: list[int] = []
    watcher = threading.Thread(target=kill_a_rank_once, args=(out / "state.pt", killed), daemon=True)
    ray.init(num_cpus=3, include_dashboard=False)
    try:
        watcher.start()
        result = train_on_devices(small_run(8), data, out, 2)
    finally:
        ray.shutdown()
    assert len(killed) == 1
    assert result.finished and result.step == 16
    assert (out / "simpleclick-xtiny-448.safetensors").exists()
