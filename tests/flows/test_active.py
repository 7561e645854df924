"""Prelabel and order against real actors: what a model finds is proposed once, and the queue follows a score."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import ray

from flows.jobs import JobStoppedError, new_job
from flows.order import order_flow
from flows.prelabel import prelabel_flow
from flows.services import Services
from pipeline.evaluation.metrics import iou
from pipeline.masks.rle import rle_to_mask
from pipeline.ordering import SECONDS_PER_MASK
from pipeline.storage import images, masks, requests, tasks
from pipeline.storage.database import open_database
from schemas.campaigns import CampaignRecord
from schemas.catalogue import MaskRecord
from schemas.settings import Settings
from tests.flows.scenes import make_campaign, write_pictures

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("prefect"), pytest.mark.timeout(300)]
GRID = 4


@pytest.fixture
def services(ray_workers: Settings, tmp_path: Path) -> Iterator[Services]:
    """A catalogue of its own beside the session's actors, which share the storage."""
    database = open_database(f"sqlite:///{tmp_path / 'catalogue.db'}")
    made = Services(ray_workers, database, beside_serve=True)
    yield made
    made.close()
    database.close()
    ray.shutdown()


def prelabel(services: Services, **options: Any) -> dict[str, Any]:
    with new_job(services, "prelabel", "discs", {}):
        return prelabel_flow("discs", **{"grid": GRID, **options})


def order(services: Services, by: Any, seed: int = 0) -> tuple[dict[str, Any], list[str]]:
    """The result, and file names as they would be handed out."""
    with new_job(services, "order", "discs", {}):
        result = order_flow("discs", by, seed)
    with services.database.connect() as conn:
        return result, [image.file_name for image in tasks.peek_tasks(conn, services.campaign("discs").id, 100)]


def proposals(services: Services, campaign: CampaignRecord) -> dict[str, list[MaskRecord]]:
    """By file name."""
    with services.database.connect() as conn:
        return {
            image.file_name: masks.proposed_masks(conn, campaign.id, image.id)
            for image in images.images_of(conn, campaign.id)
        }


def test_prelabel_proposes_the_discs_once_and_sets_apart_what_cannot_be_read(
    services: Services, tmp_path: Path
) -> None:
    source = write_pictures(tmp_path, 5, seed=42)
    campaign = make_campaign(services.settings, services.database, source, holdout_fraction=0.0)
    (source / "5.png").write_bytes((source / "4.png").read_bytes())  # it is not what was ingested any more
    result = prelabel(services, limit=3)
    assert {"images": 3, "new_images": 3, "failed": 0}.items() <= result.items()
    result = prelabel(services)
    assert {"images": 1, "new_images": 2, "failed": 1, "model_digest": campaign.model_digest}.items() <= result.items()
    assert "changed" in result["reasons"]["5.png"]
    found = proposals(services, campaign)
    for number in range(1, 5):
        picture = cv2.imread(str(source / f"{number}.png"))
        assert picture is not None
        disc = picture.mean(2) < 150
        assert max(iou(disc, rle_to_mask(mask.rle)) for mask in found[f"{number}.png"]) > 0.8
    every = [mask for own in found.values() for mask in own]
    assert {(m.model_digest, m.adapter_digest, m.category_number) for m in every} == {(campaign.model_digest, None, 1)}
    again = prelabel(services)
    assert {"images": 0, "stored": 0, "failed": 1}.items() <= again.items()
    assert proposals(services, campaign) == found


def test_a_cancelled_prelabel_goes_on_where_it_ended(services: Services, tmp_path: Path) -> None:
    campaign = make_campaign(
        services.settings, services.database, write_pictures(tmp_path, 12, seed=43), holdout_fraction=0.0
    )

    def cancel(progress: dict[str, Any]) -> None:
        if progress.get("done") == 2:
            with services.database.begin() as conn:
                requests.cancel_request(conn, job.request.id)
            job.beat()

    with pytest.raises(JobStoppedError), new_job(services, "prelabel", "discs", {}, on_progress=cancel) as job:
        prelabel_flow("discs", grid=GRID)
    with services.database.connect() as conn:
        assert requests.get_request(conn, job.request.id).state == "cancelled"
    before = {name: own for name, own in proposals(services, campaign).items() if own}
    assert 0 < len(before) < 12
    result = prelabel(services)
    assert result["images"] == 12 - len(before) and result["failed"] == 0
    after = proposals(services, campaign)
    assert all(after.values()) and {name: after[name] for name in before} == before


def test_a_killed_worker_costs_no_image(services: Services, tmp_path: Path) -> None:
    make_campaign(services.settings, services.database, write_pictures(tmp_path, 6, seed=44), holdout_fraction=0.0)
    for encoder in services.pool().encoders.values():
        ray.kill(encoder, no_restart=False)
    assert {"images": 6, "failed": 0}.items() <= prelabel(services).items()


def test_new_tasks_are_handed_out_by_their_score(services: Services, tmp_path: Path) -> None:
    source = write_pictures(tmp_path, 6, seed=45)
    red = np.full((96, 128, 3), (20, 20, 220), np.uint8)  # like none of the others
    assert cv2.imwrite(str(source / "9.png"), red)
    campaign = make_campaign(services.settings, services.database, source, holdout_fraction=0.0)
    plain = [f"{number}.png" for number in (1, 2, 3, 4, 5, 6, 9)]
    for by in ("uncertainty", "gain", "mixed", "diversity"):
        result, queue = order(services, by, seed=7)
        assert sorted(queue) == plain
        assert result | {"score": f"{by}-v1", "seed": 7, "tasks": 7, "failed": 0, "first": queue[:5]} == result
        assert (result["model_digest"], result["adapter_digest"]) == (campaign.model_digest, None)
        assert result["seconds_per_mask"] == SECONDS_PER_MASK  # nothing was measured yet
        assert order(services, by, seed=7) == (result, queue)
    assert "9.png" in queue[:2]  # whatever is drawn first, the red one is the farthest from it
    assert order(services, "plain")[1] == plain


def test_an_order_leaves_tasks_that_cannot_be_looked_at_to_the_end(services: Services, tmp_path: Path) -> None:
    source = write_pictures(tmp_path, 3, seed=46)
    make_campaign(services.settings, services.database, source, holdout_fraction=0.0)
    (source / "1.png").write_bytes(b"no image")
    result, queue = order(services, "uncertainty")
    assert (result["tasks"], result["failed"], queue[-1]) == (2, 1, "1.png")
