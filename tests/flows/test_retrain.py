"""How a retrain ends: what the gate says, what the refiners load, what becomes live. (test_loop has a whole one.)"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from sqlalchemy import update

from flows.jobs import JobStoppedError, new_job
from flows.retrain import conclude, evaluate, take_snapshot, train
from flows.services import Services
from pipeline.adapters.evaluate import AdapterReport, EvaluationConfig
from pipeline.adapters.files import AdapterMeta
from pipeline.adapters.gate import ObjectResult
from pipeline.adapters.kinds import adapter_tensors
from pipeline.adapters.steps import AdapterConfig
from pipeline.adapters.stored import publish_adapter
from pipeline.models import load_model
from pipeline.storage import adapters, requests
from pipeline.storage.database import open_database
from pipeline.storage.images import images_of
from pipeline.storage.snapshots import create_snapshot
from schemas.campaigns import CampaignRecord
from schemas.errors import BadInputError, BusyError, NotFoundError
from schemas.settings import Settings
from schemas.tables import Image
from tests.flows.scenes import make_campaign, write_pictures
from tests.pipeline.storage.catalogues import store_import

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture
def services(ray_workers: Settings, tmp_path: Path) -> Iterator[Services]:
    database = open_database(f"sqlite:///{tmp_path / 'catalogue.db'}")
    made = Services(ray_workers, database, beside_serve=True)
    make_campaign(ray_workers, database, write_pictures(tmp_path, 2))
    yield made
    made.close()
    database.close()
    ray.shutdown()


def report(noc: float) -> AdapterReport:
    """40 held-out objects on 10 images that all took so many clicks."""
    objects = tuple(ObjectResult(str(i), str(i % 10), 1, noc, clicks=3) for i in range(40))
    return AdapterReport(objects, ((0.9,),) * 40, (), EvaluationConfig())


def register(services: Services, campaign: CampaignRecord, seed: int, published: bool = True) -> str:
    """A candidate: toy-color's own head, in the storage."""
    model = load_model("toy-color")
    meta = AdapterMeta("head", model.model_id, campaign.model_digest, campaign.model_key, seed=seed)
    digest, uri = f"{seed:064x}", ""
    if published:
        digest, uri, _ = publish_adapter(services.storage_url, adapter_tensors(model, "head"), meta, {})
    with services.database.begin() as conn:
        adapters.register_adapter(
            conn, digest=digest, campaign_id=campaign.id, kind="head", uri=uri, model_digest=campaign.model_digest,
            model_key=campaign.model_key, parent_digest=campaign.live_adapter, snapshot_id=None, seed=seed,
        )  # fmt: skip
    return digest


def end(services: Services, digest: str, live: float, candidate: float, promote: str = "auto") -> dict[str, Any]:
    campaign = services.campaign("discs")
    with new_job(services, "retrain", "discs", {}):
        return conclude.fn(campaign, digest, report(live), report(candidate), promote)


def test_a_better_adapter_goes_live_and_can_be_rolled_back(services: Services) -> None:
    digest = register(services, services.campaign("discs"), seed=1)
    assert end(services, digest, live=9.0, candidate=5.0)["outcome"] == "promoted"
    campaign = services.campaign("discs")
    assert (campaign.live_adapter, campaign.live_version) == (digest, 1)
    with services.database.begin() as conn:
        record = adapters.get_adapter(conn, digest)
        assert (record.state, record.gate["promote"]) == ("promoted", True)
        assert adapters.rollback(conn, campaign.id) == (2, None)


def test_no_better_or_not_asked_for_changes_nothing(services: Services) -> None:
    campaign = services.campaign("discs")
    worse = end(services, register(services, campaign, seed=1), live=5.0, candidate=5.0)
    assert worse["outcome"] == "rejected" and worse["reasons"]
    agreed = end(services, register(services, campaign, seed=2), live=9.0, candidate=5.0, promote="never")
    assert agreed["outcome"] == "agreed"
    assert services.campaign("discs").live_version == 0


def test_what_the_refiners_cannot_load_never_goes_live(services: Services) -> None:
    digest = register(services, services.campaign("discs"), seed=3, published=False)
    with pytest.raises(NotFoundError):
        end(services, digest, live=9.0, candidate=5.0)
    assert services.campaign("discs").live_version == 0


