"""The figures behind the plots, on both databases."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert

from pipeline.storage.adapters import register_adapter
from pipeline.storage.click_log import record_results
from pipeline.storage.effects import Effects, InstanceChange
from pipeline.storage.statistics import campaign_statistics, percentile_of, period_for, progress_of_all
from schemas.catalogue import EventResultRecord
from schemas.errors import NotFoundError
from schemas.statistics import CampaignStatistics
from schemas.tables import EventRow, Instance, MaskRow
from schemas.tallies import EDGES_MS
from tests.pipeline.storage.catalogues import SHA, Catalogue, event, new_uuid, sha

T0 = datetime(2026, 1, 5, 12, 0, 0, tzinfo=UTC)


def accepted(
    catalogue: Catalogue,
    session: Any,
    at_s: float,
    *,
    seconds: float = 10,
    clicks: int = 2,
    category: int | None = 1,
    adapter: str | None = None,
    annotator_id: str | None = None,
) -> None:
    """A mask accepted `at_s` seconds after T0, `seconds` after its object was opened: rows as the log writes them."""
    instance, mask, open_id, accept_id = new_uuid(), new_uuid(), new_uuid(), new_uuid()
    annotator = annotator_id or catalogue.annotator_id
    now = T0 + timedelta(seconds=at_s)
    with catalogue.database.begin() as conn:
        seq = accepted.seq = getattr(accepted, "seq", 100) + 2  # type: ignore[attr-defined]
        common = {"session_id": session.session_id, "session_epoch": 1, "lease_no": 1, "instance_id": instance}
        common |= {"payload": {}, "payload_sha256": SHA, "annotator_id": annotator}
        begun = now - timedelta(seconds=seconds)
        conn.execute(insert(EventRow).values(event_id=open_id, seq=seq, kind="open", server_time=begun, **common))
        conn.execute(insert(EventRow).values(event_id=accept_id, seq=seq + 1, kind="accept", server_time=now, **common))
        conn.execute(
            insert(MaskRow).values(
                id=mask,
                campaign_id=catalogue.campaign_id,
                number=seq,
                image_id=session.image.id,
                instance_id=instance,
                version=1,
                source="annotator",
                session_id=session.session_id,
                event_id=accept_id,
                seq=seq,
                annotator_id=annotator,
                category_number=category,
                height=4,
                width=4,
                rle_counts="01?0",
                mask_sha256=SHA,
                area=1,
                bbox=[0, 0, 1, 1],
                num_clicks=clicks,
                adapter_digest=adapter,
                created_at=now,
            )
        )
        conn.execute(
            insert(Instance).values(
                id=instance,
                campaign_id=catalogue.campaign_id,
                image_id=session.image.id,
                session_id=session.session_id,
                state="accepted",
                category_number=category,
                unsure=False,
                mask_id=mask,
                image_number=session.image.number,
            )
        )


def statistics(catalogue: Catalogue, **options: Any) -> CampaignStatistics:
    with catalogue.database.connect() as conn:
        return campaign_statistics(conn, catalogue.campaign_id, **options)


def test_a_fresh_campaign_has_nothing_to_plot(catalogue: Catalogue) -> None:
    found = statistics(catalogue)
    assert (found.total.masks, found.total.clicks_per_mask, found.total.seconds_per_mask) == (0, None, None)
    assert found.over_time == found.by_adapter == found.by_category == found.by_annotator == []
    assert (found.latency.clicks, found.latency.p50_ms) == (0, None)
    with catalogue.database.connect() as conn, pytest.raises(NotFoundError):
        campaign_statistics(conn, "nothing")


def test_a_mask_that_was_labelled_counts_and_one_taken_back_does_not(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    catalogue.label(claim, num_clicks=3)
    second = catalogue.claim()
    instance = new_uuid()
    opened = event(second, 1, "open", instance_id=instance, payload={"mask_id": None})
    catalogue.append(second, opened, effects=Effects([InstanceChange(instance)]))
    found = statistics(catalogue)
    assert (found.total.masks, found.total.clicks_per_mask) == (1, 3.0)
    assert found.total.seconds_per_mask == pytest.approx(0, abs=5)


def test_masks_are_grouped_by_period_adapter_category_and_annotator(catalogue: Catalogue) -> None:
    session, digest = catalogue.claim(), sha("adapter")
    with catalogue.database.begin() as conn:
        facts: dict[str, Any] = {"kind": "head", "uri": "x", "model_digest": SHA, "model_key": "key", "seed": 0}
        facts |= {"parent_digest": None, "snapshot_id": None}
        assert register_adapter(conn, digest=digest, campaign_id=catalogue.campaign_id, **facts) == 1
    accepted(catalogue, session, 10, clicks=6, seconds=20)
    accepted(catalogue, session, 30, clicks=4, seconds=10)
    accepted(catalogue, session, 40, clicks=4, seconds=30, annotator_id=catalogue.other_id, category=None)
    accepted(catalogue, session, 1210, clicks=1, seconds=5, category=2, adapter=digest)
    found = statistics(catalogue)
    assert (found.period_s, found.total.masks, found.total.clicks_per_mask) == (300, 4, 15 / 4)
    assert found.total.seconds_per_mask == pytest.approx(65 / 4)
    assert [(p.begin, p.masks, p.clicks_per_mask) for p in found.over_time] == [
        (T0, 3, 14 / 3),
        (T0 + timedelta(seconds=1200), 1, 1.0),
    ]
    assert [p.masks_per_hour for p in found.over_time] == [18.0, 12.0]  # 3 masks in 2 slots of 5 minutes; 1 in 1
    assert [(a.adapter, a.masks, a.clicks_per_mask) for a in found.by_adapter] == [(None, 3, 14 / 3), (1, 1, 1.0)]
    assert [(c.name, c.masks) for c in found.by_category] == [("cat", 2), ("dog", 1), (None, 1)]
    assert [(a.name, a.masks) for a in found.by_annotator] == [("ann", 3), ("bob", 1)]
    hidden = statistics(catalogue, with_names=False).by_annotator
    assert [a.masks for a in hidden] == [3, 1] and not {"ann", "bob"} & {a.name for a in hidden}


def test_a_mask_left_open_over_lunch_says_nothing_about_seconds(catalogue: Catalogue) -> None:
    session = catalogue.claim()
    accepted(catalogue, session, 10_000, seconds=4000, clicks=3)
    assert statistics(catalogue).total.seconds_per_mask is None
    accepted(catalogue, session, 10_100, seconds=8, clicks=1)
    found = statistics(catalogue).total
    assert (found.masks, found.clicks_per_mask, found.seconds_per_mask) == (2, 2.0, pytest.approx(8))


def test_other_campaigns_and_imported_masks_do_not_count(catalogue: Catalogue) -> None:
    catalogue.label(catalogue.claim())
    other = Catalogue(catalogue.database, images=1)
    assert statistics(other).total.masks == 0
    assert statistics(catalogue).total.masks == 1


def test_progress_counts_the_tasks_of_every_campaign(catalogue: Catalogue) -> None:
    other = Catalogue(catalogue.database, images=1)
    catalogue.label(catalogue.claim())
    catalogue.claim()
    with catalogue.database.connect() as conn:
        found = {one.campaign_id: one.tasks for one in progress_of_all(conn)}
    assert found == {catalogue.campaign_id: {"done": 1, "leased": 1, "new": 3}, other.campaign_id: {"new": 1}}


def test_click_latency_is_a_histogram_over_all_stages(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    instance = new_uuid()
    opened = event(claim, 1, "open", instance_id=instance, payload={"mask_id": None})
    catalogue.append(claim, opened, effects=Effects([InstanceChange(instance)]))
    stages = [{"model": 8.0, "post": 3.5}, {"fetch": 1.0, "model": 8.0, "post": 4.0}, {"encode": 6000.0}]
    for seq, latency_ms in enumerate(stages, 2):
        sent = event(claim, seq, instance_id=instance)
        catalogue.append(claim, sent)
        result = EventResultRecord(event_id=str(sent.event_id), mask_sha256=SHA, engine={}, latency_ms=latency_ms)
        with catalogue.database.begin() as conn:
            record_results(conn, [result])
    found = statistics(catalogue).latency
    assert found.clicks == 3 and sum(point.clicks for point in found.over_time) == 3
    assert [(b.from_ms, b.to_ms, b.clicks) for b in found.histogram if b.clicks] == [(10, 15, 2), (5000, None, 1)]
    assert (found.p50_ms, found.p95_ms) == (pytest.approx(13.75), 5000)


def test_periods_cut_any_span_into_few_points() -> None:
    assert [period_for(span) for span in (0, 4 * 3600, 86_400, 40 * 86_400)] == [300, 900, 3600, 86_400]
    assert period_for(30 * 365 * 86_400) == 30 * 86_400


def test_percentiles_lie_inside_their_bin() -> None:
    assert percentile_of({0: 10}, 0.5) == EDGES_MS[1] / 2
    assert percentile_of({1: 1, 4: 99}, 0.5) == pytest.approx(20 + 5 * 49 / 99)
    assert percentile_of({len(EDGES_MS) - 1: 3}, 0.95) == EDGES_MS[-1]
