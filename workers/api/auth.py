"""Who calls, and with which rights. Tokens are looked up hashed; on loopback a caller without one has full rights.

Knows the catalogue's annotators and the supervisor's own token; knows no routes.
"""

import hmac
import logging
import math
import re
import time
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from pipeline.storage.annotators import authenticate, find_annotator, get_or_create_annotator
from pipeline.storage.database import Database
from pipeline.storage.writer import GroupWriter
from schemas.campaigns import SCOPES, AnnotatorRecord
from schemas.errors import AuthError, BadInputError, ForbiddenError, TooManyAttemptsError
from workers.api.work import read, write

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[\w.@ -]{1,100}")
_CACHE_S = 5.0
"""Seconds for which who a token or name stands for is kept: how late a revocation or purge may bite."""
_MAX_WRONG, _WINDOW_S = 100, 60.0
"""So many wrong tokens of an address are looked up in so many seconds. No rate would let anybody guess 256 bits: this
spares the database, and the log shows the attempt."""
_MAX_KEPT = 10_000
"""Entries of each table below, so that strangers cannot fill the memory."""


@dataclass(frozen=True)
class Caller:
    """An authenticated caller.

    Attributes:
        annotator: Whose work this is, and the scopes.
        trusted: Holds the supervisor's own token: the command line, to which source roots do not apply.
    """

    annotator: AnnotatorRecord
    trusted: bool = False

    @property
    def id(self) -> str:
        """The annotator's id."""
        return self.annotator.id

    def has(self, scope: str) -> bool:
        """Whether the caller has a scope (admin carries all)."""
        return bool({scope, "admin"} & self.annotator.scopes)

    def need(self, scope: str) -> None:
        """Refuse a caller without a scope.

        Raises:
            ForbiddenError: The token does not carry it.
        """
        if not self.has(scope):
            raise ForbiddenError(f"This needs the scope '{scope}', which your token does not have.")


class _WrongTokens:
    """Counts wrong tokens by the address that they came from."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, float]] = {}

    def check(self, address: str) -> None:
        """Refuse an address that sent too many.

        Raises:
            TooManyAttemptsError: Until its window is over.
        """
        count, ends = self._counts.get(address, (0, 0.0))
        left = ends - time.monotonic()
        if count >= _MAX_WRONG and left > 0:
            message = f"Too many wrong tokens came from {address}. Try again in {left:.0f} seconds."
            raise TooManyAttemptsError(message, retry_after_s=math.ceil(left))

    def add(self, address: str) -> None:
        """Count one."""
        now = time.monotonic()
        count, ends = self._counts.get(address, (0, 0.0))
        if ends <= now:
            count, ends = 0, now + _WINDOW_S
        if len(self._counts) > _MAX_KEPT:
            self._counts.clear()
        self._counts[address] = (count + 1, ends)
        if count + 1 == _MAX_WRONG:
            logger.warning("%d wrong tokens from %s: no more are looked up for a while", _MAX_WRONG, address)


class Authenticator:
    """Turns a token and an annotator's name into a caller.

    Args:
        admin_token: The supervisor's own token, "" for none.
        open_door: Whether a caller without a token has full rights (loopback only).
    """

    def __init__(self, database: Database, writer: GroupWriter, admin_token: str, open_door: bool) -> None:
        self._database = database
        self._writer = writer
        self._admin_token = admin_token
        self._open_door = open_door
        self._annotators: dict[str, tuple[float, AnnotatorRecord]] = {}
        self._tokens: dict[str, tuple[float, AnnotatorRecord]] = {}
        self._wrong = _WrongTokens()

    async def caller(self, token: str | None, name: str | None, address: str = "") -> Caller:
        """The caller.

        Args:
            token: Bearer token, None if none was given; one that was given must be valid.
            name: Annotator's name, looked at only where no token names the person.
            address: Where the call comes from.

        Raises:
            AuthError: The token is not valid, or one is needed.
            TooManyAttemptsError: The token is not known, and the address sent many wrong ones.
            BadInputError: The name has characters that no name needs.
        """
        if token:
            if not token.isascii():  # and so no token of ours; half a character could not even be compared
                raise AuthError("The token is not valid. `clickloop token create` makes one.")
            if self._admin_token and hmac.compare_digest(token.encode(), self._admin_token.encode()):
                return Caller(await self._named(name or "local"), trusted=True)
            return Caller(await self._by_token(token, address))
        if not self._open_door:
            raise AuthError("Send a token: 'Authorization: Bearer ...'. `clickloop token create` makes one.")
        return Caller(await self._named(name or "local"))

    async def _by_token(self, token: str, address: str) -> AnnotatorRecord:
        kept = self._tokens.get(token)
        if kept is None:
            self._wrong.check(address)
        if kept is None or kept[0] < time.monotonic():
            try:
                record = await read(self._authenticate, token)
            except AuthError:
                self._tokens.pop(token, None)
                self._wrong.add(address)
                raise
            if len(self._tokens) > _MAX_KEPT:
                self._tokens.clear()
            kept = self._tokens[token] = (time.monotonic() + _CACHE_S, record)
        return kept[1]

    def _authenticate(self, token: str) -> AnnotatorRecord:
        with self._database.connect() as conn:
            return authenticate(conn, token)

    async def _named(self, name: str) -> AnnotatorRecord:
        if not _NAME.fullmatch(name):
            raise BadInputError("An annotator's name has 1 to 100 letters, digits, spaces or any of . _ @ -")
        kept = self._annotators.get(name)
        if kept is None or kept[0] < time.monotonic():
            record = await read(self._find, name)
            if record is None:
                record = await write(self._writer, lambda conn: get_or_create_annotator(conn, name))
            if len(self._annotators) > _MAX_KEPT:
                self._annotators.clear()
            record = record.model_copy(update={"scopes": frozenset(SCOPES)})
            kept = self._annotators[name] = (time.monotonic() + _CACHE_S, record)
        return kept[1]

    def _find(self, name: str) -> AnnotatorRecord | None:
        with self._database.connect() as conn:
            return find_annotator(conn, name)


def address(connection: HTTPConnection) -> str:
    """The client's address, "" where the transport has none."""
    return connection.client.host if connection.client else ""


def bearer(header: str | None) -> str | None:
    """The token of an Authorization header.

    Raises:
        AuthError: There is a header, and it is not "Bearer TOKEN".
    """
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise AuthError("The Authorization header must be 'Bearer TOKEN'.")
    return token.strip()
