"""The cache keeps its bound and what was used last."""

from hypothesis import given
from hypothesis import strategies as st

from workers.lru import Lru

OPERATIONS = st.lists(st.tuples(st.sampled_from(["put", "get"]), st.integers(0, 9), st.integers(1, 60)))


@given(OPERATIONS)
def test_it_is_the_model_with_a_bound(operations: list[tuple[str, int, int]]) -> None:
    lru: Lru[int, int] = Lru(100)
    model: list[tuple[int, int]] = []  # (key, size), longest unused first
    for kind, key, size in operations:
        known = dict(model)
        if kind == "get":
            assert lru.get(key) == known.get(key)
            if key in known:
                model = [entry for entry in model if entry[0] != key] + [(key, known[key])]
        else:
            lru.put(key, size, size)
            model = [entry for entry in model if entry[0] != key] + [(key, size)]
            while sum(s for _, s in model) > 100:
                model = model[1:]
        assert lru.size == sum(s for _, s in model) <= 100
        assert len(lru) == len(model)


def test_one_entry_over_the_limit_stays() -> None:
    lru: Lru[str, int] = Lru(10)
    lru.put("small", 1, 5)
    lru.put("giant", 2, 500)
    assert (lru.get("giant"), lru.get("small")) == (2, None)
    lru.put("small", 1, 5)
    assert (lru.get("giant"), lru.get("small")) == (None, 1)
