"""Annotators and their access tokens. A token is random, shown once, and stored as its sha256."""

import hashlib
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, delete, func, insert, or_, select, update

from pipeline.storage.sql import database_now, insert_into, new_id
from schemas.campaigns import SCOPES, AnnotatorRecord
from schemas.catalogue import TokenRecord
from schemas.columns import db_now
from schemas.errors import AuthError, BadInputError, NotFoundError, StateError
from schemas.tables import Annotator, Request, Task, Token

PREFIX = "clk_"
TOUCH_S = 60.0
"""`last_used_at` is kept to about this many seconds."""


def get_or_create_annotator(conn: Connection, name: str) -> AnnotatorRecord:
    """The annotator of this name, without scopes: those are a token's.

    Raises:
        BadInputError: The name is empty, too long or not printable.
    """
    if not name.strip() or len(name) > 200 or not name.isprintable():
        raise BadInputError(f"An annotator's name has 1 to 200 printable characters; got {name[:40]!r}.")
    found = find_annotator(conn, name)
    if found is None:
        values = {"id": new_id(), "name": name, "pseudonym": f"annotator-{secrets.token_hex(6)}"}
        statement = insert_into(conn, Annotator).values(**values, created_at=db_now())
        conn.execute(statement.on_conflict_do_nothing(index_elements=["name"]))
        found = find_annotator(conn, name)
    assert found is not None
    return found


def find_annotator(conn: Connection, name: str) -> AnnotatorRecord | None:
    """The annotator of this name, without scopes; None where there is none."""
    row = conn.execute(select(Annotator.id, Annotator.name).where(Annotator.name == name)).one_or_none()
    return None if row is None else AnnotatorRecord(id=row.id, name=row.name, scopes=frozenset())


def pseudonyms(conn: Connection) -> dict[str, str]:
    """What exports call the annotators, by their ids."""
    return {row.id: row.pseudonym for row in conn.execute(select(Annotator.id, Annotator.pseudonym))}


def pseudonym_of(conn: Connection, name: str) -> str:
    """The pseudonym of the annotator with this name or pseudonym.

    Raises:
        NotFoundError: There is none.
    """
    query = select(Annotator.pseudonym).where(or_(Annotator.name == name, Annotator.pseudonym == name))
    found = conn.execute(query.order_by(Annotator.pseudonym != name)).scalars().first()
    if found is None:
        raise NotFoundError(f"There is no annotator {name[:100]!r}.")
    return found


def create_token(
    conn: Connection, annotator_name: str, scopes: Iterable[str], expires_at: datetime | None = None
) -> tuple[str, str]:
    """Create a token.

    Args:
        conn: Write transaction.
        annotator_name: Whose; created if new.
        scopes: Of label, review, train, export, admin.
        expires_at: Aware; None: never.

    Returns:
        Its id and the token itself, which is not stored and cannot be shown again.

    Raises:
        BadInputError: A scope is unknown, there is none, or the expiry is past.
    """
    wanted = sorted(set(scopes))
    unknown = [scope for scope in wanted if scope not in SCOPES]
    if unknown or not wanted:
        raise BadInputError(f"Scopes are {', '.join(SCOPES)}; got {', '.join(unknown) or 'none'}.")
    if expires_at is not None and expires_at <= database_now(conn):
        raise BadInputError("The token would be expired from the start. Give a later time.")
    annotator = get_or_create_annotator(conn, annotator_name)
    token_id, token = new_id(), PREFIX + secrets.token_urlsafe(32)
    conn.execute(
        insert(Token).values(
            id=token_id,
            annotator_id=annotator.id,
            token_sha256=_digest(token),
            scopes=wanted,
            created_at=db_now(),
            expires_at=expires_at,
        )
    )
    return token_id, token


def authenticate(conn: Connection, token: str) -> AnnotatorRecord:
    """Who holds a token, and with which scopes. Writes nothing; see `touch_token`.

    Raises:
        AuthError: The token is unknown, revoked or expired (the answer does not say which).
    """
    row = conn.execute(
        select(Annotator.id, Annotator.name, Token.scopes)
        .join(Token, Token.annotator_id == Annotator.id)
        .where(Token.token_sha256 == _digest(token), _is_valid())
    ).one_or_none()
    if row is None:
        raise AuthError("The token is not valid. `clickloop token create` makes one.")
    return AnnotatorRecord(id=row.id, name=row.name, scopes=frozenset(row.scopes))


