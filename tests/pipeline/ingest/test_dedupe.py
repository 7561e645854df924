"""Near-duplicate groups."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingest.decode import decode_image
from pipeline.ingest.dedupe import GroupIndex, perceptual_hash
from tests.pipeline.ingest.pictures import encoded, scene


def distance(first: str, second: str) -> int:
    """Differing bits."""
    return (int(first, 16) ^ int(second, 16)).bit_count()


@pytest.mark.parametrize("seed", range(8))
def test_the_same_picture_in_another_file_is_near(seed: int) -> None:
    picture = scene(seed, 240, 320)
    original = perceptual_hash(picture)
    jpeg, _ = decode_image(encoded(picture, "JPEG", quality=60))
    smaller = cv2.resize(picture, (160, 120), interpolation=cv2.INTER_AREA)
    brighter = np.clip(picture.astype(int) + 12, 0, 255).astype(np.uint8)
    for changed in (jpeg, smaller, brighter):
        assert distance(original, perceptual_hash(np.asarray(changed, np.uint8))) <= 6


def test_different_pictures_are_far() -> None:
    hashes = [perceptual_hash(scene(seed)) for seed in range(40)]
    assert min(distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > 6


def test_groups_have_a_leader_and_do_not_chain() -> None:
    index = GroupIndex([(f"{0:016x}", "old")], max_distance=2)
    assert index.assign(f"{0b11:016x}", "a") == "old"
    assert index.assign(f"{0b1111:016x}", "b") == "b"  # near a, which leads nothing
    assert index.assign(f"{0b11110:016x}", "c") == "b"


def test_the_nearest_leader_wins_and_the_index_grows() -> None:
    random = np.random.default_rng(0)
    hashes = [f"{int(value):016x}" for value in random.integers(0, 2**63, 3000)]
    index = GroupIndex()
    keys = [index.assign(phash, str(number)) for number, phash in enumerate(hashes)]
    assert keys == [str(number) for number in range(3000)]
    assert [index.assign(phash, "again") for phash in hashes] == keys


@given(st.lists(st.integers(0, 63), max_size=40), st.integers(0, 40), st.integers(1, 3))
def test_equal_hashes_are_in_one_group_in_any_order_and_groups_stay(
    values: list[int], restart: int, max_distance: int
) -> None:
    images: list[tuple[str, str, str]] = []
    index = GroupIndex(max_distance=max_distance)
    for number, value in enumerate(values):
        if number == restart:  # as the next pass finds them
            index = GroupIndex([(phash, key) for _, phash, key in images], max_distance)
        phash = f"{value:016x}"
        images.append((str(number), phash, index.assign(phash, str(number))))
    keys: dict[str, set[str]] = {}
    hashes = {sha256: phash for sha256, phash, _ in images}
    for _, phash, key in images:
        keys.setdefault(phash, set()).add(key)
        assert distance(phash, hashes[key]) <= max_distance
    assert all(len(found) == 1 for found in keys.values())
    assert all(key == leader for leader, _, key in images if leader in {key for _, _, key in images})
