"""Annotators and tokens."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, select, update

from pipeline.storage.annotators import (
    authenticate,
    create_token,
    get_or_create_annotator,
    list_tokens,
    pseudonym_of,
    purge_annotator,
    revoke_token,
    touch_token,
)
from pipeline.storage.database import Database
from schemas.errors import AuthError, BadInputError, NotFoundError, StateError
from schemas.tables import Annotator, EventRow, Request, Token
from tests.pipeline.storage.catalogues import Catalogue, event


def test_annotator_is_made_once(database: Database) -> None:
    with database.begin() as conn:
        first = get_or_create_annotator(conn, "ann")
        assert get_or_create_annotator(conn, "ann") == first
        assert get_or_create_annotator(conn, "bob").id != first.id
        pseudonyms = conn.execute(select(Annotator.pseudonym)).scalars().all()
        assert len(set(pseudonyms)) == 2
        assert not any("ann" in name.removeprefix("annotator-") for name in pseudonyms)
        for bad in ("", "  ", "x" * 201, "a\x00b"):
            with pytest.raises(BadInputError):
                get_or_create_annotator(conn, bad)


def test_token_opens_with_its_scopes_and_is_not_stored(database: Database) -> None:
    with database.begin() as conn:
        token_id, token = create_token(conn, "ann", ["label", "train", "label"])
        who = authenticate(conn, token)
        stored = conn.execute(select(Token.__table__)).one()
        [listed] = list_tokens(conn)
    assert (who.name, who.scopes) == ("ann", {"label", "train"})
    assert token not in str(stored)
    assert (listed.id, listed.annotator, listed.scopes) == (token_id, "ann", {"label", "train"})


def test_revoked_expired_and_unknown_tokens_are_refused(database: Database) -> None:
    with database.begin() as conn:
        revoked_id, revoked = create_token(conn, "ann", ["label"])
        revoke_token(conn, revoked_id)
        revoke_token(conn, revoked_id)
        expired_id, expired = create_token(conn, "ann", ["label"], datetime.now(UTC) + timedelta(hours=1))
        assert authenticate(conn, expired).name == "ann"
        past = datetime(2020, 1, 1, tzinfo=UTC)
        conn.execute(update(Token).where(Token.id == expired_id).values(expires_at=past))
        for bad in (revoked, expired, "", "clk_nobody"):
            with pytest.raises(AuthError):
                authenticate(conn, bad)
        with pytest.raises(NotFoundError):
            revoke_token(conn, "nobody")


@pytest.mark.parametrize("scopes", [[], ["label", "everything"]])
def test_bad_scopes_are_refused(database: Database, scopes: list[str]) -> None:
    with pytest.raises(BadInputError), database.begin() as conn:
        create_token(conn, "ann", scopes)


def test_token_that_is_expired_from_the_start_is_refused(database: Database) -> None:
    with pytest.raises(BadInputError), database.begin() as conn:
        create_token(conn, "ann", ["label"], datetime(2020, 1, 1, tzinfo=UTC))


def test_use_is_noted_now_and_then(database: Database) -> None:
    with database.begin() as conn:
        _, token = create_token(conn, "ann", ["label"])
        assert list_tokens(conn)[0].last_used_at is None
        touch_token(conn, token)
        first = list_tokens(conn)[0].last_used_at
        assert first is not None
        touch_token(conn, token)
        assert list_tokens(conn)[0].last_used_at == first


def test_purged_annotator_is_only_a_pseudonym(database: Database) -> None:
    with database.begin() as conn:
        _, token = create_token(conn, "ann", ["label"])
        _, other = create_token(conn, "bob", ["label"])
        ann = authenticate(conn, token)
        pseudonym = pseudonym_of(conn, "ann")
        payload = {"annotators": ["bob", "ann"], "formats": ["coco"]}
        times = {"created_at": datetime.now(UTC), "updated_at": datetime.now(UTC)}
        row = {"id": "r", "kind": "export", "payload": payload, "payload_sha256": "d", "progress": {}, **times}
        conn.execute(insert(Request).values(**row))
        assert purge_annotator(conn, "ann") == (pseudonym, 1)
        with pytest.raises(AuthError):
            authenticate(conn, token)
        assert authenticate(conn, other).name == "bob"
        with pytest.raises(NotFoundError):
            purge_annotator(conn, "ann")
        assert purge_annotator(conn, pseudonym) == (pseudonym, 0)
        assert conn.execute(select(Annotator.name).where(Annotator.id == ann.id)).scalar_one() == pseudonym
        stored, digest = conn.execute(select(Request.payload, Request.payload_sha256)).one()
        assert (stored, digest) == ({**payload, "annotators": ["bob", pseudonym]}, "d")
        assert get_or_create_annotator(conn, "ann").id != ann.id


def test_purge_waits_for_leases_and_keeps_the_log(database: Database) -> None:
    catalogue = Catalogue(database, images=1)
    claim = catalogue.claim()
    catalogue.append(claim, event(claim, 1))
    with database.begin() as conn:
        before = conn.execute(select(EventRow.__table__)).all()
        name = conn.execute(select(Annotator.name).where(Annotator.id == before[0].annotator_id)).scalar_one()
        with pytest.raises(StateError, match="at work on 1 image"):
            purge_annotator(conn, name)
        assert get_or_create_annotator(conn, name).id == before[0].annotator_id
    catalogue.expire(claim)
    with database.begin() as conn:
        purge_annotator(conn, name)
        assert conn.execute(select(EventRow.__table__)).all() == before
