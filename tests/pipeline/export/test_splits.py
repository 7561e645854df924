"""Images stay in their part, near-duplicates together."""

import hashlib

import pytest

from pipeline.export.splits import Splits
from pipeline.storage.snapshots import SnapshotImage
from schemas.errors import BadInputError


def image(number: int, group: str, holdout: bool = False) -> SnapshotImage:
    key = hashlib.sha256(group.encode()).hexdigest()
    return SnapshotImage(
        id=str(number), number=number, uri="", file_name="", sha256=f"{number:064x}", group_key=key, holdout=holdout,
        width=1, height=1, format="PNG", items=1,
    )  # fmt: skip


def test_shares_are_about_what_was_asked_for() -> None:
    drawn = [Splits(val=0.2, test=0.1).of(image(number, str(number))) for number in range(2000)]
    assert {part: round(drawn.count(part) / 2000, 1) for part in ("train", "val", "test")} == {
        "train": 0.7,
        "val": 0.2,
        "test": 0.1,
    }


def test_a_group_stays_together_and_where_it_was() -> None:
    splits = Splits(val=0.3, test=0.3)
    for group in range(50):
        assert len({splits.of(image(number, f"group {group}")) for number in (1, 7, 1000)}) == 1
    kept = [splits.of(image(number, f"fixed {number}")) for number in range(8)]
    assert kept == ["train", "test", "train", "train", "train", "train", "train", "val"]


def test_larger_shares_only_take_from_train() -> None:
    for number in range(300):
        small, large = (Splits(val=v, test=v).of(image(number, str(number))) for v in (0.1, 0.3))
        assert small in {"train", large}


def test_without_shares_it_is_what_the_campaign_holds_out() -> None:
    assert [Splits().of(image(1, "a", holdout)) for holdout in (False, True)] == ["train", "holdout"]


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0), (0, 1), (0.6, 0.4), (float("nan"), 0)])
def test_impossible_shares_are_refused(val: float, test: float) -> None:
    with pytest.raises(BadInputError, match="together below 1"):
        Splits(val, test)
