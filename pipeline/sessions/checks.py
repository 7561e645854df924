"""Checks of an event that need only the event, the image's size and the campaign's categories.

They run before anything is stored, so that what the log holds can always be computed. Knows nothing about sessions.
"""

from collections.abc import Collection
from typing import Any

from pipeline.masks.rle import check_runs, decode_runs
from schemas.errors import BadInputError, ClickOutsideImageError, TooLargeError
from schemas.events import (
    MAX_BRUSH_BYTES,
    AcceptPayload,
    BoxPayload,
    BrushPayload,
    CategoryPayload,
    ClickPayload,
    MaskEditPayload,
    parse_payload,
)
from schemas.masks import Rle


def check_event(kind: str, payload: dict[str, Any], size: tuple[int, int], categories: Collection[int]) -> None:
    """Check a payload against its image and campaign.

    Args:
        kind: Event kind.
        payload: As the client sent it or as stored.
        size: (height, width) of the image in pixels.
        categories: Category numbers of the campaign.

    Raises:
        ClickOutsideImageError: A click is not on a pixel of the image.
        TooLargeError: A stroke's runs are over the limit.
        BadInputError: The payload does not fit its kind, a box leaves the image or is empty, runs are malformed or do
            not fit their box, or the category is unknown.
    """
    record = parse_payload(kind, payload)
    if isinstance(record, ClickPayload):
        _check_click(record, size)
    elif isinstance(record, BoxPayload):
        _check_box((record.x0, record.y0, record.x1, record.y1), size)
    elif isinstance(record, BrushPayload):
        _check_box(record.box, size)
        _check_runs("rle", record.rle, record.box)
    elif isinstance(record, MaskEditPayload):
        _check_box(record.box, size)
        _check_runs("added", record.added, record.box)
        _check_runs("erased", record.erased, record.box)
    elif isinstance(record, CategoryPayload | AcceptPayload):
        _check_category(record.category, categories)


def _check_click(click: ClickPayload, size: tuple[int, int]) -> None:
    height, width = size
    if not (0 <= click.x < width and 0 <= click.y < height):
        raise ClickOutsideImageError(
            f"Click at (x={click.x}, y={click.y}) is outside the image of size {height}x{width} (height x width). "
            "Send coordinates in image pixels, not screen pixels.",
            size=[height, width],
        )


def _check_box(box: tuple[float, float, float, float], size: tuple[int, int]) -> None:
    x0, y0, x1, y1 = box
    if min(x0, y0) < 0 or not (x0 + 1 <= x1 <= size[1] and y0 + 1 <= y1 <= size[0]):
        raise BadInputError(
            f"Box {box} (x0, y0, x1, y1) is less than a pixel wide or high, or leaves the image of size "
            f"{size[0]}x{size[1]} (height x width)."
        )


def _check_runs(name: str, rle: Rle, box: tuple[int, int, int, int]) -> None:
    if len(rle.counts) > MAX_BRUSH_BYTES:
        raise TooLargeError(f"{name}: {len(rle.counts)} bytes of runs, at most {MAX_BRUSH_BYTES} are allowed.")
    height, width = box[3] - box[1], box[2] - box[0]
    if rle.size != (height, width):
        raise BadInputError(f"{name}: size {list(rle.size)} is not the box's, [{height}, {width}] (height, width).")
    check_runs(decode_runs(rle.counts), rle.size)


def _check_category(category: int | None, categories: Collection[int]) -> None:
    if category is not None and category not in categories:
        known = ", ".join(str(number) for number in sorted(categories)) or "none"
        raise BadInputError(f"The campaign has no category {category}. Known numbers: {known}.")
