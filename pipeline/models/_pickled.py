"""Tensors out of a `.pth` file without running anything that the file asks for.

A pickle is a program that may name any function. Here every name that it mentions becomes either one of a few known
shapes (a dict, a set, a tensor's place in a storage) or an inert placeholder that swallows whatever is done to it, so
official checkpoints load although they hold objects of packages that are not installed, and a hostile one does nothing.
Reads the zip form (torch >= 1.6) and the older form. Knows no model.
"""

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from schemas.errors import BadCheckpointError

_MAX_PICKLE_BYTES = 256 << 20
_MAX_MEMO = 10_000_000
"""Largest memo index: the unpickler allocates a table up to it."""
_MAX_COPIES = 8
"""A storage is copied for each tensor in it; official files hold some twice."""
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class _Place:
    """A tensor before its storage is read."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


class _Inert:
    """Stands for any object of any class: takes everything, keeps nothing, calls nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        """Swallow."""

    def extend(self, values: object) -> None:
        """Swallow."""

    def add(self, value: object) -> None:
        """Swallow."""


class _Dict(dict[Any, Any]):
    """An OrderedDict or EasyDict, whose attributes (`_metadata`; the entries once more) are not wanted."""

    def __setstate__(self, state: object) -> None:
        pass


def _place(storage: object, offset: object, size: object, stride: object, *rest: object) -> _Place:
    return _Place(storage, offset, size, stride)


def _parameter(data: object, *rest: object) -> object:
    return data


class _SafeUnpickler(pickle.Unpickler):
    """Knows the few names that make up a state dict; every other name is `_Inert`."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.dtypes: dict[str, torch.dtype] = {}
        """Of each storage that the pickle names, those that only placeholders hold included."""

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the file stands for here."""
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): _Dict,
            ("easydict", "EasyDict"): _Dict,  # AdaptiveClick's configuration
            ("builtins", "set"): set,
            ("torch._utils", "_rebuild_tensor_v2"): _place,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
            ("torch", "Size"): tuple,
        }
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _DTYPES[name]
        return known.get((module, name), _Inert)

    def persistent_load(self, pid: Any) -> Any:
        """A storage: ("storage", type, key, location, number of elements[, view]); older files also name classes so."""
        if isinstance(pid, tuple) and pid and pid[0] == "module":
            return _Inert
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], torch.dtype):
            raise BadCheckpointError(
                "it holds a storage of an unknown kind (of quantised or complex values, perhaps). Export it again, as "
                "float16 or float32."
            )
        if not isinstance(pid[4], int) or pid[4] < 0 or (len(pid) > 5 and pid[5] is not None):
            raise pickle.UnpicklingError("a storage of a nonsensical size")
        storage = _Storage(str(pid[2]), pid[1], pid[4])
        self.dtypes[storage.key] = storage.dtype
        return storage


def read_pickled(path: Path) -> Any:
    """Read a `.pth` file: dicts, lists, numbers, text and tensors; placeholders for everything else.

    Raises:
        BadCheckpointError: It is no such file, or truncated, or malformed.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            if start == b"PK\x03\x04":
                return _read_zip(file)
            return _read_legacy(file)
    except BadCheckpointError as error:
        raise BadCheckpointError(f"{path}: {error.message}") from error
    except Exception as error:  # whatever a hostile or damaged file makes the readers raise
        raise BadCheckpointError(
            f"{path} is no readable checkpoint ({type(error).__name__}: {error}). "
            "Pass a published .pth file, downloaded whole, or a .safetensors file of this program."
        ) from error


def _read_zip(file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos.values()):
            raise BadCheckpointError("its parts are compressed, which no checkpoint of torch is.")
        roots = [name.removesuffix("data.pkl") for name in infos if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise BadCheckpointError("it is a zip file, but no checkpoint of torch.")
        root = roots[0]
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in infos else b"little"
        if order != b"little":
            raise BadCheckpointError(f"its byte order is {order[:20]!r}, expected little.")
        if infos[f"{root}data.pkl"].file_size > _MAX_PICKLE_BYTES:
            raise BadCheckpointError("its pickle is too large to be a state dict.")
        loaded, _ = _unpickle(io.BytesIO(archive.read(f"{root}data.pkl")))

        def read(storage: _Storage) -> bytes:
            name = f"{root}data/{storage.key}"
            if name not in infos:
                raise BadCheckpointError(f"the storage {storage.key!r} is missing.")
            return archive.read(name)

        return _with_tensors(loaded, read)


def _read_legacy(file: IO[bytes]) -> Any:
    """torch < 1.6: magic number, version, system, the object, the storages' keys, then the size and bytes of each."""
    if _unpickle(file)[0] != _LEGACY_MAGIC:
        raise BadCheckpointError("it is neither a zip file nor an older pickled checkpoint of torch.")
    _unpickle(file)
    _unpickle(file)
    loaded, dtypes = _unpickle(file)
    keys, _ = _unpickle(file)
    contents: dict[str, bytes] = {}
    for key in keys:
        (numel,) = struct.unpack("<q", file.read(8))
        if key not in dtypes or numel < 0:
            raise BadCheckpointError(f"the storage {key!r} is not one that the object names.")
        contents[key] = file.read(numel * dtypes[key].itemsize)

    def read(storage: _Storage) -> bytes:
        if storage.key not in contents:
            raise BadCheckpointError(f"the storage {storage.key!r} is missing.")
        return contents[storage.key]

    return _with_tensors(loaded, read)


