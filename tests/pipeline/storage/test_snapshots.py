"""Snapshots are immutable and whole."""

import pytest

from pipeline.storage.campaigns import add_categories
from pipeline.storage.click_log import Effects, InstanceChange, record_results
from pipeline.storage.images import images_of
from pipeline.storage.masks import current_masks
from pipeline.storage.snapshots import (
    create_snapshot,
    get_snapshot,
    list_snapshots,
    session_clicks,
    snapshot_clicks,
    snapshot_images,
    snapshot_masks,
    snapshot_sessions,
    undone_events,
)
from schemas.catalogue import EventResultRecord, SnapshotRecord
from schemas.errors import BadInputError, NotFoundError
from tests.pipeline.storage.catalogues import SHA, Catalogue, event, new_mask, new_uuid


def _snapshot(catalogue: Catalogue, purpose: str = "export", **filters: object) -> SnapshotRecord:
    with catalogue.database.begin() as conn:
        return create_snapshot(conn, catalogue.campaign_id, purpose, filters)


def test_snapshot_holds_current_masks_and_images_verified_to_be_empty(catalogue: Catalogue) -> None:
    first = catalogue.label(catalogue.claim())
    empty = catalogue.claim()
    catalogue.append(empty, event(empty, 1, "submit"))
    second = catalogue.label(catalogue.claim(), category_number=2)
    unfinished = catalogue.claim()
    catalogue.append(unfinished, event(unfinished, 1))

    made = _snapshot(catalogue)

    assert (made.number, made.parent_id, made.masks, made.images) == (1, None, 2, 3)
    assert [(c.number, c.name) for c in made.categories] == [(1, "cat"), (2, "dog")]
    with catalogue.database.connect() as conn:
        masks = snapshot_masks(conn, made.id)
        assert [mask.id for mask in masks] == [first.mask_id, second.mask_id]
        assert [mask.image_number for mask in masks] == [1, 3]
        assert snapshot_images(conn, made.id) == catalogue.images[:3]
        assert snapshot_masks(conn, made.id, after=1, limit=5) == masks[1:]
        assert snapshot_images(conn, made.id, after=1, limit=1) == catalogue.images[1:2]


def test_snapshot_does_not_change_afterwards(catalogue: Catalogue) -> None:
    image = catalogue.images[0].id
    old = catalogue.label(catalogue.claim(image_id=image))
    made = _snapshot(catalogue)
    with catalogue.database.begin() as conn:
        before = snapshot_masks(conn, made.id)
        add_categories(conn, catalogue.campaign_id, ["bird"])
    new = catalogue.label(catalogue.claim(image_id=image), opened=old.mask_id)
    catalogue.label(catalogue.claim())
    with catalogue.database.connect() as conn:
        assert snapshot_masks(conn, made.id) == before
        assert get_snapshot(conn, made.id) == made
        assert new.mask_id in [mask.id for mask in current_masks(conn, catalogue.campaign_id)]
    later = _snapshot(catalogue)
    assert (later.number, later.parent_id, later.masks) == (2, made.id, 2)
    assert [c.name for c in later.categories] == ["cat", "dog", "bird"]
    with catalogue.database.connect() as conn:
        assert list_snapshots(conn, catalogue.campaign_id) == [made, later]
        with pytest.raises(NotFoundError):
            get_snapshot(conn, new_uuid())


def test_held_out_images_can_be_left_out(catalogue: Catalogue) -> None:
    with catalogue.database.begin() as conn:
        for index in range(10):
            catalogue.add_image(conn, f"more-{index}")
    while True:
        with catalogue.database.connect() as conn:
            left = len(images_of(conn, catalogue.campaign_id))
            done = len(current_masks(conn, catalogue.campaign_id))
        if done == left:
            break
        catalogue.label(catalogue.claim())
    parts = [_snapshot(catalogue, "retrain", holdout=side) for side in (False, True)]
    with catalogue.database.connect() as conn:
        for made, side in zip(parts, (False, True), strict=True):
            images = snapshot_images(conn, made.id)
            assert {image.holdout for image in images} == {side}
            assert images == images_of(conn, catalogue.campaign_id, holdout=side)
    assert sum(made.masks for made in parts) == 15
    assert parts[0].filters == {"holdout": False}


