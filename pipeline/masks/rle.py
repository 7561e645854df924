"""COCO run-length encoding in numpy: masks to runs to the compressed ASCII form, and back.

Everything that comes in is checked before memory is taken for it, so hostile counts give an error and never a crash.
Byte-compatible with pycocotools without needing it; polygons are in `pipeline.masks.polygons`.

Format: column-major runs that start with background; from the fourth on each is stored as its difference to the run
two before; numbers are little-endian groups of 5 bits, bit 5 = "more follows", bit 4 of the last group is the sign,
each written as chr(48 + group).
"""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadInputError, TooLargeError
from schemas.masks import Rle

MAX_MASK_PIXELS = 120_000_000
"""Largest mask that is decoded; the default of the image limit in `schemas.settings`."""
_MAX_GROUPS = 7  # 35 bits: more than any run of an image below the limit needs


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """Check a mask's size before memory is taken for it.

    Args:
        size: (height, width) in pixels.

    Raises:
        BadInputError: A side is below 1.
        TooLargeError: There are more than `MAX_MASK_PIXELS` pixels.
    """
    height, width = size
    if height < 1 or width < 1:
        raise BadInputError(f"Mask of size {height}x{width} (height x width): both sides must be at least 1.")
    if height * width > MAX_MASK_PIXELS:
        raise TooLargeError(f"Mask of size {height}x{width} has more than {MAX_MASK_PIXELS} pixels.")
    return height, width


