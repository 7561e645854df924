"""JSON made from columns is the JSON that orjson makes."""

import orjson
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.export.json_lines import joined, list_parts, numbers, object_parts, quoted, texts

ROWS = st.lists(
    st.tuples(st.text(max_size=12) | st.none(), st.integers(-(2**63), 2**63 - 1), st.booleans()), min_size=1
)


@given(ROWS)
def test_objects_are_orjsons(rows: list[tuple[str | None, int, bool]]) -> None:
    names, counts, flags = (pa.chunked_array([pa.array(column)]) for column in zip(*rows, strict=True))
    made = object_parts(
        {
            'a "key"': quoted(names.cast(pa.string())),
            "n": numbers(counts),
            "flag": numbers(flags),
            "list": list_parts([numbers(counts), numbers(counts)]),
        }
    )
    wanted = [{'a "key"': text, "n": n, "flag": flag, "list": [n, n]} for text, n, flag in rows]
    assert joined(texts(made), "\n").to_pybytes() == b"\n".join(map(orjson.dumps, wanted))
