"""A published run on several devices at once: Ray Train starts the ranks, `torch.distributed` joins them.

The run's state lies in its output folder; when a rank dies, Ray Train starts all again and they go on from there.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pipeline.configs.published import PublishedRun, open_scenes, train_published
from pipeline.training.trainer import TrainResult
from schemas.errors import BadInputError

_RESULT = "result.json"
_FAILURES = 3
"""Restarts after ranks that died."""


def train_on_devices(
    run: PublishedRun,
    data: Path,
    out: Path,
    devices: int,
    resume: Path | None = None,
    use_gpu: bool = False,
    minutes: float | None = None,
) -> TrainResult:
    """Train on several devices with the same configuration as on one; batches are shared out over them.

    Args:
        run: What to train.
        data: The data set's folder, the same on every node.
        out: Folder of state, log and weights, the same on every node.
        devices: Ranks.
        resume: See `train_published`.
        use_gpu: One GPU a rank; else one CPU.
        minutes: Stop in time and save; ranks that start again after one died have them anew.

    Raises:
        BadInputError: The folder is not laid out as the data set is, or batches cannot be shared out.
    """
    if run.train.batch_size % devices:
        raise BadInputError(f"A batch of {run.train.batch_size} cannot be shared out over {devices} devices.")
    open_scenes(data, run.data)  # a rank would say so thrice, in a traceback
    out.mkdir(parents=True, exist_ok=True)
    trainer = TorchTrainer(
        _rank,
        train_loop_config={
            "run": run,
            "data": str(data),
            "out": str(out),
            "resume": str(resume) if resume else None,
            "minutes": minutes,
        },
        scaling_config=ScalingConfig(num_workers=devices, use_gpu=use_gpu),
        run_config=RunConfig(
            name="clickloop", storage_path=str(out.resolve()), failure_config=FailureConfig(max_failures=_FAILURES)
        ),
    )
    (out / _RESULT).unlink(missing_ok=True)
    trainer.fit()
    told = json.loads((out / _RESULT).read_text())
    return TrainResult(**{**told, "state_path": Path(told["state_path"])})


def _rank(config: dict[str, Any]) -> None:
    """Body of a rank: from the run's own state where there is one, else from what was asked for."""
    out = Path(config["out"])
    state = out / "state.pt"
    resume = state if state.exists() else Path(config["resume"]) if config["resume"] else None
    result = train_published(config["run"], Path(config["data"]), out, resume, config["minutes"])
    if ray.train.get_context().get_world_rank() == 0:
        (out / _RESULT).write_text(json.dumps(asdict(result), default=str))
