"""Annotators and tokens."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update

from pipeline.storage.annotators import (
    authenticate,
    create_token,
    get_or_create_annotator,
    list_tokens,
    revoke_token,
    touch_token,
)
from pipeline.storage.database import Database
from schemas.errors import AuthError, BadInputError, NotFoundError
from schemas.tables import Annotator, Token


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
