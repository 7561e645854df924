"""One annotator per lease."""

import contextlib
import threading

import pytest
from sqlalchemy import func, select, text

from pipeline.storage.campaigns import set_campaign_state
from pipeline.storage.database import Database
from pipeline.storage.images import quarantine_image
from pipeline.storage.sessions import get_session, session_events
from pipeline.storage.tasks import claim_task, expired_leases, peek_tasks
from schemas.campaigns import Claim
from schemas.errors import BadInputError, ConflictError, LeaseLostError, NotFoundError, StateError
from schemas.tables import Lease, Session, Task
from tests.pipeline.storage.catalogues import Catalogue, event, new_uuid


def _next(catalogue: Catalogue, **options: object) -> Claim | None:
    options = {"claim_id": new_uuid(), "lease_s": 60.0, **options}
    with catalogue.database.begin() as conn:
        return claim_task(conn, catalogue.campaign_id, catalogue.annotator_id, **options)  # type: ignore[arg-type]


def test_tasks_are_given_in_order_with_a_look_ahead(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    assert claim.image == catalogue.images[0]
    assert claim.look_ahead == catalogue.images[1:3]
    assert (claim.lease_no, claim.epoch, claim.last_seq, claim.lease_s) == (1, 1, 0, 60.0)
    with catalogue.database.connect() as conn:
        session = get_session(conn, claim.session_id)
        assert (session.state, session.annotator_id, session.image_id) == (
            "open",
            catalogue.annotator_id,
            claim.image.id,
        )
        assert peek_tasks(conn, catalogue.campaign_id, 10) == catalogue.images[1:]
    assert catalogue.claim().image == catalogue.images[1]


def test_claiming_again_with_the_same_id_gives_the_same_claim(catalogue: Catalogue) -> None:
    claim_id = new_uuid()
    first = catalogue.claim(claim_id=claim_id)
    catalogue.append(first, event(first, 1))
    again = catalogue.claim(claim_id=claim_id)
    assert (again.session_id, again.lease_no, again.last_seq) == (first.session_id, first.lease_no, 1)
    with pytest.raises(ConflictError):
        catalogue.claim(catalogue.other_id, claim_id=claim_id)


def test_nothing_left_is_none(catalogue: Catalogue) -> None:
    for _ in catalogue.images:
        catalogue.claim()
    assert _next(catalogue) is None


def test_expired_leases_are_given_after_the_new_tasks(catalogue: Catalogue) -> None:
    old = catalogue.claim(catalogue.other_id)
    catalogue.expire(old)
    with catalogue.database.connect() as conn:
        assert expired_leases(conn, catalogue.campaign_id) == [(old.task_id, catalogue.other_id)]
    rest = [catalogue.claim() for _ in catalogue.images]
    assert [claim.image for claim in rest] == [*catalogue.images[1:], catalogue.images[0]]
    assert rest[-1].lease_no == 2
    assert _next(catalogue) is None


def test_paused_campaign_gives_nothing_out(catalogue: Catalogue) -> None:
    with catalogue.database.begin() as conn:
        set_campaign_state(conn, catalogue.campaign_id, "paused")
    with pytest.raises(StateError):
        _next(catalogue)


def test_unknown_campaign_or_image_is_not_found(catalogue: Catalogue) -> None:
    with pytest.raises(NotFoundError):
        _next(catalogue, image_id=new_uuid())
    with pytest.raises(NotFoundError), catalogue.database.begin() as conn:
        claim_task(conn, new_uuid(), catalogue.annotator_id, claim_id=new_uuid(), lease_s=1.0)


def test_quarantined_images_are_passed_over(catalogue: Catalogue) -> None:
    with catalogue.database.begin() as conn:
        quarantine_image(conn, catalogue.images[0].id, "killed the encoder")
    assert catalogue.claim().image.id == catalogue.images[1].id


def test_own_running_lease_is_given_back_by_image(catalogue: Catalogue) -> None:
    first = catalogue.claim()
    again = catalogue.claim(image_id=first.image.id)
    assert (again.session_id, again.lease_no) == (first.session_id, first.lease_no)
    with pytest.raises(StateError, match="Somebody else"):
        catalogue.claim(catalogue.other_id, image_id=first.image.id)


@pytest.mark.parametrize("kind", ["submit", "skip"])
def test_finished_task_can_be_opened_for_correction(catalogue: Catalogue, kind: str) -> None:
    first = catalogue.claim()
    catalogue.append(first, event(first, 1, kind))
    again = catalogue.claim(catalogue.other_id, image_id=first.image.id)
    assert (again.task_id, again.lease_no, again.last_seq) == (first.task_id, 2, 0)
    with catalogue.database.connect() as conn:
        assert get_session(conn, first.session_id).state == {"submit": "submitted", "skip": "skipped"}[kind]


def test_eight_threads_never_share_a_task(database: Database) -> None:
    catalogue = Catalogue(database, images=100)
    claims: list[Claim] = []
    errors: list[BaseException] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        try:
            barrier.wait()
            while (claim := _next(catalogue, look_ahead=0)) is not None:
                claims.append(claim)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert len(claims) == 100
    assert len({claim.task_id for claim in claims}) == 100
    assert {claim.lease_no for claim in claims} == {1}
    with database.connect() as conn:
        for counted in (Lease, Session):
            assert conn.execute(select(func.count()).select_from(counted)).scalar_one() == 100
        assert conn.execute(select(Task.state).distinct()).scalars().all() == ["leased"]


def test_eight_threads_take_expired_leases_once(database: Database) -> None:
    catalogue = Catalogue(database, images=10)
    for _ in range(10):
        catalogue.expire(catalogue.claim(catalogue.other_id))
    claims: list[Claim | None] = []
    threads = [threading.Thread(target=lambda: claims.append(_next(catalogue))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    given = [claim for claim in claims if claim is not None]
    assert len({claim.task_id for claim in given}) == len(given) == 8
    assert {claim.lease_no for claim in given} == {2}


def test_holder_and_taker_never_both_write(database: Database) -> None:
    """Appends of the old holder race with a claim: none is stored after it, and nobody waits for ever."""
    rounds = 8
    catalogue = Catalogue(database, images=rounds)
    for image in catalogue.images:
        first = catalogue.claim(image_id=image.id)
        catalogue.expire(first)
        stored: list[int] = []
        taken: list[Claim] = []
        barrier = threading.Barrier(2)

        def hold(first: Claim = first, stored: list[int] = stored, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            for seq in range(1, 30):
                try:
                    catalogue.append(first, event(first, seq), lease_s=0.0)
                except LeaseLostError:
                    return
                stored.append(seq)

        def take(image_id: str = image.id, taken: list[Claim] = taken, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            while not taken:
                with contextlib.suppress(StateError):
                    taken.append(catalogue.claim(catalogue.other_id, image_id=image_id))

        threads = [threading.Thread(target=hold), threading.Thread(target=take)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert taken[0].lease_no == 2
        with pytest.raises(LeaseLostError):
            catalogue.append(first, event(first, len(stored) + 1))
        with database.connect() as conn:
            old = get_session(conn, first.session_id)
            assert (old.state, old.last_seq) == ("lost", len(stored))
            assert [found.seq for found in session_events(conn, old.id)] == stored


@pytest.mark.parametrize("is_new", [True, False])
def test_the_last_task_is_not_gone_while_somebody_just_holds_its_row(postgres_database: Database, is_new: bool) -> None:
    catalogue = Catalogue(postgres_database, images=1)
    if not is_new:
        catalogue.expire(catalogue.claim(catalogue.other_id))
    claims: list[Claim | None] = []
    thread = threading.Thread(target=lambda: claims.append(_next(catalogue)))
    waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN (SELECT pid FROM pg_stat_activity WHERE "
                 "datname = current_database())")  # fmt: skip
    with postgres_database.begin() as conn:
        conn.execute(select(Task.id).with_for_update(key_share=True)).all()
        thread.start()
        while thread.is_alive() and not conn.execute(waits).scalar_one():
            thread.join(0.01)
    thread.join()
    assert [claim and claim.image for claim in claims] == catalogue.images


def test_same_claim_twice_at_once_is_one_claim(database: Database) -> None:
    catalogue = Catalogue(database, images=8)
    claim_id = new_uuid()
    claims: list[Claim | None] = []
    threads = [threading.Thread(target=lambda: claims.append(_next(catalogue, claim_id=claim_id))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({claim.session_id for claim in claims if claim is not None}) == 1
    assert len(claims) == 4
    with database.connect() as conn:
        assert conn.execute(select(func.count()).select_from(Session)).scalar_one() == 1
        assert conn.execute(select(func.count()).where(Task.state == "leased")).scalar_one() == 1


@pytest.mark.parametrize("bad", ["", "x" * 37, "a b", "é"])
def test_claim_id_must_fit(catalogue: Catalogue, bad: str) -> None:
    with pytest.raises(BadInputError):
        _next(catalogue, claim_id=bad)
