"""An encoding as bytes: uncompressed fp16 safetensors that carry a checksum of their tensors.

The checksum makes a damaged file known without the catalogue; the digest of all the bytes is what pins name.
"""

import hashlib
import json

import safetensors
import torch
from safetensors.torch import load, save

from pipeline.models._base import Encoding
from schemas.errors import CorruptDataError

DTYPE = "float16"
LAYOUT = "safetensors-v1"
"""Name of this layout, part of the key of stored embeddings."""
_CHECKSUM = "tensors_sha256"


def encode_bytes(encoding: Encoding) -> bytes:
    """Encoding of one image to bytes; equal tensors give equal bytes.

    Raises:
        ValueError: It holds several images, or a value that float16 cannot hold (NaN, infinite, over 65504).
    """
    if encoding.batch_size != 1:
        raise ValueError(f"An embedding is of one image, and this encoding holds {encoding.batch_size}.")
    tensors = {name: t.detach().to("cpu", torch.float16).contiguous() for name, t in encoding.tensors.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"Tensor {name!r} of the encoding has values that float16 cannot hold.")
    return save(tensors, {_CHECKSUM: _tensors_checksum(save(tensors))})


def decode_bytes(data: bytes, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> Encoding:
    """Bytes to an encoding of one image.

    Raises:
        CorruptDataError: The bytes are not what `encode_bytes` wrote.
    """
    check_bytes(data)
    return Encoding(load(data)).to(device=device, dtype=dtype)


def check_bytes(data: bytes) -> None:
    """Refuse anything but the undamaged bytes of an embedding.

    Raises:
        CorruptDataError: They are cut off, damaged or something else.
    """
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        expected = header["__metadata__"][_CHECKSUM]
        intact = expected == _tensors_checksum(data)
        if intact:
            safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except (ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        raise CorruptDataError(f"Not an embedding ({len(data)} bytes): {error}.") from error
    if not intact:
        raise CorruptDataError(f"The embedding is damaged ({len(data)} bytes): its checksum does not match.")


def embedding_digest(data: bytes) -> str:
    """sha256 (hex) of the stored bytes: what an instance's pins name."""
    return hashlib.sha256(data).hexdigest()


def _tensors_checksum(data: bytes) -> str:
    """sha256 (hex) of what follows the header."""
    start = 8 + int.from_bytes(data[:8], "little")
    return hashlib.sha256(memoryview(data)[start:]).hexdigest()