def test_other_categories_can_be_left_out(catalogue: Catalogue) -> None:
    catalogue.label(catalogue.claim(), category_number=1)
    dog = catalogue.label(catalogue.claim(), category_number=2)
    made = _snapshot(catalogue, categories=[2])
    assert (made.masks, made.images) == (1, 2)  # the cat's image is verified to show no dog
    with catalogue.database.connect() as conn:
        assert [mask.id for mask in snapshot_masks(conn, made.id)] == [dog.mask_id]


def test_bad_filters_and_unknown_campaigns_are_refused(catalogue: Catalogue) -> None:
    with pytest.raises(BadInputError):
        _snapshot(catalogue, colour="red")
    catalogue.campaign_id = new_uuid()
    with pytest.raises(NotFoundError):
        _snapshot(catalogue)


def test_clicks_come_with_their_results_and_what_was_undone(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    instance = new_uuid()
    open_ = Effects([InstanceChange(instance)])
    clicks = [event(claim, seq, instance_id=instance) for seq in (1, 2)]
    for click in clicks:
        catalogue.append(claim, click, effects=open_)
    undo = event(claim, 3, "undo", instance_id=instance, payload={"event_id": str(clicks[1].event_id)})
    catalogue.append(claim, undo, effects=open_)
    mask = new_mask(instance, 1)
    accept = event(claim, 4, "accept", instance_id=instance, payload={"seq": 1, "mask_sha256": SHA})
    catalogue.append(
        claim, accept, effects=Effects([InstanceChange(instance, "accepted", 1, mask_id=mask.mask_id)], mask)
    )
    catalogue.append(claim, event(claim, 5, "submit"))
    result = EventResultRecord(event_id=str(clicks[0].event_id), mask_sha256=SHA, engine={}, latency_ms={"model": 2.0})
    with catalogue.database.begin() as conn:
        record_results(conn, [result])
    other = catalogue.claim()
    catalogue.append(other, event(other, 1))
    made = _snapshot(catalogue)

    with catalogue.database.connect() as conn:
        logged = list(snapshot_clicks(conn, made.id))
        assert snapshot_sessions(conn, made.id) == [claim.session_id]
        assert session_clicks(conn, made.id, [claim.session_id]) == logged
    assert [(row.event.seq, row.event.kind) for row in logged] == [
        (1, "click"),
        (2, "click"),
        (3, "undo"),
        (4, "accept"),
        (5, "submit"),
    ]
    assert [row.undone for row in logged] == [False, True, False, False, False]
    assert [row.mask_number for row in logged] == [1, 1, 1, 1, None]
    assert logged[0].result == result
    assert logged[1].result is None
    assert {row.image_number for row in logged} == {1}


def test_clicks_of_many_sessions_come_by_image_in_batches(catalogue: Catalogue) -> None:
    for image in reversed(catalogue.images):
        catalogue.label(catalogue.claim(image_id=image.id))
    made = _snapshot(catalogue)
    with catalogue.database.connect() as conn:
        numbers = [row.image_number for row in snapshot_clicks(conn, made.id, batch=2)]
    assert numbers == sorted(numbers)
    assert len(numbers) == 4 * len(catalogue.images)


def test_redone_events_are_not_undone(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    click = event(claim, 1)
    undo = event(claim, 2, "undo", payload={"event_id": str(click.event_id)})
    redo = event(claim, 3, "redo", payload={"event_id": str(undo.event_id)})
    again = event(claim, 4, "undo", payload={"event_id": str(click.event_id)})
    for sent in (click, undo, redo, again):
        catalogue.append(claim, sent)
    from pipeline.storage.sessions import session_events

    with catalogue.database.connect() as conn:
        log = session_events(conn, claim.session_id)
    assert [undone_events((e.event_id, e.kind, e.payload) for e in log[:count]) for count in (1, 2, 3, 4)] == [
        frozenset(),
        {str(click.event_id)},
        frozenset(),
        {str(click.event_id)},
    ]
