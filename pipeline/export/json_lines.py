"""JSON objects made from Arrow columns, a line each, without a Python object per row."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

Values: TypeAlias = Any
"""An Arrow array, in one piece or several."""


def object_texts(fields: Mapping[str, Values]) -> Values:
    """One JSON object per row.

    Args:
        fields: JSON texts by key (see `quoted` and `numbers`); null is `null`.
    """
    parts: list[Values | str] = []
    for place, (key, values) in enumerate(fields.items()):
        parts += [("," if place else "{") + orjson.dumps(key).decode() + ":", pc.fill_null(values, "null")]
    return pc.binary_join_element_wise(*parts, "}", "")


def list_texts(columns: Sequence[Values]) -> Values:
    """One JSON list per row, of JSON texts."""
    return pc.binary_join_element_wise("[", pc.binary_join_element_wise(*columns, ","), "]", "")


def numbers(values: Values) -> Values:
    """Whole numbers and truth values as JSON texts."""
    return values.cast(pa.string())


def quoted(values: Values) -> Values:
    """Texts as JSON strings."""
    if pa.types.is_dictionary(values.type):
        return quoted(values.dictionary).take(values.indices)
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    odd = _odd_bytes(whole)
    if odd - {ord('"'), ord("\\")}:
        return pa.array(
            [None if text is None else orjson.dumps(text).decode() for text in whole.to_pylist()], pa.string()
        )
    for mark in ("\\", '"'):
        if ord(mark) in odd:
            whole = pc.replace_substring(whole, mark, "\\" + mark)
    return pc.binary_join_element_wise('"', whole, '"', "")


def joined(texts: Values, between: str) -> pa.Buffer:
    """All texts in one."""
    whole = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    return pc.binary_join(pa.ListArray.from_arrays([0, len(whole)], whole), between)[0].as_buffer()


def _odd_bytes(values: pa.StringArray) -> set[int]:
    """Bytes of some texts that JSON wants escaped."""
    data = joined(values.fill_null(""), "")
    found = np.bincount(np.frombuffer(data, np.uint8), minlength=128)
    return {byte for byte in (*range(32), ord('"'), ord("\\")) if found[byte]}
