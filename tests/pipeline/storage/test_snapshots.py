"""Snapshots are immutable and whole."""

import json
import time

import pytest

from pipeline.storage.annotators import pseudonym_of
from pipeline.storage.campaigns import add_categories
from pipeline.storage.click_log import record_results
from pipeline.storage.images import images_of
from pipeline.storage.masks import current_masks
from pipeline.storage.sessions import session_events
from pipeline.storage.snapshots import (
    create_snapshot,
    event_columns,
    event_counts,
    get_snapshot,
    image_page,
    list_snapshots,
    mask_columns,
    snapshot_images,
    snapshot_masks,
    undone_events,
)
from pipeline.storage.sql import database_now
from schemas.catalogue import EventResultRecord, SnapshotRecord
from schemas.errors import BadInputError, NotFoundError
from tests.pipeline.storage.catalogues import SHA, Catalogue, event, new_uuid


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


def test_masks_of_doubtful_quality_can_be_left_out_and_their_images_are_not_empty(catalogue: Catalogue) -> None:
    scores = (0.9, 0.4, None, 0.95)
    masks = [catalogue.label(catalogue.claim(), unsure=index == 3, score=score) for index, score in enumerate(scores)]
    whole, good, sure = _snapshot(catalogue), _snapshot(catalogue, min_score=0.9), _snapshot(catalogue, sure=True)
    both = _snapshot(catalogue, min_score=0.5, sure=True)
    with catalogue.database.connect() as conn:
        stored = mask_columns(conn, whole.id, [image.id for image in catalogue.images]).to_pylist()
        held = [[mask.id for mask in snapshot_masks(conn, made.id)] for made in (good, sure, both)]
    assert {row["annotation_uuid"]: (row["score"], row["unsure"]) for row in stored} == {
        mask.mask_id: (score, index == 3) for index, (mask, score) in enumerate(zip(masks, scores, strict=True))
    }
    ids = [mask.mask_id for mask in masks]
    assert held == [[ids[0], ids[2], ids[3]], ids[:3], [ids[0], ids[2]]]
    assert [made.images for made in (whole, good, sure, both)] == [4, 3, 3, 2]


def test_bad_filters_and_unknown_campaigns_are_refused(catalogue: Catalogue) -> None:
    with pytest.raises(BadInputError):
        _snapshot(catalogue, colour="red")
    catalogue.campaign_id = new_uuid()
    with pytest.raises(NotFoundError):
        _snapshot(catalogue)


