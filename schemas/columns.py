"""What the tables need beyond plain SQLAlchemy: UTC times on every database, its clock, append-only tables.

Knows SQLite and PostgreSQL; nothing about which tables there are.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DDL, DateTime, Table, event
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, always read back in UTC. SQLite, which knows no zones, stores it as UTC without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database; a naive time is a mistake of ours."""
        if value is None:
            return None
        assert value.tzinfo is not None, "naive datetime"
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the database."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class db_now(FunctionElement[datetime]):
    """The time by the database's clock, not of the transaction's start: expiry and order of events are judged by it."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _now_sqlite(element: db_now, compiler: Any, **kw: Any) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


@compiles(db_now, "postgresql")
def _now_postgresql(element: db_now, compiler: Any, **kw: Any) -> str:
    return "clock_timestamp()"


POSTGRESQL_REFUSE = """
CREATE OR REPLACE FUNCTION clickloop_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$
"""


POSTGRESQL_REFUSE_DELETE = """
CREATE OR REPLACE FUNCTION clickloop_delete_{table}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS ({unless}) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$
"""


def append_only_statements(table: str, unless: str, dialect: str) -> list[str]:
    """The SQL that makes a table refuse update and delete (and truncate on PostgreSQL).

    Args:
        table: Its name.
        unless: A query on `OLD`; a row for which it finds something may be deleted.
        dialect: sqlite or postgresql.
    """
    if dialect == "sqlite":
        refuse = f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        return [
            f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} {refuse}",
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} WHEN NOT EXISTS ({unless}) {refuse}",
        ]
    refuse = "EXECUTE FUNCTION clickloop_append_only()"
    return [
        POSTGRESQL_REFUSE,
        POSTGRESQL_REFUSE_DELETE.format(table=table, unless=unless),
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE ON {table} FOR EACH ROW {refuse}",
        f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} FOR EACH ROW "
        f"EXECUTE FUNCTION clickloop_delete_{table}()",
        f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT {refuse}",
    ]


def make_append_only(table: Table, unless: str) -> None:
    """Create the triggers of `append_only_statements` whenever `table` is created from its metadata."""
    for dialect in ("sqlite", "postgresql"):
        after_create(table, dialect, append_only_statements(table.name, unless, dialect))


def after_create(table: Table, dialect: str, statements: list[str]) -> None:
    """Execute statements whenever `table` was created from its metadata in a database of that dialect."""
    for statement in statements:
        ddl = DDL(statement.replace("%", "%%")).execute_if(dialect=dialect)  # type: ignore[no-untyped-call]
        event.listen(table, "after_create", ddl)
