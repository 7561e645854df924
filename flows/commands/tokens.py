"""token create, list and revoke.

They write to the database themselves, also beside a running `serve`: one short transaction, from the trusted side.
"""

import argparse
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from flows.commands.options import Nouns, command, days, group, settings_of
from flows.commands.terminal import Terminal, table
from schemas.campaigns import SCOPES
from schemas.errors import BadInputError

if TYPE_CHECKING:
    from schemas.catalogue import TokenRecord


def register(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    verbs = group(nouns, "token", "make, list and revoke access tokens")
    parser = command(verbs, common, "create", create, "make a token; it is shown once")
    parser.add_argument("annotator", metavar="ANNOTATOR", help="name of the person or program")
    parser.add_argument("--scopes", default="label", metavar="a,b", help=f"of {', '.join(SCOPES)} (default: label)")
    parser.add_argument("--days", type=days, metavar="N", help="days until it expires (default: never)")
    command(verbs, common, "list", list_, "list the tokens, without their secrets")
    command(verbs, common, "revoke", revoke, "make a token invalid").add_argument("id", metavar="ID")


def create(args: argparse.Namespace) -> int:
    """Make a token."""
    from flows.services import small_write
    from pipeline.storage import annotators

    scopes = list(dict.fromkeys(scope.strip() for scope in args.scopes.split(",") if scope.strip()))
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise BadInputError(f"--scopes {args.scopes!r}: known scopes are {', '.join(SCOPES)}.")
    expires_at = datetime.now(UTC) + timedelta(days=args.days) if args.days else None
    with small_write(settings_of(args)) as database, database.begin() as conn:
        token_id, secret = annotators.create_token(conn, args.annotator, scopes, expires_at)
    record = {"id": token_id, "token": secret, "annotator": args.annotator, "scopes": scopes, "expires_at": expires_at}
    Terminal.of(args).result(record, [secret, f"id {token_id}; it is not shown again."])
    return 0


def list_(args: argparse.Namespace) -> int:
    """List the tokens."""
    from flows.services import reading
    from pipeline.storage import annotators
    from pipeline.storage.database import database_now

    with reading(settings_of(args)) as database, database.connect() as conn:
        records, now = annotators.list_tokens(conn), database_now(conn)
    rows = [(r.id, r.annotator, ",".join(sorted(r.scopes)), r.expires_at, _state(r, now)) for r in records]
    lines = table(("ID", "ANNOTATOR", "SCOPES", "EXPIRES", "STATE"), rows) if rows else ["No tokens."]
    Terminal.of(args).result([r.model_dump(mode="json") for r in records], lines)
    return 0


def _state(token: "TokenRecord", now: datetime) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "expired" if token.expires_at is not None and token.expires_at <= now else "valid"


def revoke(args: argparse.Namespace) -> int:
    """Make a token invalid."""
    from flows.services import small_write
    from pipeline.storage import annotators

    with small_write(settings_of(args)) as database, database.begin() as conn:
        annotators.revoke_token(conn, args.id)
    Terminal.of(args).result({"id": args.id, "revoked": True}, [f"Token {args.id} is revoked."])
    return 0
