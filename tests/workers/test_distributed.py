"""A published run on two devices through Ray Train, on CPUs, with a rank that dies on the way."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.configs.published import PUBLISHED
from tests.pipeline.data.layouts import write_sbd


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_two_ranks_train_one_model_and_go_on_from_its_state(tmp_path: Path) -> None:
    import ray

    from workers.distributed import train_on_devices

    run = PUBLISHED["simpleclick-xtiny-sbd"]()
    run = replace(
        run,
        train=replace(run.train, epochs=1, epoch_samples=4, batch_size=2),
        samples=replace(run.samples, crop_size=(224, 224), min_area=5),
    )
    data, out = write_sbd(tmp_path / "sbd"), tmp_path / "out"
    ray.init(num_cpus=3, include_dashboard=False)
    try:
        first = train_on_devices(run, data, out, 2)
        longer = replace(run, train=replace(run.train, epochs=2))
        second = train_on_devices(longer, data, out, 2)
    finally:
        ray.shutdown()
    assert first.finished and first.step == 2
    assert second.finished and second.step == 4 and (out / "simpleclick-xtiny-448.safetensors").exists()
