"""JSON made from Arrow columns, a text per row, without a Python object per row.

A text is described by its parts: columns, and constants between them. Only at the end are they put together, once.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

Parts: TypeAlias = list[Any]
"""Arrow arrays of texts without nulls, and strings."""


def object_parts(fields: Mapping[str, Parts]) -> Parts:
    """A JSON object per row."""
    parts: Parts = []
    for key, value in fields.items():
        parts += ["," if parts else "{", orjson.dumps(key).decode() + ":", *value]
    return [*parts, "}"]


def list_parts(columns: Sequence[Parts]) -> Parts:
    """A JSON list per row."""
    parts: Parts = []
    for column in columns:
        parts += ["," if parts else "[", *column]
    return [*parts, "]"]


def numbers(values: pa.Array | pa.ChunkedArray) -> Parts:
    """Numbers and truth values; null is null."""
    return [pc.fill_null(values.cast(pa.string()), "null")]


def quoted(values: pa.Array | pa.ChunkedArray) -> Parts:
    """Texts; null is null."""
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    data = _bytes(whole)
    if (data < ord(" ")).any():
        return [pa.array([orjson.dumps(text).decode() for text in whole.to_pylist()], pa.string())]
    for mark in "\\", '"':  # in this order
        if (data == ord(mark)).any():
            whole = pc.replace_substring(whole, mark, "\\" + mark)
    if whole.null_count:
        return [pc.binary_join_element_wise('"', whole, '"', "").fill_null("null")]
    return ['"', whole, '"']


def texts(parts: Parts) -> pa.Array | pa.ChunkedArray:
    """The text of each row."""
    merged: Parts = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    return pc.binary_join_element_wise(*merged, "")


def joined(values: pa.Array | pa.ChunkedArray, between: str) -> pa.Buffer:
    """All texts in one."""
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return pc.binary_join(pa.ListArray.from_arrays([0, len(whole)], whole), between)[0].as_buffer()


def _bytes(values: pa.StringArray) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What the texts hold, without what Arrow keeps before and behind them."""
    _, offsets, data = values.buffers()
    if not len(values) or data is None:
        return np.empty(0, np.uint8)
    ends = np.frombuffer(offsets, np.int32)[[values.offset, values.offset + len(values)]]
    return np.frombuffer(data, np.uint8)[ends[0] : ends[1]]