def _unpickle(file: IO[bytes]) -> tuple[Any, dict[str, torch.dtype]]:
    """One pickle from where the file stands, and the types of the storages that it names.

    Its operations are looked at first: no table may be made huge by one.
    """
    begin = file.tell()
    for operation, argument, _ in pickletools.genops(file):
        if operation.name in ("BINPUT", "LONG_BINPUT", "PUT") and int(argument or 0) > _MAX_MEMO:
            raise BadCheckpointError("its pickle names an absurd place.")
        if operation.name.startswith("EXT"):
            raise BadCheckpointError("its pickle uses registered extensions.")
    file.seek(begin)
    unpickler = _SafeUnpickler(file)
    return unpickler.load(), unpickler.dtypes


def _storages(loaded: Any) -> list[_Storage]:
    found: list[_Storage] = []
    _walk(loaded, lambda place: found.append(place.storage))
    return [storage for storage in found if isinstance(storage, _Storage)]


def _with_tensors(loaded: Any, read: Callable[[_Storage], bytes]) -> Any:
    storages: dict[_Storage, Tensor] = {}
    left = _MAX_COPIES * sum(storage.numel for storage in set(_storages(loaded)))

    def tensor(place: _Place) -> Tensor:
        nonlocal left
        storage = place.storage
        if not isinstance(storage, _Storage):
            raise BadCheckpointError("a tensor has no storage.")
        if storage not in storages:
            data = read(storage)
            if len(data) != storage.numel * storage.dtype.itemsize:
                raise BadCheckpointError(f"the storage {storage.key!r} is cut short.")
            storages[storage] = (
                torch.frombuffer(bytearray(data), dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)
            )
        size, stride = _whole_numbers(place.size), _whole_numbers(place.stride)
        (offset,) = _whole_numbers((place.offset,))
        count = math.prod(size)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if count > storage.numel or (count and last >= storage.numel):
            raise BadCheckpointError(f"a tensor of size {list(size)} does not lie inside its storage.")
        left -= count
        if left < 0:
            raise BadCheckpointError("its tensors are many times as large as what it stores.")
        return storages[storage].as_strided(size, stride, offset).clone()

    return _walk(loaded, tensor)


def _walk(value: Any, make: Callable[[_Place], Any], depth: int = 0, seen: dict[int, Any] | None = None) -> Any:
    """The same dicts and lists (tuples become lists) with every `_Place` made into something, at most 20 deep.

    What occurs many times is made once: a small file can name an object in more places than could be listed.
    """
    seen = {} if seen is None else seen
    if id(value) in seen or depth > 20:
        return seen.get(id(value))
    if isinstance(value, _Place):
        seen[id(value)] = make(value)
    elif isinstance(value, dict | list | tuple):
        seen[id(value)] = None  # a cycle ends here
        if isinstance(value, dict):
            pairs = ((key, own) for key, own in value.items() if isinstance(key, str | int))
            seen[id(value)] = {key: _walk(own, make, depth + 1, seen) for key, own in pairs}
        else:
            seen[id(value)] = [_walk(own, make, depth + 1, seen) for own in value]
    else:
        return value
    return seen[id(value)]


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or not all(isinstance(v, int) and 0 <= v < 1 << 40 for v in values):
        raise BadCheckpointError("a tensor's shape is nonsensical.")
    return tuple(values)
