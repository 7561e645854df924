"""A training job publishes an adapter, tells how far it is, stops when told, and survives kill -9 of its process."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import fsspec
import numpy as np
import psutil
import pytest
import ray

from pipeline.adapters.files import read_adapter
from pipeline.adapters.scenes import AdapterImage, AdapterTarget
from pipeline.adapters.steps import AdapterConfig
from pipeline.masks.rle import mask_to_rle
from schemas.errors import BadInputError, BusyError, NotFoundError
from schemas.settings import Settings
from tests.s3 import s3_bucket, s3_server  # noqa: F401
from tests.s3_faults import FaultyS3, faulty_s3  # noqa: F401
from tests.workers.campaign import StoredCampaign, click, make_campaign
from workers.cluster import attach
from workers.trainer import EvaluateJob, Trainer, TrainJob

CONFIG = AdapterConfig(max_steps=4, validate_every=2, checkpoint_every=1, objects_per_step=1, max_clicks=2)


def labelled(campaign: StoredCampaign) -> tuple[AdapterImage, ...]:
    """Each image of the campaign with its disc as accepted mask."""
    images = []
    for ref in campaign.images:
        disc = np.zeros((ref.height, ref.width), np.uint8)
        cv2.circle(disc, (ref.width // 2, ref.height // 2), min(ref.height, ref.width) // 4, 1, -1)
        target = AdapterTarget(f"mask of {ref.sha256}", 1, mask_to_rle(disc.astype(bool)), (click(80, 60),))
        images.append(AdapterImage(ref, ref.sha256, (target,)))
    return tuple(images)


def train_job(campaign: StoredCampaign, folder: Path, config: AdapterConfig = CONFIG, job_id: str = "job") -> TrainJob:
    return TrainJob(
        job_id=job_id,
        storage_url=campaign.storage_url,
        model_digest=campaign.pins.model_digest,
        model_key=campaign.pins.model_key,
        parent_digest=None,
        campaign_id="c",
        snapshot_id="s",
        kind="head",
        images=labelled(campaign),
        config=config,
        work_dir=str(folder / "training"),
    )


def evaluate_job(campaign: StoredCampaign, *adapters: str | None) -> EvaluateJob:
    return EvaluateJob(
        job_id="evaluation",
        storage_url=campaign.storage_url,
        model_digest=campaign.pins.model_digest,
        model_key=campaign.pins.model_key,
        adapters=adapters,
        images=labelled(campaign),
    )


@pytest.fixture
def campaign(tmp_path: Path) -> StoredCampaign:
    return make_campaign(tmp_path, images=2)


def test_train_publishes_with_lineage_and_evaluate_compares(campaign: StoredCampaign, tmp_path: Path) -> None:
    trainer, job = Trainer(), train_job(campaign, tmp_path)
    trained = trainer.train(job)
    assert trained.digest is not None and not trained.cancelled and trained.steps == 4
    _, meta = read_adapter(trained.uri)
    assert (meta.model_digest, meta.model_key) == (campaign.pins.model_digest, campaign.pins.model_key)
    assert (meta.snapshot_id, meta.parent_digest, meta.seed) == ("s", None, 0)
    assert trained.metrics["masks"] == 2 and trained.metrics["recorded_clicks"] == 2
    assert trainer.progress()["step"] == 4 and trainer.progress()["job_id"] == "job"

    assert trainer.train(job).digest == trained.digest, "asked again it answers from its checkpoint"
    elsewhere = replace(job, work_dir=str(tmp_path / "other"))
    assert Trainer().train(elsewhere).digest == trained.digest, "same seed, same file"
    assert Trainer().train(replace(job, job_id="2", config=replace(CONFIG, seed=1))).digest != trained.digest

    bare, candidate = trainer.evaluate(evaluate_job(campaign, None, trained.digest))
    assert [o.mask_id for o in bare.objects] == [o.mask_id for o in candidate.objects]
    assert len(bare.recorded) == 2
    assert trainer.progress()["phase"] == "evaluate" and trainer.progress()["adapters"] == 2


def test_training_goes_on_from_the_parent(campaign: StoredCampaign, tmp_path: Path) -> None:
    trainer, job = Trainer(), train_job(campaign, tmp_path)
    first = trainer.train(job)
    second = trainer.train(replace(job, job_id="next", parent_digest=first.digest))
    assert second.digest is not None and second.digest != first.digest
    assert read_adapter(second.uri)[1].parent_digest == first.digest


def test_a_cancelled_training_publishes_nothing_and_keeps_its_place(campaign: StoredCampaign, tmp_path: Path) -> None:
    trainer, job = Trainer(), train_job(campaign, tmp_path, replace(CONFIG, max_steps=2000, patience=2000))
    cancelled: list[int] = []

    def cancel_soon() -> None:
        while trainer.progress().get("step", 0) < 2:
            time.sleep(0.01)
        trainer.cancel("job")
        cancelled.append(trainer.progress()["step"])

    watcher = threading.Thread(target=cancel_soon)
    watcher.start()
    trained = trainer.train(job)
    watcher.join()
    assert trained.cancelled and trained.digest is None
    assert cancelled[0] <= trained.steps <= cancelled[0] + 2
    assert not (Path(campaign.storage_url) / "adapters").exists()
    other = Trainer()
    other.cancel("job")
    assert other.train(job).steps == trained.steps, "the checkpoint is where it goes on"


def test_a_checkpoint_that_does_not_fit_is_left_behind(campaign: StoredCampaign, tmp_path: Path) -> None:
    """The same request tried again after the live adapter changed, or after a damaged disk."""
    trainer, job = Trainer(), train_job(campaign, tmp_path, replace(CONFIG, max_steps=2))
    first = trainer.train(job)
    assert trainer.train(replace(job, parent_digest=first.digest)).digest not in {None, first.digest}
    checkpoint = Path(job.work_dir) / "job.checkpoint"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert trainer.train(job).digest == first.digest


def test_old_checkpoints_go(campaign: StoredCampaign, tmp_path: Path) -> None:
    job = train_job(campaign, tmp_path, replace(CONFIG, max_steps=1))
    folder = Path(job.work_dir)
    folder.mkdir()
    for name, age_days in (("old", 8), ("new", 6)):
        (folder / f"{name}.checkpoint").touch()
        os.utime(folder / f"{name}.checkpoint", (time.time() - 86400 * age_days,) * 2)
    Trainer().train(job)
    assert {path.stem for path in folder.glob("*.checkpoint")} == {"new", "job"}


def test_a_cancelled_evaluation_gives_what_it_has(campaign: StoredCampaign) -> None:
    trainer = Trainer()
    trainer.cancel("evaluation")
    assert trainer.evaluate(evaluate_job(campaign, None, None)) == ()


def test_a_job_that_was_cancelled_can_be_given_again(campaign: StoredCampaign, tmp_path: Path) -> None:
    trainer, job = Trainer(), train_job(campaign, tmp_path)
    trainer.cancel("job")
    assert trainer.train(job).cancelled
    assert trainer.train(job).steps == CONFIG.max_steps
    trainer.cancel("evaluation")
    assert trainer.evaluate(evaluate_job(campaign, None)) == ()
    assert len(trainer.evaluate(evaluate_job(campaign, None))) == 1


def test_images_that_are_gone_or_changed_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    campaign = make_campaign(tmp_path, images=4)
    gone, changed = Path(campaign.images[0].uri), Path(campaign.images[2].uri)
    gone.unlink()
    changed.write_bytes(changed.read_bytes() + b"more")
    trainer, job = Trainer(), train_job(campaign, tmp_path)
    trained = trainer.train(job)
    assert trained.digest is not None
    assert {name: trained.metrics[name] for name in ("images", "unreadable", "masks")} == {
        "images": 2, "unreadable": 2, "masks": 2,
    }  # fmt: skip
    assert "2 of 4 images are left out" in caplog.text and f"{gone} is gone" in caplog.text
    whole = replace(job, images=(job.images[1], job.images[3]), work_dir=str(tmp_path / "whole"))
    assert Trainer().train(whole).digest == trained.digest

    readable = [image.targets[0].mask_id for image in whole.images]
    for report in trainer.evaluate(evaluate_job(campaign, None, trained.digest)):
        assert [found.mask_id for found in report.objects] == readable
    (report,) = trainer.evaluate(replace(evaluate_job(campaign, None), max_masks=1))
    assert [found.mask_id for found in report.objects] == readable[:1]
    with pytest.raises(BadInputError, match=r"None of the images .* is gone"):
        trainer.train(replace(job, images=job.images[:1]))


def test_the_limit_of_pixels_is_the_settings(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path, images=1)
    job, pixels = train_job(campaign, tmp_path), campaign.images[0].width * campaign.images[0].height
    with pytest.raises(BadInputError, match="CLICKLOOP_MAX_IMAGE_PIXELS"):
        Trainer(max_image_pixels=pixels - 1).train(job)
    assert Trainer(max_image_pixels=pixels).train(job).digest is not None


def test_refused_jobs(campaign: StoredCampaign, tmp_path: Path) -> None:
    job = train_job(campaign, tmp_path)
    with pytest.raises(BadInputError, match="no accepted mask"):
        Trainer().train(replace(job, images=()))
    with pytest.raises(BadInputError, match="no adapter of kind"):
        Trainer().train(replace(job, kind="nose"))
    with pytest.raises(NotFoundError):
        Trainer().train(replace(job, parent_digest="0" * 64))
    with pytest.raises(NotFoundError):
        Trainer().evaluate(evaluate_job(campaign, "0" * 64))


@pytest.mark.s3
def test_an_object_store_is_waited_for_as_long_as_the_settings_say(
    campaign: StoredCampaign,
    tmp_path: Path,
    s3_bucket: str,  # noqa: F811
    faulty_s3: FaultyS3,  # noqa: F811
) -> None:
    fsspec.filesystem("s3").put(campaign.storage_url, f"{s3_bucket}/storage", recursive=True)
    job = replace(train_job(campaign, tmp_path), storage_url=f"{s3_bucket}/storage")
    faulty_s3.go_away("cut", count=6)
    with pytest.raises(BusyError, match="Training failed, the storage does not answer"):
        Trainer(cache_dir=str(tmp_path / "cache"), storage_wait_s=0.0).train(job)
    trainer, said = Trainer(cache_dir=str(tmp_path / "cache"), storage_wait_s=60.0), []

    def come_back_once_it_is_said() -> None:
        while not said:
            time.sleep(0.01)
            said.extend(why for name, why in trainer.progress().items() if name == "waiting_for")
        faulty_s3.come_back()

    faulty_s3.go_away("cut")
    watcher = threading.Thread(target=come_back_once_it_is_said)
    watcher.start()
    assert trainer.train(job).steps == CONFIG.max_steps
    watcher.join()
    assert said[0].startswith("the storage: ")


@pytest.mark.ray
def test_a_killed_trainer_resumes(ray_workers: Settings, campaign: StoredCampaign, tmp_path: Path) -> None:
    """kill -9 in mid-training: the actor comes back, the call is made again and ends in the same file."""
    job = train_job(campaign, tmp_path, replace(CONFIG, max_steps=60, validate_every=30), "killed")
    try:
        trainer = attach(ray_workers).trainer()
        answer = trainer.train.remote(job)
        while ray.get(trainer.progress.remote(), timeout=60).get("step", 0) < 10:
            time.sleep(0.02)
        os.kill(process_of("Trainer"), signal.SIGKILL)
        steps = []
        while not ray.wait([answer], timeout=0.02)[0]:
            steps.append(ray.get(trainer.progress.remote(), timeout=60).get("step"))
        trained = ray.get(answer)
        assert trained.steps == 60
        assert min(step for step in steps if step is not None) >= 10, "it did not start again from the beginning"
        ray.kill(trainer)
    finally:
        ray.shutdown()
    whole = Trainer().train(replace(job, work_dir=str(tmp_path / "whole")))
    assert trained.digest == whole.digest


def process_of(actor: str) -> int:
    """Process id of the actor of that class."""
    for process in psutil.process_iter(["cmdline"]):
        if any(part.startswith(f"ray::{actor}") for part in process.info["cmdline"] or []):
            return process.pid
    raise AssertionError(f"no process of {actor}")
