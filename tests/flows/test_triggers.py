"""A campaign's triggers request one retrain when they should, and none otherwise; on both databases."""

import pytest

from flows.triggers import fire_triggers
from pipeline.storage import requests
from pipeline.storage.campaigns import set_campaign_state
from pipeline.storage.click_log import Effects, InstanceChange
from pipeline.storage.database import Database
from pipeline.storage.images import quarantine_image
from pipeline.storage.snapshots import create_snapshot
from schemas.campaigns import CampaignSettings, Claim, RequestRecord
from tests.databases import (  # noqa: F401
    database,
    database_url,
    empty_url,
    migrated_sqlite,
    postgres_database,
    postgres_server,
    sqlite_database,
)
from tests.pipeline.storage.catalogues import SHA, Catalogue, event, new_mask, new_uuid

EVERY_TWO = CampaignSettings(retrain_every_masks=2, holdout_fraction=0.0)


def retrains(catalogue: Catalogue) -> list[RequestRecord]:
    with catalogue.database.connect() as conn:
        return [r for r in requests.list_requests(conn, catalogue.campaign_id) if r.kind == "retrain"]


def test_enough_new_masks_request_one_retrain(database: Database) -> None:  # noqa: F811
    catalogue = Catalogue(database, images=5, settings=EVERY_TWO)
    catalogue.label(catalogue.claim())
    assert fire_triggers(database) == []
    catalogue.label(catalogue.claim())
    assert fire_triggers(database) == [catalogue.campaign_id]
    catalogue.label(catalogue.claim())
    catalogue.label(catalogue.claim())
    assert fire_triggers(database) == []  # one is active
    assert [r.state for r in retrains(catalogue)] == ["queued"]


def test_masks_count_since_a_retrain_that_failed(database: Database) -> None:  # noqa: F811
    catalogue = Catalogue(database, images=5, settings=EVERY_TWO)
    for _ in range(2):
        catalogue.label(catalogue.claim())
    fire_triggers(database)
    with database.begin() as conn:
        claimed = requests.claim_request(conn, "me")
        assert claimed is not None
        requests.finish_request(conn, claimed.id, "me", "failed", error="it failed")
    assert fire_triggers(database) == []  # a failing retrain is not repeated at once
    for _ in range(2):
        catalogue.label(catalogue.claim())
    assert fire_triggers(database) == [catalogue.campaign_id]


@pytest.mark.parametrize("settings", [CampaignSettings(), CampaignSettings(retrain_every_s=3600.0)])
def test_without_a_trigger_or_before_its_time_nothing_happens(
    database: Database,  # noqa: F811
    settings: CampaignSettings,
) -> None:
    catalogue = Catalogue(database, images=3, settings=settings)
    catalogue.label(catalogue.claim())
    assert fire_triggers(database) == []


def test_time_triggers_only_when_there_are_new_masks(database: Database) -> None:  # noqa: F811
    settings = CampaignSettings(retrain_every_s=0.001, holdout_fraction=0.0)
    catalogue = Catalogue(database, images=3, settings=settings)
    assert fire_triggers(database) == []
    catalogue.label(catalogue.claim())
    assert fire_triggers(database) == [catalogue.campaign_id]


def test_held_out_masks_and_paused_campaigns_trigger_nothing(database: Database) -> None:  # noqa: F811
    held_out = Catalogue(database, images=3, settings=EVERY_TWO.model_copy(update={"holdout_fraction": 0.9}))
    paused = Catalogue(database, images=3, settings=EVERY_TWO)
    for catalogue in (held_out, paused):
        for _ in range(2):
            claim = catalogue.claim()
            if catalogue is paused or claim.image.holdout:
                catalogue.label(claim)
    with database.begin() as conn:
        set_campaign_state(conn, paused.campaign_id, "paused")
    assert fire_triggers(database) == []


def accept(catalogue: Catalogue, claim: Claim, masks: int) -> int:
    """Accept so many masks in a session that stays open; returns the number of its next event."""
    for seq in range(1, 3 * masks, 3):
        instance = new_uuid()
        catalogue.append(
            claim, event(claim, seq, "open", instance_id=instance, payload={"mask_id": None}),
            effects=Effects([InstanceChange(instance)]),
        )  # fmt: skip
        catalogue.append(claim, event(claim, seq + 1, instance_id=instance))
        mask = new_mask(instance, seq + 1)
        payload = {"seq": seq + 1, "mask_sha256": SHA}
        catalogue.append(
            claim, event(claim, seq + 2, "accept", instance_id=instance, payload=payload),
            effects=Effects([InstanceChange(instance, "accepted", 1, mask_id=mask.mask_id)], mask),
        )  # fmt: skip
    return 3 * masks + 1


