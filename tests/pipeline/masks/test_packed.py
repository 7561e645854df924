import contextlib
import json
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline.masks.packed import pack, unpack
from schemas.errors import BadInputError, TooLargeError
from schemas.masks import PackedMask


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_round_trip_also_through_json(mask: np.ndarray) -> None:
    packed = pack(mask)
    assert np.array_equal(unpack(packed), mask)
    assert np.array_equal(unpack(PackedMask.model_validate_json(packed.model_dump_json())), mask)


def test_only_the_bounding_box_travels_as_flat_bits_of_what_changes_from_row_to_row() -> None:
    mask = np.zeros((9, 11), np.bool_)
    mask[2:5, 3:6] = [[1, 0, 1], [1, 1, 0], [0, 0, 1]]
    packed = pack(mask)
    assert packed.size == (9, 11)
    assert packed.box == (3, 2, 6, 5)
    assert packed.rows == "xor"
    assert zlib.decompress(packed.bits) == bytes([0b10101111, 0b10000000])  # 101, 110 ^ 101, 001 ^ 110


def test_plain_rows_are_read_as_well() -> None:
    mask = np.zeros((9, 11), np.bool_)
    mask[2:5, 3:6] = [[1, 0, 1], [1, 1, 0], [0, 0, 1]]
    bits = zlib.compress(bytes([0b10111000, 0b10000000]))
    packed = PackedMask(size=(9, 11), box=(3, 2, 6, 5), bits=bits)
    assert packed.rows == "plain" and np.array_equal(unpack(packed), mask)
    assert isinstance(json.loads(packed.model_dump_json())["bits"], str)


def test_empty_mask() -> None:
    packed = pack(np.zeros((3, 4), np.bool_))
    assert packed.box == (0, 0, 0, 0)
    assert not unpack(packed).any()


@pytest.mark.parametrize("box", [(0, 0, 5, 3), (-1, 0, 3, 3), (2, 0, 1, 3), (0, 0, 3, 4)])
def test_box_outside_the_mask_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(BadInputError, match="leaves the mask"):
        unpack(PackedMask(size=(3, 4), box=box, bits=zlib.compress(b"\0\0")))


@pytest.mark.parametrize(
    "bits", [b"", b"not zlib", zlib.compress(b"\0"), zlib.compress(bytes(3)), zlib.compress(bytes(2))[:-3]]
)
def test_corrupt_or_wrong_length_bits_are_refused(bits: bytes) -> None:
    with pytest.raises(BadInputError, match="bits of a packed mask"):
        unpack(PackedMask(size=(3, 4), box=(0, 0, 4, 3), bits=bits))


def test_zlib_bomb_is_refused_without_inflating_it() -> None:
    bomb = zlib.compress(bytes(50_000_000), 9)
    assert len(bomb) < 60_000
    with pytest.raises(BadInputError, match="2 bytes"):
        unpack(PackedMask(size=(3, 4), box=(0, 0, 4, 3), bits=bomb))


def test_oversized_mask_is_refused() -> None:
    with pytest.raises(TooLargeError):
        unpack(PackedMask(size=(10**6, 10**6), box=(0, 0, 0, 0), bits=zlib.compress(b"")))


@given(st.binary(max_size=60))
def test_any_bytes_are_decoded_or_refused(bits: bytes) -> None:
    with contextlib.suppress(BadInputError):
        unpack(PackedMask(size=(5, 5), box=(0, 0, 5, 5), bits=bits))
