"""Promotion is earned, by compare-and-set, and can be rolled back."""

import threading

import pytest

from pipeline.storage.adapters import (
    get_adapter,
    get_model,
    list_adapters,
    list_evaluations,
    promote,
    record_evaluation,
    register_adapter,
    register_model,
    rollback,
    set_gate,
)
from pipeline.storage.campaigns import get_campaign
from schemas.errors import BadInputError, ConflictError, NotFoundError, StateError
from tests.pipeline.storage.catalogues import SHA, Catalogue, new_uuid, sha


def _register(catalogue: Catalogue, name: str, *, passed: bool | None = True, **changes: object) -> str:
    values = {
        "digest": sha(name),
        "campaign_id": catalogue.campaign_id,
        "kind": "head",
        "uri": f"adapters/{name}",
        "model_digest": SHA,
        "model_key": "key",
        "parent_digest": None,
        "snapshot_id": None,
        "seed": 7,
        "metrics": {"steps": 3},
        **changes,
    }
    with catalogue.database.begin() as conn:
        register_adapter(conn, **values)  # type: ignore[arg-type]
        if passed is not None:
            set_gate(conn, sha(name), "candidate" if passed else "rejected", {"promote": passed})
    return sha(name)


def _promote(catalogue: Catalogue, digest: str | None, version: int) -> int:
    with catalogue.database.begin() as conn:
        return promote(conn, catalogue.campaign_id, digest, version)


def _live(catalogue: Catalogue) -> tuple[str | None, int]:
    with catalogue.database.connect() as conn:
        campaign = get_campaign(conn, catalogue.campaign_id)
    return campaign.live_adapter, campaign.live_version


def test_adapters_are_numbered_with_their_lineage(catalogue: Catalogue) -> None:
    first = _register(catalogue, "a", passed=None)
    second = _register(catalogue, "b", passed=None, parent_digest=first)
    _register(catalogue, "a", passed=None)
    with catalogue.database.connect() as conn:
        adapters = list_adapters(conn, catalogue.campaign_id)
        assert [(a.number, a.digest, a.parent_digest, a.state, a.live) for a in adapters] == [
            (1, first, None, "candidate", False),
            (2, second, first, "candidate", False),
        ]
        assert get_adapter(conn, first) == adapters[0]
        assert adapters[0].metrics == {"steps": 3}
        with pytest.raises(NotFoundError):
            get_adapter(conn, sha("nobody"))


def test_adapter_of_an_unknown_campaign_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(NotFoundError):
        _register(catalogue, "a", campaign_id=new_uuid())


def test_promotion_makes_live_and_retires_the_former(catalogue: Catalogue) -> None:
    first, second = _register(catalogue, "a"), _register(catalogue, "b")
    assert _promote(catalogue, first, 0) == 1
    assert _promote(catalogue, second, 1) == 2
    assert _live(catalogue) == (second, 2)
    with catalogue.database.connect() as conn:
        assert [(a.state, a.live) for a in list_adapters(conn, catalogue.campaign_id)] == [
            ("retired", False),
            ("promoted", True),
        ]
    assert _promote(catalogue, None, 2) == 3
    assert _live(catalogue) == (None, 3)


@pytest.mark.parametrize("passed", [False, None])
def test_what_has_not_passed_the_gate_never_goes_live(catalogue: Catalogue, passed: bool | None) -> None:
    digest = _register(catalogue, "a", passed=passed)
    with pytest.raises(StateError, match="gate"):
        _promote(catalogue, digest, 0)
    assert _live(catalogue) == (None, 0)


def test_what_was_compared_with_another_one_does_not_go_live_until_that_is_live_again(catalogue: Catalogue) -> None:
    first, second = _register(catalogue, "a"), _register(catalogue, "b")
    with catalogue.database.begin() as conn:
        for digest in (first, second):
            set_gate(conn, digest, "candidate", {"promote": True, "against": None})
    assert _promote(catalogue, first, 0) == 1
    with pytest.raises(StateError, match="better than the bare model"):
        _promote(catalogue, second, 1)
    with catalogue.database.begin() as conn:
        rollback(conn, catalogue.campaign_id)
    assert _promote(catalogue, second, 2) == 3


def test_adapter_of_another_model_never_goes_live(catalogue: Catalogue) -> None:
    digest = _register(catalogue, "a", model_key="another key")
    with pytest.raises(StateError, match="another model"):
        _promote(catalogue, digest, 0)


def test_promotion_names_the_version_it_saw(catalogue: Catalogue) -> None:
    first, second = _register(catalogue, "a"), _register(catalogue, "b")
    _promote(catalogue, first, 0)
    with pytest.raises(ConflictError) as caught:
        _promote(catalogue, second, 0)
    assert caught.value.code == "conflict"
    assert caught.value.details == {"live_version": 1, "live_adapter": first}
    assert _live(catalogue) == (first, 1)


def test_of_many_promotions_at_once_one_wins(catalogue: Catalogue) -> None:
    digests = [_register(catalogue, str(n)) for n in range(6)]
    outcomes: list[object] = []

    def attempt(digest: str) -> None:
        try:
            outcomes.append(_promote(catalogue, digest, 0))
        except ConflictError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=attempt, args=(digest,)) for digest in digests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 6
    assert outcomes.count(1) == 1
    assert _live(catalogue)[1] == 1


def test_rolling_back_goes_further_back_each_time(catalogue: Catalogue) -> None:
    first, second, third = (_register(catalogue, name) for name in "abc")
    for version, digest in enumerate((first, second, third)):
        _promote(catalogue, digest, version)

    def back() -> tuple[int, str | None]:
        with catalogue.database.begin() as conn:
            return rollback(conn, catalogue.campaign_id)

    assert back() == (4, second)
    assert back() == (5, first)
    assert _promote(catalogue, third, 5) == 6
    assert back() == (7, first)
    assert back() == (8, None)
    assert _live(catalogue) == (None, 8)
    with pytest.raises(StateError):
        back()


def test_gate_is_written_down_with_the_metrics(catalogue: Catalogue) -> None:
    digest = _register(catalogue, "a", passed=None)
    with catalogue.database.begin() as conn:
        set_gate(conn, digest, "rejected", {"promote": False, "reasons": ["worse"]}, {"noc90": 5.5})
        found = get_adapter(conn, digest)
        assert (found.state, found.gate["reasons"], found.metrics) == ("rejected", ["worse"], {"noc90": 5.5})
        with pytest.raises(NotFoundError):
            set_gate(conn, sha("nobody"), "rejected", {})
        with pytest.raises(BadInputError):
            set_gate(conn, digest, "wonderful", {})


def test_models_are_kept_by_digest(catalogue: Catalogue) -> None:
    with catalogue.database.begin() as conn:
        register_model(conn, SHA, "toy-color", "models/a.safetensors", 10)
        register_model(conn, SHA, "toy-color", "models/b.safetensors", 20)
        assert get_model(conn, SHA).uri == "models/a.safetensors"
        with pytest.raises(NotFoundError):
            get_model(conn, sha("nobody"))


def test_evaluations_are_listed(catalogue: Catalogue) -> None:
    with catalogue.database.begin() as conn:
        made = record_evaluation(
            conn, campaign_id=catalogue.campaign_id, model_digest=SHA, adapter_digest=None, report={"noc": {"90": 5.0}}
        )
        [found] = list_evaluations(conn, catalogue.campaign_id)
    assert (found["id"], found["report"]) == (made, {"noc": {"90": 5.0}})
