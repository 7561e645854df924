"""Precompute against real encoder actors: everything once, what is poison apart, nothing twice."""

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
from sqlalchemy import Connection

from flows.jobs import JobStoppedError, new_job
from flows.precompute import MAX_ATTEMPTS, precompute_flow
from flows.services import Services
from pipeline.storage import images
from pipeline.storage.database import open_database
from schemas.campaigns import CampaignRecord
from schemas.settings import Settings
from tests.flows.scenes import make_campaign, write_pictures

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("prefect"), pytest.mark.timeout(300)]


@pytest.fixture
def services(ray_workers: Settings, tmp_path: Path) -> Iterator[Services]:
    """A catalogue of its own beside the session's actors, which share the storage."""
    database = open_database(f"sqlite:///{tmp_path / 'catalogue.db'}")
    made = Services(ray_workers, database, beside_serve=True)
    yield made
    made.close()
    database.close()
    ray.shutdown()


def precompute(services: Services) -> dict[str, Any]:
    with new_job(services, "precompute", "discs", {}):
        return precompute_flow("discs")


def missing(services: Services, campaign: CampaignRecord) -> list[str]:
    with services.database.connect() as conn:
        return [i.file_name for i in images.missing_embeddings(conn, campaign.id, campaign.model_key, 100)]


def test_everything_is_encoded_once_and_poison_is_set_apart(services: Services, tmp_path: Path) -> None:
    source = write_pictures(tmp_path, 8, seed=os.getpid())
    campaign = make_campaign(services.settings, services.database, source)
    (source / "3.png").write_bytes((source / "4.png").read_bytes())  # it is not what was ingested any more
    with services.database.begin() as conn:
        by_name = {image.file_name: image for image in images.images_of(conn, campaign.id)}
        for _ in range(MAX_ATTEMPTS):  # as when its encoder was killed each time
            images.note_encode_attempt(conn, [by_name["5.png"].id])
        images.note_encode_attempt(conn, [by_name["6.png"].id])
    result = precompute(services)
    assert {"encoded": 6, "already": 0, "quarantined": 2}.items() <= result.items()
    assert result["images_per_s"] > 0
    assert missing(services, campaign) == []
    with services.database.connect() as conn:
        reasons = {i.file_name: i.quarantine_reason for i in images.images_of(conn, campaign.id) if i.quarantine_reason}
    assert set(reasons) == {"3.png", "5.png"}
    assert "changed" in str(reasons["3.png"]) and f"failed {MAX_ATTEMPTS} times" in str(reasons["5.png"])

    assert {"encoded": 0, "already": 6, "quarantined": 0}.items() <= precompute(services).items()
    with services.database.begin() as conn:
        images.forget_embedding(conn, by_name["1.png"].sha256, campaign.model_key)
    assert {"encoded": 0, "already": 6}.items() <= precompute(services).items()  # the store has it still
    assert missing(services, campaign) == []


def test_a_killed_encoder_costs_no_image(services: Services, tmp_path: Path) -> None:
    campaign = make_campaign(services.settings, services.database, write_pictures(tmp_path, 40, seed=os.getpid() + 1))
    for encoder in services.pool().encoders.values():
        ray.kill(encoder, no_restart=False)
    assert {"encoded": 40, "quarantined": 0}.items() <= precompute(services).items()
    assert missing(services, campaign) == []


def test_stopping_again_and_again_costs_no_image(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = make_campaign(services.settings, services.database, write_pictures(tmp_path, 4, seed=os.getpid() + 2))
    note, stopping = images.note_encode_attempt, threading.Event()

    def note_and_stop(conn: Connection, image_ids: Sequence[str]) -> dict[str, int]:
        stopping.set()
        return note(conn, image_ids)

    for _ in range(MAX_ATTEMPTS + 1):
        stopping.clear()
        with monkeypatch.context() as patched:
            patched.setattr(images, "note_encode_attempt", note_and_stop)
            with pytest.raises(JobStoppedError), new_job(services, "precompute", "discs", {}, stopping=stopping):
                precompute_flow("discs")
    assert precompute(services)["quarantined"] == 0
    assert missing(services, campaign) == []
