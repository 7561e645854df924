"""Looking through images with their masks, on both databases."""

from collections.abc import Iterable
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection, select
from sqlalchemy.event import listen, remove

from benchmarks.growth import fill
from pipeline.masks.packed import unpack
from pipeline.storage.browsing import MAX_MASKS, BrowseFilter, browse_image, browse_images
from pipeline.storage.database import Database, open_database
from pipeline.storage.effects import Effects, InstanceChange
from pipeline.storage.masks import is_current
from schemas.browsing import BrowsePage
from schemas.errors import NotFoundError
from schemas.tables import Base, Image, Instance, Session, Task
from tests.pipeline.storage.catalogues import SHA, Catalogue, event, new_mask, new_uuid, store_import
from tests.pipeline.storage.walk import Walk


def browse(catalogue: Catalogue, **options: Any) -> BrowsePage:
    wanted = BrowseFilter(
        **{name: options.pop(name) for name in ("state", "category", "annotator_id", "unsure") if name in options}
    )
    with catalogue.database.connect() as conn:
        return browse_images(conn, catalogue.campaign_id, wanted, **options)


def numbers(page: BrowsePage) -> list[int]:
    return [image.number for image in page.results]


def test_pages_go_through_all_images_in_order(catalogue: Catalogue) -> None:
    first = browse(catalogue, limit=2)
    assert (numbers(first), first.next, first.count) == ([1, 2], 2, 5)
    last = browse(catalogue, limit=2, after=4)
    assert (numbers(last), last.next, last.count) == ([5], None, 5)
    assert {image.state for image in first.results} == {"new"} and first.results[0].masks == []


def test_filters_by_state_category_and_annotator(catalogue: Catalogue) -> None:
    catalogue.label(catalogue.claim(), category_number=1)
    catalogue.label(catalogue.claim(), category_number=2)
    skipped = catalogue.claim(catalogue.other_id)
    catalogue.append(skipped, event(skipped, 1, "skip"), catalogue.other_id)
    catalogue.claim(catalogue.other_id)
    assert numbers(browse(catalogue, state="done")) == [1, 2]
    assert numbers(browse(catalogue, state="skipped")) == [3]
    assert numbers(browse(catalogue, state="leased")) == [4]
    assert numbers(browse(catalogue, category=2)) == [2]
    assert numbers(browse(catalogue, annotator_id=catalogue.annotator_id)) == [1, 2]
    assert numbers(browse(catalogue, annotator_id=catalogue.other_id)) == [3]
    assert numbers(browse(catalogue, state="done", category=1, annotator_id=catalogue.other_id)) == []
    assert numbers(browse(Catalogue(catalogue.database, images=1))) == [1]


def test_images_with_an_unsure_object_are_found_until_it_is_corrected(sqlite_database: Database) -> None:
    catalogue = Catalogue(sqlite_database, images=3)
    image = catalogue.images[1].id
    unsure = catalogue.label(catalogue.claim(image_id=image), unsure=True)
    catalogue.label(catalogue.claim(image_id=image))
    catalogue.label(catalogue.claim())
    page = browse(catalogue, unsure=True)
    assert (numbers(page), page.count, page.is_exact) == ([2], 1, True)
    assert numbers(browse(catalogue, unsure=True, category=2)) == []
    plans = plans_of(catalogue, BrowseFilter(unsure=True))
    assert any("ix_instances_unsure (campaign_id=? AND image_number>?)" in plan for plan in plans)
    catalogue.label(catalogue.claim(image_id=image), opened=unsure.mask_id)
    assert numbers(browse(catalogue, unsure=True)) == []


def test_a_skipped_image_says_why_it_was_skipped_last(catalogue: Catalogue) -> None:
    for reason in ("blurred", "not a cat: a dog"):
        skipped = catalogue.claim(image_id=catalogue.images[0].id)
        catalogue.append(skipped, event(skipped, 1, "skip", payload={"reason": reason}))
    catalogue.label(catalogue.claim(image_id=catalogue.images[1].id))
    page = browse(catalogue)
    assert [image.skip_reason for image in page.results] == ["not a cat: a dog", *[None] * 4]
    catalogue.label(catalogue.claim(image_id=catalogue.images[0].id))
    assert browse(catalogue).results[0].skip_reason is None


