"""Many rows as Arrow columns: the database joins each column's values to one text, which Arrow takes apart.

No Python object is made per value, which costs more than everything else about reading a row. Knows no table.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Boolean, ColumnElement, Connection, Float, Integer, Select, Text, cast, func, select

from schemas.columns import UtcDateTime

TIME = pa.timestamp("us", tz="UTC")


def read_columns(conn: Connection, query: Select[Any]) -> pa.Table:
    """The rows of a query.

    Args:
        conn: Any transaction.
        query: Of numbers, truth values, times and texts; JSON comes as the text that is stored.

    Returns:
        The columns under their labels as int64, float64, bool, timestamp (UTC) or string, in any order. Empty texts are
        null.
    """
    rows = query.subquery()
    texts = [func.coalesce(_text(conn, column), "") for column in rows.c]
    joined = [func.aggregate_strings(text, "\n") for text in texts]
    count, *found = conn.execute(select(func.count(), *joined).select_from(rows)).one()
    columns = [_split(text) if count else pa.array([], pa.string()) for text in found]
    if any(len(column) != count for column in columns):  # a text has a newline, as the name of a file may
        plain = conn.execute(select(*texts).select_from(rows)).all()
        columns = [pa.array(values, pa.string()) for values in zip(*plain, strict=True)]
    kinds = [_kind(column) for column in rows.c]
    typed = [_typed(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    return pa.table(typed, names=list(rows.c.keys()))


def _text(conn: Connection, column: ColumnElement[Any]) -> ColumnElement[str]:
    if isinstance(column.type, UtcDateTime) and conn.dialect.name == "postgresql":
        return func.to_char(column, "YYYY-MM-DD HH24:MI:SS.US")  # in the connection's zone, which is UTC
    return cast(column, Text)


def _kind(column: ColumnElement[Any]) -> pa.DataType:
    for own, kind in ((Integer, pa.int64()), (Float, pa.float64()), (Boolean, pa.bool_()), (UtcDateTime, TIME)):
        if isinstance(column.type, own):
            return kind
    return pa.string()


def _split(text: str) -> pa.Array:
    return pc.split_pattern(pa.array([text]), "\n").flatten()


def _typed(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if pc.min(pc.binary_length(values)).as_py() == 0:
        values = pc.if_else(pc.equal(values, ""), None, values)
    return values.cast(pa.timestamp("us")).cast(kind) if kind == TIME else values.cast(kind)
