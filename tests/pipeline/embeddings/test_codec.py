"""Encodings as bytes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from pipeline.embeddings.codec import check_bytes, decode_bytes, embedding_digest, encode_bytes
from pipeline.models._base import Encoding
from schemas.errors import CorruptDataError


def encoding(seed: int = 0) -> Encoding:
    """Two tensors of different shapes."""
    random = torch.Generator().manual_seed(seed)
    return Encoding(
        {"low": torch.randn(1, 4, 6, 8, generator=random), "high": torch.randn(1, 8, 2, 2, generator=random)}
    )


def test_round_trip_keeps_float16_values() -> None:
    original = encoding()
    back = decode_bytes(encode_bytes(original))
    assert back.tensors.keys() == original.tensors.keys()
    for name, tensor in original.tensors.items():
        assert back[name].dtype == torch.float32
        assert torch.equal(back[name], tensor.half().float())


def test_decodes_to_the_type_asked_for() -> None:
    assert decode_bytes(encode_bytes(encoding()), torch.float16)["low"].dtype == torch.float16


def test_equal_tensors_give_equal_bytes() -> None:
    assert encode_bytes(encoding()) == encode_bytes(encoding())
    assert embedding_digest(encode_bytes(encoding())) != embedding_digest(encode_bytes(encoding(1)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 70000.0])
def test_refuses_values_that_float16_cannot_hold(value: float) -> None:
    with pytest.raises(ValueError, match="float16"):
        encode_bytes(Encoding({"low": torch.full((1, 2), value)}))


def test_refuses_a_batch() -> None:
    with pytest.raises(ValueError, match="one image"):
        encode_bytes(Encoding({"low": torch.zeros(2, 3)}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 64,
        b"not an embedding at all",
        (10).to_bytes(8, "little") + b"[[[[[[[[[[",
        (2).to_bytes(8, "little") + b"[]",
        save({"low": torch.zeros(1, 2)}),
        encode_bytes(encoding())[:-1],
        encode_bytes(encoding())[:50],
        encode_bytes(encoding()) + b"\0",
    ],
)
def test_refuses_what_is_no_whole_embedding(data: bytes) -> None:
    with pytest.raises(CorruptDataError):
        decode_bytes(data)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_any_changed_byte_is_found(position: int, change: int) -> None:
    data = bytearray(encode_bytes(encoding()))
    start = 8 + int.from_bytes(data[:8], "little")
    data[start + position % (len(data) - start)] ^= change
    with pytest.raises(CorruptDataError):
        check_bytes(bytes(data))


def test_arrays_are_what_safetensors_reads() -> None:
    from safetensors.numpy import load

    arrays = load(encode_bytes(encoding()))
    assert arrays["low"].dtype == np.float16