def mask_to_runs(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Column-major run lengths of a bool (H, W) mask, starting with background (maybe 0)."""
    flat = cv2.transpose(np.ascontiguousarray(mask).view(np.uint8)).reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], changes, [flat.size]])
    runs = np.diff(bounds)
    return np.concatenate([[0], runs]) if flat[0] else runs


def runs_to_mask(runs: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The bool (H, W) mask of column-major runs.

    Raises:
        BadInputError: A run is negative or the runs don't add up to the size.
        TooLargeError: The size is over the limit.
    """
    check_runs(runs, size)
    return _filled(runs, size)


def check_runs(runs: NDArray[np.int64], size: tuple[int, int]) -> None:
    """Check that run lengths fill a mask.

    Raises:
        BadInputError: A run is negative or the runs don't add up to the size.
        TooLargeError: The size is over the limit.
    """
    height, width = check_size(size)
    if runs.size == 0 or runs.min() < 0 or runs.max() > height * width or int(runs.sum()) != height * width:
        raise BadInputError(
            f"RLE runs do not fill a mask of size {height}x{width} (height x width). "
            "Send COCO column-major runs whose sum is height * width."
        )


def runs_to_box(
    runs: NDArray[np.int64], size: tuple[int, int]
) -> tuple[NDArray[np.bool_], tuple[int, int, int, int], NDArray[np.int64]]:
    """A mask's pixels in its bounding box, without filling the rest of the image, and its runs in the usual form.

    Args:
        runs: Column-major run lengths; runs of no pixels, which split others, may be among them.
        size: (height, width) of the mask.

    Returns:
        The bool pixels in the box; the box (x0, y0, x1, y1), half-open, zeros when the mask is empty; the runs as
        `mask_to_runs` gives them.

    Raises:
        BadInputError: A run is negative or the runs don't add up to the size.
        TooLargeError: The size is over the limit.
    """
    check_runs(runs, size)
    height, width = size
    starts, ends = _places(runs, size)
    x0, y0, x1, y1 = box = _box(starts, ends, height)
    if starts.size == 0:
        return np.zeros((0, 0), np.bool_), box, np.array([height * width])
    apart = starts[1:] != ends[:-1]
    starts, ends = starts[np.append(True, apart)], ends[np.append(apart, True)]
    edges = np.stack([starts, ends], 1).reshape(-1)
    columns = np.diff(np.concatenate([[x0 * height], edges, [x1 * height]]))
    inside = _filled(columns, (height, x1 - x0))[y0:y1]
    usual = np.diff(np.concatenate([[0], edges, [height * width]]))
    return inside, box, usual[:-1] if usual[-1] == 0 else usual


def runs_box(runs: NDArray[np.int64], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The bounding box of run lengths that were checked, as `runs_to_box` gives it."""
    return _box(*_places(runs, size), size[0])


def _places(runs: NDArray[np.int64], size: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the mask's runs of some pixels begin and end."""
    bounds = np.concatenate([[0], np.cumsum(runs), [size[0] * size[1]]])
    starts, ends = bounds[1:-1:2], bounds[2::2]
    is_run = ends > starts
    return starts[is_run], ends[is_run]


def _box(starts: NDArray[np.int64], ends: NDArray[np.int64], height: int) -> tuple[int, int, int, int]:
    if starts.size == 0:
        return 0, 0, 0, 0
    x0, x1 = int(starts[0]) // height, (int(ends[-1]) - 1) // height + 1
    if np.any(starts // height != (ends - 1) // height):  # a run goes on in the next column
        return x0, 0, x1, height
    return x0, int((starts % height).min()), x1, int(((ends - 1) % height).max()) + 1


def _filled(runs: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.bool_]:
    values = np.zeros(runs.size, np.uint8)
    values[1::2] = 1
    height, width = size
    columns = np.repeat(values, runs).reshape(width, height)
    return np.asarray(cv2.transpose(columns).reshape(height, width), np.uint8).view(np.bool_)


def encode_runs(runs: NDArray[np.int64]) -> str:
    """COCO's compressed ASCII form of run lengths."""
    deltas = runs.astype(np.int64)
    deltas[3:] -= runs[1:-2]
    groups = np.zeros((deltas.size, _MAX_GROUPS), np.uint8)
    lengths = np.zeros(deltas.size, np.int64)
    rest, active = deltas.copy(), np.ones(deltas.size, bool)
    for position in range(_MAX_GROUPS):
        group = rest & 0x1F
        rest >>= 5
        more = active & np.where(group & 0x10, rest != -1, rest != 0)
        groups[:, position] = group | (more << 5)
        lengths[active] += 1
        active = more
    used = np.arange(_MAX_GROUPS) < lengths[:, None]
    return (groups[used] + 48).tobytes().decode("ascii")


def decode_runs(counts: str) -> NDArray[np.int64]:
    """Run lengths of COCO's compressed ASCII form (not yet checked against a size).

    Raises:
        BadInputError: The text is empty, has a foreign character, ends in mid-number or holds an absurd number.
    """
    data = np.frombuffer(counts.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64) - 48
    if data.size == 0 or data.min() < 0 or data.max() > 63:
        raise BadInputError("RLE counts are not COCO's compressed form: expected characters '0' to 'o' only.")
    last = (data & 0x20) == 0
    ends = np.flatnonzero(last)
    if not last[-1]:
        raise BadInputError("RLE counts end in the middle of a number. The text was cut off.")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_GROUPS:
        raise BadInputError("RLE counts hold a number that no image can need.")
    places = np.arange(data.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((data & 0x1F) << (5 * places), starts)
    negative = (data[ends] & 0x10) != 0
    values[negative] -= np.left_shift(np.int64(1), 5 * lengths[negative])
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def mask_to_rle(mask: NDArray[np.bool_]) -> Rle:
    """Encode a bool (H, W) mask as COCO compressed RLE."""
    height, width = mask.shape
    return Rle(size=(height, width), counts=encode_runs(mask_to_runs(mask)))


def labels_to_rles(labels: NDArray[Any]) -> Iterator[tuple[int, Rle]]:
    """Each value of a whole-number (H, W) map with the mask of its pixels, ascending; however many they are, the map is
    gone through once."""
    height, width = labels.shape
    flat = labels.T.reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    edges = np.stack([starts, np.append(starts[1:], flat.size)], 1)
    order = np.argsort(flat[starts], kind="stable")
    values, firsts = np.unique(flat[starts][order], return_index=True)
    for value, runs in zip(values.tolist(), np.split(edges[order], firsts[1:]), strict=True):
        usual = np.diff(np.concatenate([[0], runs.reshape(-1), [flat.size]]))
        yield value, Rle(size=(height, width), counts=encode_runs(usual[:-1] if usual[-1] == 0 else usual))


def rle_to_mask(rle: Rle) -> NDArray[np.bool_]:
    """Decode COCO compressed RLE to a bool (H, W) mask, C-contiguous.

    Raises:
        BadInputError: The counts are malformed or don't fit the size.
        TooLargeError: The size is over the limit.
    """
    check_size(rle.size)
    return runs_to_mask(decode_runs(rle.counts), rle.size)


def rle_to_box(rle: Rle) -> tuple[NDArray[np.bool_], tuple[int, int, int, int]]:
    """The pixels of COCO compressed RLE in their bounding box, and that; see `runs_to_box`.

    Raises:
        BadInputError: The counts are malformed or don't fit the size.
        TooLargeError: The size is over the limit.
    """
    inside, box, _ = runs_to_box(decode_runs(rle.counts), rle.size)
    return inside, box


def rle_area(rle: Rle) -> int:
    """Pixels of the mask, without decoding it.

    Raises:
        BadInputError: The counts are malformed.
    """
    return int(decode_runs(rle.counts)[1::2].sum())