def retrain(catalogue: Catalogue, state: str = "done", kind: str = "retrain", looks: bool = True) -> None:
    """Claim the waiting request of that kind, let it take its snapshot (if it gets so far) and end."""
    with catalogue.database.begin() as conn:
        waiting = [r for r in requests.list_requests(conn, catalogue.campaign_id) if r.state == "queued"]
        (request_id,) = (r.id for r in waiting if r.kind == kind)
        assert requests.claim_request(conn, "me", request_id=request_id) is not None
        if looks:
            create_snapshot(conn, catalogue.campaign_id, "retrain", {"holdout": False})
        requests.finish_request(conn, request_id, "me", state)


@pytest.mark.parametrize(
    "settings", [EVERY_TWO, CampaignSettings(retrain_every_s=0.001, holdout_fraction=0.0)], ids=["masks", "time"]
)
def test_masks_count_once_their_session_is_submitted(database: Database, settings: CampaignSettings) -> None:  # noqa: F811
    catalogue = Catalogue(database, images=3, settings=settings)
    claim = catalogue.claim()
    last = accept(catalogue, claim, masks=2)
    assert fire_triggers(database) == []  # a retrain would not see them
    with database.begin() as conn:
        create_snapshot(conn, catalogue.campaign_id, "retrain", {"holdout": False})
    catalogue.append(claim, event(claim, last, "submit"))
    assert fire_triggers(database) == [catalogue.campaign_id]
    retrain(catalogue)
    assert fire_triggers(database) == []


def test_what_is_labeled_while_a_retrain_waits_is_part_of_it(database: Database) -> None:  # noqa: F811
    catalogue = Catalogue(database, images=8, settings=EVERY_TWO)
    for _ in range(2):
        catalogue.label(catalogue.claim())
    assert fire_triggers(database) == [catalogue.campaign_id]
    for _ in range(2):
        catalogue.label(catalogue.claim())
    retrain(catalogue)
    assert fire_triggers(database) == []
    for _ in range(2):
        catalogue.label(catalogue.claim())
    assert fire_triggers(database) == [catalogue.campaign_id]


def test_a_retrain_among_a_campaigns_steps_counts(database: Database) -> None:  # noqa: F811
    catalogue = Catalogue(database, images=3, settings=EVERY_TWO)
    for _ in range(2):
        catalogue.label(catalogue.claim())
    with database.begin() as conn:
        requests.insert_request(conn, new_uuid(), "campaign", catalogue.campaign_id, {})
    retrain(catalogue, kind="campaign")
    assert fire_triggers(database) == []


def test_a_cancelled_retrain_is_not_repeated_at_once(database: Database) -> None:  # noqa: F811
    catalogue = Catalogue(database, images=8, settings=EVERY_TWO)
    for looks in (False, True):
        for _ in range(2):
            catalogue.label(catalogue.claim())
        assert fire_triggers(database) == [catalogue.campaign_id]
        retrain(catalogue, "cancelled", looks=looks)
        assert fire_triggers(database) == []
    catalogue.label(catalogue.claim())
    assert fire_triggers(database) == []
    for _ in range(2):  # one that waited while more was labeled
        catalogue.label(catalogue.claim())
    assert fire_triggers(database) == [catalogue.campaign_id]
    with database.begin() as conn:
        (waiting,) = (r for r in requests.list_requests(conn, catalogue.campaign_id) if r.state == "queued")
        requests.cancel_request(conn, waiting.id)
    assert fire_triggers(database) == []


def test_replaced_masks_and_quarantined_images_do_not_count(database: Database) -> None:  # noqa: F811
    catalogue = Catalogue(database, images=3, settings=EVERY_TWO)
    first = catalogue.claim()
    made = catalogue.label(first)
    catalogue.label(catalogue.claim(image_id=first.image.id), opened=made.mask_id)
    assert fire_triggers(database) == []
    claim = catalogue.claim()
    catalogue.label(claim)
    with database.begin() as conn:
        quarantine_image(conn, claim.image.id, "it cannot be read")
    assert fire_triggers(database) == []
    catalogue.label(catalogue.claim())
    assert fire_triggers(database) == [catalogue.campaign_id]
