"""Small SQL helpers that both databases share. Knows no table."""

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel
from sqlalchemy import Connection, Executable, Row, Table, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase

from schemas.columns import db_now
from schemas.errors import BadInputError

T = TypeVar("T")
BATCH = 200
"""Rows of one statement."""


def new_id() -> str:
    """A random UUID as text."""
    return str(uuid.uuid4())


def require_id(value: str, what: str) -> str:
    """A client-made id that fits its column on every database.

    Raises:
        BadInputError: It does not.
    """
    if not (0 < len(value) <= 36 and value.isascii() and value.replace("-", "").isalnum()):
        raise BadInputError(f"The {what} id is not a UUID: {value[:40]!r}.")
    return value


def table(cls: type[DeclarativeBase]) -> Table:
    """The Core table of a declarative class."""
    assert isinstance(cls.__table__, Table)
    return cls.__table__


def insert_into(where: Connection | str, cls: type[DeclarativeBase]) -> Any:
    """An INSERT of a connection's (or named) dialect, with `on_conflict_do_nothing` and `on_conflict_do_update`."""
    dialect = where if isinstance(where, str) else where.dialect.name
    module = sqlite if dialect == "sqlite" else postgresql
    return module.insert(table(cls))


def database_now(conn: Connection) -> datetime:
    """The time by the database's clock, aware, in UTC."""
    now = conn.execute(select(db_now())).scalar_one()
    assert isinstance(now, datetime)
    return now


def one(conn: Connection, query: Executable) -> Row[Any] | None:
    """The only row, or None."""
    return conn.execute(query).one_or_none()


def fields(row: Row[Any], record: type[BaseModel]) -> dict[str, Any]:
    """A row's values under the names of a record's fields."""
    values = dict(zip(row._fields, row, strict=True))
    return {name: values[name] for name in record.model_fields}


def batches(items: Iterable[T], size: int = BATCH) -> Iterable[Sequence[T]]:
    """Consecutive lists of at most `size` items."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