def touch_token(conn: Connection, token: str) -> None:
    """Note that a token was used, at most once in `TOUCH_S` seconds."""
    before = database_now(conn) - timedelta(seconds=TOUCH_S)
    stale = or_(Token.last_used_at.is_(None), Token.last_used_at < before)
    conn.execute(update(Token).where(Token.token_sha256 == _digest(token), stale).values(last_used_at=db_now()))


def list_tokens(conn: Connection) -> list[TokenRecord]:
    """All tokens without their secrets, oldest first."""
    query = select(Token.__table__, Annotator.name.label("annotator")).join(
        Annotator, Annotator.id == Token.annotator_id
    )
    rows = conn.execute(query.order_by(Token.created_at, Token.id))
    return [TokenRecord(**{name: row._mapping[name] for name in TokenRecord.model_fields}) for row in rows]


def require_tokens(conn: Connection, host: str) -> None:
    """Refuse to listen where others can reach it while no token is valid: nobody could call.

    Args:
        conn: Any transaction.
        host: Address that is listened on, off loopback.

    Raises:
        BadInputError: Says how to make one.
    """
    if conn.execute(select(Token.id).where(_is_valid()).limit(1)).first() is None:
        raise BadInputError(
            f"Refusing to listen on {host} without any valid token: run `clickloop token create NAME` first."
        )


def revoke_token(conn: Connection, token_id: str) -> None:
    """Make a token invalid at once; harmless when it is already.

    Raises:
        NotFoundError: There is no such token.
    """
    if conn.execute(select(Token.id).where(Token.id == token_id)).one_or_none() is None:
        raise NotFoundError(f"There is no token {token_id!r}. `clickloop token list` shows them.")
    valid = update(Token).where(Token.id == token_id, Token.revoked_at.is_(None))
    conn.execute(valid.values(revoked_at=db_now()))


def purge_annotator(conn: Connection, name: str) -> tuple[str, int]:
    """Forget who an annotator is: the pseudonym takes the place of the name, the tokens go.

    The row and its id stay, as the append-only log and the masks name them. Harmless when done already, if named by
    the pseudonym.

    Args:
        conn: Write transaction.
        name: The name or the pseudonym.

    Returns:
        The pseudonym, and how many tokens were removed.

    Raises:
        NotFoundError: There is no such annotator.
        StateError: The annotator holds leases; nothing is changed.
    """
    pseudonym = pseudonym_of(conn, name)
    query = select(Annotator.id, Annotator.name).where(Annotator.pseudonym == pseudonym)
    annotator_id, known_as = conn.execute(query.with_for_update()).one()
    held = conn.execute(
        select(func.count())
        .select_from(Task)
        .where(Task.annotator_id == annotator_id, Task.state == "leased", Task.lease_expires_at > db_now())
    ).scalar_one()
    if held:
        raise StateError(
            f"Annotator {name[:100]!r} is at work on {held} image{'s' if held > 1 else ''}. "
            "Let them submit or release, or wait until the leases expire, then purge again."
        )
    removed = conn.execute(delete(Token).where(Token.annotator_id == annotator_id)).rowcount
    conn.execute(update(Annotator).where(Annotator.id == annotator_id).values(name=pseudonym))
    # Exports may have been asked for by name. The payload's digest stays, so that sending one again is recognised.
    asked = select(Request.id, Request.payload).where(Request.kind == "export")
    for row in conn.execute(asked).all():
        names = row.payload.get("annotators") or []
        if known_as in names:
            payload = {**row.payload, "annotators": [pseudonym if n == known_as else n for n in names]}
            conn.execute(update(Request).where(Request.id == row.id).values(payload=payload))
    return pseudonym, removed


def _is_valid() -> ColumnElement[bool]:
    return Token.revoked_at.is_(None) & or_(Token.expires_at.is_(None), Token.expires_at > db_now())


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