def test_an_image_shows_the_masks_that_are_current(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    first = catalogue.label(claim, category_number=1)
    with catalogue.database.connect() as conn:
        [shown] = browse_image(conn, catalogue.campaign_id, claim.image.id).masks
    assert (shown.id, shown.category_number, shown.annotator, shown.num_clicks) == (first.mask_id, 1, "ann", 2)
    assert np.argwhere(unpack(shown.preview)).tolist() == [[0, 0]]
    again = catalogue.claim(catalogue.other_id, image_id=claim.image.id)
    assert browse(catalogue, state="leased").results[0].masks[0].id == first.mask_id, (
        "until the correction is submitted"
    )
    corrected = _correct(catalogue, again, first.mask_id)
    with catalogue.database.connect() as conn:
        image = browse_image(conn, catalogue.campaign_id, claim.image.id)
    assert [(mask.id, mask.annotator) for mask in image.masks] == [(corrected, "bob")]
    assert numbers(browse(catalogue, category=1)) == [] and numbers(browse(catalogue, category=2)) == [1]


def _correct(catalogue: Catalogue, claim: Any, opened: str) -> str:
    """Open a stored mask, accept it with category 2 and submit, as the other annotator; the new mask's id."""
    instance = new_uuid()
    mask = new_mask(instance, 1, category_number=2)
    start = event(claim, 1, "open", instance_id=instance, payload={"mask_id": opened})
    catalogue.append(claim, start, catalogue.other_id, effects=Effects([InstanceChange(instance)]))
    accept = event(claim, 2, "accept", instance_id=instance, payload={"seq": 1, "mask_sha256": SHA})
    change = InstanceChange(instance, "accepted", 2, mask_id=mask.mask_id)
    catalogue.append(claim, accept, catalogue.other_id, effects=Effects([change], mask))
    catalogue.append(claim, event(claim, 3, "submit"), catalogue.other_id)
    return mask.mask_id


def test_of_a_crowd_of_masks_the_first_are_shown_and_all_are_counted(catalogue: Catalogue) -> None:
    image_id = catalogue.images[0].id
    with catalogue.database.begin() as conn:
        for _ in range(MAX_MASKS + 3):
            store_import(conn, image_id, category_number=None)
    [image, *others] = browse(catalogue).results
    assert (len(image.masks), image.num_masks) == (MAX_MASKS, MAX_MASKS + 3)
    assert image.masks[0].source == "import" and image.masks[0].annotator is None
    assert all(other.num_masks == 0 for other in others)


def test_an_image_of_another_campaign_is_not_found(catalogue: Catalogue) -> None:
    other = Catalogue(catalogue.database, images=1)
    with catalogue.database.connect() as conn, pytest.raises(NotFoundError):
        browse_image(conn, other.campaign_id, catalogue.images[0].id)


def plainly(conn: Connection, campaign_id: str, wanted: BrowseFilter) -> list[int]:
    """The numbers of the images that match, by looking at everything."""
    tasks = select(Image.id, Image.number, Task.state).join(Task, Task.image_id == Image.id)
    masks = select(Instance.image_id, Instance.category_number).outerjoin(Session, Session.id == Instance.session_id)
    ended = select(Session.image_id, Session.annotator_id).where(Session.state.in_(("submitted", "skipped")))
    has_mask = {tuple(row) for row in conn.execute(masks.where(is_current()))}
    worked = {tuple(row) for row in conn.execute(ended)}
    return [
        row.number
        for row in conn.execute(tasks.where(Image.campaign_id == campaign_id).order_by(Image.number))
        if wanted.state in (None, row.state)
        and (wanted.category is None or (row.id, wanted.category) in has_mask)
        and (wanted.annotator_id is None or (row.id, wanted.annotator_id) in worked)
    ]


def check(database: Database, catalogues: Iterable[Catalogue]) -> int:
    """Compare all pages of all filters with what is there; how many images they found."""
    found = 0
    with database.connect() as conn:
        for catalogue in catalogues:
            people = (None, catalogue.annotator_id, catalogue.other_id)
            for state, category, annotator in product((None, "new", "done", "skipped"), (None, 1, 2), people):
                wanted, after = BrowseFilter(state, category, annotator), 0
                expected = plainly(conn, catalogue.campaign_id, wanted)
                seen: list[int] = []
                while True:
                    page = browse_images(conn, catalogue.campaign_id, wanted, after=after, limit=2)
                    assert (page.count, page.is_exact) == (len(expected), True)
                    seen += numbers(page)
                    if page.next is None:
                        break
                    after = page.next
                assert seen == expected
                found += len(seen)
    return found


def test_what_is_found_is_what_is_there_whatever_was_done(database: Database, tmp_path: Path) -> None:
    walk = Walk(database, str(tmp_path / "storage"), 5)
    for _ in range(2):
        for _ in range(15):
            walk.step()
        found = check(database, walk.catalogues)
    assert found > 30
    walk.purge(walk.catalogues[0], walk.catalogues[0].images[0].id, lambda database: None)
    assert check(database, walk.catalogues) < found


def test_a_category_is_counted_up_to_a_limit(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        catalogue.label(catalogue.claim(), category_number=1)
    for limit, expected in ((2, (2, False)), (3, (3, True))):
        monkeypatch.setattr("pipeline.storage.browsing.COUNTED", limit)
        for wanted in ({"category": 1}, {"annotator_id": catalogue.annotator_id}, {"state": "done", "category": 1}):
            page = browse(catalogue, limit=5, **wanted)
            assert (numbers(page), page.count, page.is_exact) == ([1, 2, 3], *expected)
        assert (browse(catalogue).count, browse(catalogue).is_exact) == (5, True)


@pytest.mark.parametrize(
    "wanted", [BrowseFilter(category=2), BrowseFilter(annotator_id="person-5"), BrowseFilter("done", 1, "person-5")]
)
def test_a_page_takes_no_more_steps_among_more_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: BrowseFilter
) -> None:
    monkeypatch.setattr("pipeline.storage.browsing.COUNTED", 5)
    steps: list[int] = []
    with closing(open_database(f"sqlite:///{tmp_path / 'growth.db'}", embedded=True)) as database:
        for size in (1000, 8000):
            campaign = fill(database, size)
            taken = 0

            def count() -> int:
                nonlocal taken
                taken += 1
                return 0

            with database.connect() as conn:
                raw: Any = conn.connection.dbapi_connection
                raw.set_progress_handler(count, 10)
                browse_images(conn, campaign, wanted, after=size // 2, limit=6)
                raw.set_progress_handler(None, 0)
            steps.append(taken)
    assert 10 < steps[1] < 1.5 * steps[0]


def plans_of(catalogue: Catalogue, wanted: BrowseFilter) -> list[str]:
    """SQLite's plans of every query of a page."""
    database = catalogue.database
    statements: list[tuple[str, Any]] = []

    def collect(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        statements.append((statement, parameters))

    with database.connect() as conn:
        listen(database.engine, "before_cursor_execute", collect)
        browse_images(conn, catalogue.campaign_id, wanted)
        remove(database.engine, "before_cursor_execute", collect)
        return [
            row[3]
            for statement, parameters in statements
            if statement.startswith("SELECT")
            for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]


def test_no_table_is_searched_through_once_per_image(sqlite_database: Database) -> None:
    """With all filters only the campaign's own rows are gone through."""
    catalogue = Catalogue(sqlite_database, images=1)
    plans = plans_of(catalogue, BrowseFilter("done", 1, catalogue.annotator_id))
    assert any(
        "ix_instances_browsed (campaign_id=? AND category_number=? AND image_number>?)" in plan for plan in plans
    )
    assert [plan for plan in plans if plan.split()[0] == "SCAN" and plan.split()[1] in Base.metadata.tables] == []