def test_columns_of_masks_and_events_say_what_is_stored(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    mask = catalogue.label(claim, rle_counts="0\\n1", bbox=(0, 1, 2, 3))
    later = catalogue.label(catalogue.claim(), category_number=None)
    with catalogue.database.begin() as conn:
        clicks = [e for e in session_events(conn, claim.session_id) if e.kind == "click"]
        result = EventResultRecord(
            event_id=clicks[0].event_id, mask_sha256=SHA, engine={"x": "a b"}, latency_ms={"model": 2.0}
        )
        record_results(conn, [result])
    made = _snapshot(catalogue)
    with catalogue.database.connect() as conn:
        assert [(i.number, i.items) for i in image_page(conn, made.id, 0, 10)] == [(1, 1), (2, 1)]
        assert [i.number for i in image_page(conn, made.id, 1, 10)] == [2]
        stored = {
            row["annotation_uuid"]: row
            for row in mask_columns(conn, made.id, [image.id for image in catalogue.images]).to_pylist()
        }
        assert mask_columns(conn, made.id, [catalogue.images[1].id]).num_rows == 1
        assert event_counts(conn, [claim.session_id]) == {claim.session_id: 4}
        events = event_columns(conn, [claim.session_id])
        log = session_events(conn, claim.session_id)
        assert event_columns(conn, [new_uuid()]).num_rows == 0
    assert stored.keys() == {mask.mask_id, later.mask_id}
    first = stored[mask.mask_id]
    assert (first["id"], first["image_id"], first["rle_counts"], first["seq"]) == (1, 1, "0\\n1", 2)
    assert json.loads(first["bbox"]) == [0, 1, 2, 3]
    assert (first["parent_uuid"], first["category_number"]) == (None, 1)
    assert stored[later.mask_id]["category_number"] is None
    rows = sorted(events.to_pylist(), key=lambda row: row["seq"])
    assert [(row["kind"], row["server_time"]) for row in rows] == [(e.kind, e.server_time) for e in log]
    assert [json.loads(row["payload"]) for row in rows] == [e.payload for e in log]
    assert [row["mask_sha256"] for row in rows] == [None, SHA, None, None]
    assert json.loads(rows[1]["engine"]) == {"x": "a b"} and rows[1]["roi"] is None


def test_masks_by_others_and_of_other_times_can_be_left_out(catalogue: Catalogue) -> None:
    own = catalogue.label(catalogue.claim())
    between = _now(catalogue)
    other = catalogue.claim(catalogue.other_id)
    catalogue.annotator_id, mine = catalogue.other_id, catalogue.annotator_id
    theirs = catalogue.label(other)
    empty = catalogue.claim()
    catalogue.append(empty, event(empty, 1, "submit"))
    catalogue.annotator_id = mine
    with catalogue.database.connect() as conn:
        names = {key: pseudonym_of(conn, key) for key in ("ann", "bob")}
        assert pseudonym_of(conn, names["ann"]) == names["ann"]
        with pytest.raises(NotFoundError):
            pseudonym_of(conn, "carol")

    def taken(**filters: object) -> tuple[list[str], list[int]]:
        made = _snapshot(catalogue, **filters)
        with catalogue.database.connect() as conn:
            masks = [mask.id for mask in snapshot_masks(conn, made.id)]
            return masks, [image.number for image in snapshot_images(conn, made.id)]

    assert taken(annotators=[names["ann"]]) == ([own.mask_id], [1])
    assert taken(annotators=[names["bob"]]) == ([theirs.mask_id], [2, 3])  # 3 is empty; 1 is neither theirs nor empty
    assert taken(until=between) == ([own.mask_id], [1])
    assert taken(since=between) == ([theirs.mask_id], [2, 3])
    assert taken(since=between, annotators=[names["ann"]]) == ([], [])


def test_images_in_other_states_can_be_left_out(catalogue: Catalogue) -> None:
    done = catalogue.label(catalogue.claim())
    opened_again = catalogue.label(catalogue.claim())
    catalogue.claim(image_id=catalogue.images[1].id)
    assert _snapshot(catalogue).masks == 2
    made = _snapshot(catalogue, states=["done"])
    with catalogue.database.connect() as conn:
        assert [mask.id for mask in snapshot_masks(conn, made.id)] == [done.mask_id]
    made = _snapshot(catalogue, states=["leased", "new"])
    with catalogue.database.connect() as conn:
        assert [mask.id for mask in snapshot_masks(conn, made.id)] == [opened_again.mask_id]


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"since": "yesterday"}, "since: 'yesterday' is no time"),
        ({"until": "2026-11-28T00:00:00"}, "has no time zone"),
        ({"until": "9999-12-31T23:59:59-12:00"}, "is no time in UTC"),
        ({"states": ["lost"]}, "Task states are new, leased"),
    ],
)
def test_filters_that_mean_nothing_are_refused(catalogue: Catalogue, filters: dict[str, object], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        _snapshot(catalogue, **filters)


def _now(catalogue: Catalogue) -> str:
    """The database's time, later than all that was written and earlier than all that will be."""
    with catalogue.database.connect() as conn:
        before = database_now(conn)
    while True:
        with catalogue.database.connect() as conn:
            now = database_now(conn)
        if now > before:
            time.sleep(0.002)  # SQLite's clock counts milliseconds
            return now.isoformat()


def test_redone_events_are_not_undone(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    click = event(claim, 1)
    undo = event(claim, 2, "undo", payload={"event_id": str(click.event_id)})
    redo = event(claim, 3, "redo", payload={"event_id": str(undo.event_id)})
    again = event(claim, 4, "undo", payload={"event_id": str(click.event_id)})
    for sent in (click, undo, redo, again):
        catalogue.append(claim, sent)
    with catalogue.database.connect() as conn:
        log = session_events(conn, claim.session_id)
    assert [undone_events((e.event_id, e.kind, e.payload) for e in log[:count]) for count in (1, 2, 3, 4)] == [
        frozenset(),
        {str(click.event_id)},
        frozenset(),
        {str(click.event_id)},
    ]
