"""A campaign's triggers request one retrain when they should, and none otherwise; on both databases."""

import pytest

from flows.triggers import fire_triggers
from pipeline.storage import requests
from pipeline.storage.campaigns import set_campaign_state
from pipeline.storage.database import Database
from schemas.campaigns import CampaignSettings, RequestRecord
from tests.databases import (  # noqa: F401
    database,
    database_url,
    empty_url,
    migrated_sqlite,
    postgres_database,
    postgres_server,
    sqlite_database,
)
from tests.pipeline.storage.catalogues import Catalogue

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


def test_masks_count_since_the_last_retrain_was_asked_for(database: Database) -> None:  # noqa: F811
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