def test_a_promotion_meanwhile_wins(services: Services) -> None:
    seen = services.campaign("discs")
    first, second = (register(services, seen, seed=seed) for seed in (1, 2))
    assert end(services, first, live=9.0, candidate=5.0)["outcome"] == "promoted"
    with new_job(services, "retrain", "discs", {}):
        late = conclude.fn(seen, second, report(9.0), report(4.0), "auto")
    assert late["outcome"] == "rejected" and "live by now" in late["reasons"][0]
    assert services.campaign("discs").live_adapter == first


def label(services: Services, campaign: CampaignRecord) -> None:
    """An accepted mask on each image."""
    with services.database.begin() as conn:
        for image in images_of(conn, campaign.id):
            disc = np.zeros((image.height, image.width), np.bool_)
            disc[20:60, 30:80] = True
            store_import(conn, image.id, disc)


def stopped(services: Services, step: Callable[..., Any], *args: Any) -> None:
    """A step of a retrain whose trainer was told to stop."""
    with new_job(services, "retrain", "discs", {}) as job:
        ray.get(services.pool().trainer().cancel.remote(job.request.id))
        step(*args)


def test_a_trainer_that_somebody_else_stopped_leaves_no_adapter(services: Services) -> None:
    campaign = services.campaign("discs")
    label(services, campaign)
    with services.database.begin() as conn:
        snapshot = create_snapshot(conn, campaign.id, "retrain", {"holdout": False})
    trainer = services.pool().trainer()
    with pytest.raises(BusyError, match="Training was stopped"):
        stopped(services, train.fn, campaign, snapshot.id, AdapterConfig(max_steps=1))
    with services.database.begin() as conn:
        assert adapters.list_adapters(conn, campaign.id) == []
        conn.execute(update(Image).values(holdout=True))
    with pytest.raises(BusyError, match="Evaluating was stopped"):
        stopped(services, evaluate.fn, campaign, register(services, campaign, seed=1))
    ray.kill(trainer)


def cancel_with_a_paused_trainer(services: Services, then_kill: bool) -> None:
    """Cancel a training whose trainer hangs; it may also die before it has heard of that."""
    campaign = services.campaign("discs")
    label(services, campaign)
    trainer = services.pool().trainer()
    pid = ray.get(trainer.__ray_call__.remote(lambda actor: os.getpid()))
    endless = AdapterConfig(max_steps=10**6, patience=10**6)

    def cancel() -> None:
        while ray.get(trainer.progress.remote()).get("step", 0) < 1:
            time.sleep(0.1)
        os.kill(pid, signal.SIGSTOP)
        with services.database.begin() as conn:
            requests.cancel_request(conn, job.request.id)
        time.sleep(6.0)  # the next heartbeat tells the job of it
        if then_kill:
            os.kill(pid, signal.SIGKILL)

    threading.Thread(target=cancel).start()
    try:
        with pytest.raises(JobStoppedError), new_job(services, "retrain", "discs", {}) as job:
            train.fn(campaign, take_snapshot.fn(campaign).id, endless)
        with services.database.connect() as conn:
            assert requests.get_request(conn, job.request.id).state == "cancelled"
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_cancel_does_not_wait_for_a_trainer_that_hangs(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.retrain.HANGS_S", 5.0)
    cancel_with_a_paused_trainer(services, then_kill=False)
    again = services.pool().trainer()
    assert ray.get(again.progress.remote(), timeout=120) == {}, "the next job has another one"
    ray.kill(again)


def test_a_trainer_that_died_after_the_cancel_is_told_again(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.retrain.HANGS_S", 1000.0)
    cancel_with_a_paused_trainer(services, then_kill=True)
    ray.kill(services.pool().trainer())


def test_the_trainer_has_the_limit_of_pixels_of_the_settings(services: Services) -> None:
    campaign = services.campaign("discs")
    label(services, campaign)
    services.settings = services.settings.model_copy(update={"max_image_pixels": 10})
    with pytest.raises(BadInputError, match="limit of 10"), new_job(services, "retrain", "discs", {}):
        train.fn(campaign, take_snapshot.fn(campaign).id, AdapterConfig(max_steps=1))
