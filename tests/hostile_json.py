"""Hypothesis strategies for JSON that nobody honest sends."""

import copy
from typing import Any

from hypothesis import strategies as st

ODD_TEXT = st.sampled_from(
    [
        "",
        "\0",
        "\ud800",
        "a\udfffb",
        "\u202e",
        "<script>alert(1)</script>",
        "' OR 1=1 --",
        "../../etc/passwd",
        "x" * 5000,
    ]
)
ODD_NUMBERS = st.sampled_from(
    [0, -1, 2**31, 2**63, 2**64, -(2**70), 10**400, 1e308, -0.0, float("nan"), float("inf"), float("-inf"), 0.5]
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-3, 300), ODD_NUMBERS, ODD_TEXT, st.text(max_size=8))
json_values = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ODD_TEXT | st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
"""Any value that Python's JSON writes, NaN, huge numbers and halves of characters included."""


def mutated(draw: Any, document: Any, times: int = 2) -> Any:
    """A copy of a document with one or several values replaced, removed, doubled, or added."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, times))):
        places = list(_places(document))
        if not places:
            return draw(json_values)
        parent, key = draw(st.sampled_from(places))
        change = draw(st.sampled_from(["replace", "replace", "replace", "remove", "double", "add"]))
        if change == "replace":
            parent[key] = draw(json_values)
        elif change == "remove":
            del parent[key]
        elif change == "add" and isinstance(parent, dict):
            parent[draw(ODD_TEXT | st.text(max_size=8))] = draw(json_values)
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
    return document


def _places(value: Any) -> Any:
    """(container, key) of every value inside."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from _places(inner)
