"""Campaigns, categories and their figures."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import update

from pipeline.storage.campaigns import (
    add_categories,
    campaign_status,
    create_campaign,
    get_campaign,
    list_campaigns,
    set_campaign_state,
    weights_in_use,
)
from pipeline.storage.database import Database
from pipeline.storage.images import add_quarantined, quarantine_image, record_embeddings
from pipeline.storage.requests import insert_request
from schemas.campaigns import CampaignRecord, CampaignSettings
from schemas.errors import BadInputError, ConflictError, NotFoundError
from schemas.tables import Campaign, Session
from tests.pipeline.storage.catalogues import SHA, Catalogue, event, new_uuid, sha


def _create(database: Database, **changes: object) -> CampaignRecord:
    values = {
        "campaign_id": new_uuid(),
        "name": "cells",
        "source_url": "/images",
        "model_id": "toy-color",
        "model_digest": SHA,
        "model_key": "key",
        "labels": ["b", "a", "b"],
        "settings": CampaignSettings(seed=3),
        **changes,
    }
    with database.begin() as conn:
        return create_campaign(conn, **values)  # type: ignore[arg-type]


def test_campaign_pins_its_model_and_numbers_its_labels_from_one(database: Database) -> None:
    made = _create(database)
    assert (made.state, made.live_adapter, made.live_version) == ("active", None, 0)
    assert [(c.number, c.name) for c in made.categories] == [(1, "b"), (2, "a")]
    assert made.settings == CampaignSettings(seed=3)
    with database.connect() as conn:
        assert get_campaign(conn, made.id) == get_campaign(conn, "cells") == made
        assert list_campaigns(conn) == [made]


def test_creating_again_is_safe_and_anything_else_a_conflict(database: Database) -> None:
    made = _create(database)
    assert _create(database, campaign_id=made.id) == made
    with pytest.raises(ConflictError, match="already"):
        _create(database)
    with pytest.raises(ConflictError, match="model_digest") as caught:
        _create(database, campaign_id=made.id, model_digest="cd" * 32)
    assert caught.value.details == {"different": ["model_digest"]}


@pytest.mark.parametrize(
    "bad",
    [
        {"name": ""},
        {"name": " "},
        {"name": "x" * 201},
        {"name": "a/b"},
        {"name": "."},
        {"name": ".."},
        {"labels": ["a\nb"]},
    ],
)
def test_bad_names_are_refused(database: Database, bad: dict[str, object]) -> None:
    with pytest.raises(BadInputError):
        _create(database, **bad)
    with database.connect() as conn:
        assert list_campaigns(conn) == []


def test_unknown_campaign_is_not_found(database: Database) -> None:
    with database.begin() as conn:
        with pytest.raises(NotFoundError):
            get_campaign(conn, "nobody")
        with pytest.raises(NotFoundError):
            set_campaign_state(conn, "nobody", "paused")
        with pytest.raises(NotFoundError):
            add_categories(conn, "nobody", ["a"])
        with pytest.raises(BadInputError):
            set_campaign_state(conn, "nobody", "asleep")


def test_new_labels_go_on_counting(database: Database) -> None:
    made = _create(database)
    with database.begin() as conn:
        set_campaign_state(conn, made.id, "paused")
        after = add_categories(conn, made.id, ["a", "c"])
    assert [(c.number, c.name) for c in after] == [(1, "b"), (2, "a"), (3, "c")]
    with database.connect() as conn:
        again = get_campaign(conn, made.id)
    assert (again.state, again.categories) == ("paused", after)


def test_weights_in_use_are_those_worked_with_last(database: Database) -> None:
    catalogue = Catalogue(database, images=1)
    catalogue.claim()
    _create(database, name="later", model_digest="a" * 64)
    paused = _create(database, name="paused", model_digest="b" * 64)
    _create(database, name="same", model_digest="a" * 64)
    with database.begin() as conn:
        set_campaign_state(conn, paused.id, "paused")
        worked_on = get_campaign(conn, catalogue.campaign_id).model_digest
        assert weights_in_use(conn, 4) == [(worked_on, None), ("a" * 64, None)]
        assert weights_in_use(conn, 1) == [(worked_on, None)]
        long_ago = {"created_at": datetime(2020, 1, 1, tzinfo=UTC)}
        conn.execute(update(Campaign).values(**long_ago))
        assert weights_in_use(conn, 4) == [(worked_on, None)]
        conn.execute(update(Session).values(**long_ago))
        assert weights_in_use(conn, 4) == []


def test_status_counts_what_is_there(catalogue: Catalogue) -> None:
    catalogue.label(catalogue.claim(), num_clicks=3)
    catalogue.label(catalogue.claim(), num_clicks=6, category_number=2)
    skipped = catalogue.claim()
    catalogue.append(skipped, event(skipped, 1))
    catalogue.append(skipped, event(skipped, 2, "skip"))
    request_id = new_uuid()
    with catalogue.database.begin() as conn:
        catalogue.add_image(conn, "image-0", name="copy of image-0")
        add_quarantined(
            conn, catalogue.campaign_id, uri="/bad.png", uri_sha256=sha("/bad.png"), version="1", reason="truncated"
        )
        quarantine_image(conn, catalogue.images[4].id, "three attempts")
        record_embeddings(conn, "key", [(image.sha256, SHA, 10) for image in catalogue.images[:3]])
        record_embeddings(conn, "another key", [(catalogue.images[4].sha256, SHA, 10)])
        insert_request(conn, request_id, "precompute", catalogue.campaign_id, {})
    with catalogue.database.connect() as conn:
        status = campaign_status(conn, catalogue.campaign_id)
    assert (status.images, status.duplicates, status.embeddings) == (5, 1, 3)
    assert status.holdout_images == sum(image.holdout for image in catalogue.images)
    assert status.quarantined == [
        {"uri": "/bad.png", "reason": "truncated"},
        {"uri": catalogue.images[4].uri, "reason": "three attempts"},
    ]
    assert status.tasks == {"new": 2, "leased": 0, "submitted": 0, "skipped": 1, "done": 2}
    assert (status.masks, status.masks_by_category) == (2, {"cat": 1, "dog": 1})
    assert (status.clicks, status.clicks_per_mask) == (3, 4.5)
    assert [request.id for request in status.requests] == [request_id]
