"""What retraining works on: an image with its encoding and the objects that people accepted on it.

Records are plain and picklable, so that they cross to the trainer's process; pixels and encodings are brought by a
`SceneSource` when they are needed. Knows no database (see `pipeline.adapters.data`) and no training.
"""

# H/W image px

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.masks.rle import rle_to_mask
from pipeline.models._base import Encoding
from schemas.clicks import Click
from schemas.masks import Rle
from schemas.predictions import Edit, ImageRef

MAX_STROKE_CLICKS = 8
Turn: TypeAlias = Callable[[], AbstractContextManager[Any]]
"""Entered around about 100 ms of heavy work, so that others on the same cores get theirs; may wait."""


@dataclass(frozen=True)
class AdapterTarget:
    """One accepted mask and how it came about.

    Attributes:
        mask_id: Of the mask's version.
        category: Category number, None without one.
        rle: The mask.
        edits: The instance's edits up to the accepted one, undone ones taken out; empty for imported masks.
    """

    mask_id: str
    category: int | None
    rle: Rle
    edits: tuple[Edit, ...] = ()

    @property
    def clicks(self) -> tuple[Click, ...]:
        """The person's clicks in order, in image pixels, strokes of the brush as clicks along them.

        Empty where the model was led by more than clicks: a box, another candidate or a mask that the instance was
        opened from shape the states between clicks; strokes and tools do not.
        """
        if any(edit.kind in {"box", "candidate"} or edit.payload.get("mask_id") for edit in self.edits):
            return ()
        clicks: list[Click] = []
        for edit in self.edits:
            p = edit.payload
            if edit.kind == "click":
                clicks.append(Click(x=p["x"], y=p["y"], is_positive=p["is_positive"]))
            elif edit.kind == "brush" and p.get("polyline"):
                clicks += stroke_clicks(p["polyline"], p["radius"], p["is_positive"])
        return tuple(clicks)


@dataclass(frozen=True)
class AdapterImage:
    """An image of a snapshot or of the hold-out.

    Attributes:
        ref: Where it is.
        group: Name shared by near-duplicates.
        targets: Its accepted masks; empty for an image verified to hold nothing.
    """

    ref: ImageRef
    group: str
    targets: tuple[AdapterTarget, ...]


@dataclass(frozen=True, eq=False)
class Scene:
    """An image ready to be clicked on.

    Attributes:
        image: HWC uint8 RGB.
        encoding: Of the image, one row; None for models with cut "crop".
        mirrored: Whether image and encoding are of the mirrored photograph.
        scale: Pixels of `image` per pixel of the catalogue's image (1 unless it was shrunk for training).
    """

    image: NDArray[np.uint8]
    encoding: Encoding | None
    mirrored: bool = False
    scale: float = 1.0

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.image.shape[0], self.image.shape[1]

    def target_mask(self, target: AdapterTarget) -> NDArray[np.bool_]:
        """The target's mask as this scene shows it, bool (H, W)."""
        mask = rle_to_mask(target.rle)
        if mask.shape != self.size:
            resized = cv2.resize(mask.astype(np.uint8) * 255, self.size[::-1], interpolation=cv2.INTER_AREA)
            mask = np.asarray(resized) > 127
        return np.ascontiguousarray(mask[:, ::-1]) if self.mirrored else mask

    def place_clicks(self, clicks: Sequence[Click]) -> list[Click]:
        """Clicks in the catalogue's pixels as clicks in this scene's; those on the edge stay inside."""
        height, width = self.size
        placed = []
        for click in clicks:
            x = min(max(click.x * self.scale, 0.0), width - 1.0)
            y = min(max(click.y * self.scale, 0.0), height - 1.0)
            placed.append(Click(x=width - 1 - x if self.mirrored else x, y=y, is_positive=click.is_positive))
        return placed


def stroke_clicks(polyline: Sequence[tuple[float, float]], radius: float, is_positive: bool) -> list[Click]:
    """A stroke as clicks at equal distances along it.

    Args:
        polyline: (x, y) that the brush went through, at least one.
        radius: Of the brush, same pixels.
        is_positive: Whether it painted or erased.

    Returns:
        One click for each width of the brush, 1 to `MAX_STROKE_CLICKS`; a single one lies in the middle.
    """
    points = np.array(polyline, np.float64)
    passed = np.concatenate([[0.0], np.hypot(*np.diff(points, axis=0).T).cumsum()])
    count = int(np.clip(passed[-1] // max(2 * radius, 1.0), 1, MAX_STROKE_CLICKS))
    at = (np.arange(count) + 0.5) * passed[-1] / count
    xs, ys = (np.interp(at, passed, points[:, axis]) for axis in (0, 1))
    return [Click(x=float(x), y=float(y), is_positive=is_positive) for x, y in zip(xs, ys, strict=True)]


class SceneSource(Protocol):
    """Brings images and their encodings."""

    def scene(self, image: AdapterImage, mirrored: bool = False, max_side: int | None = None) -> Scene:
        """The scene of an image.

        Args:
            image: Which.
            mirrored: Mirror it, with an encoding of the mirrored image: F1 is not flip-equivariant.
            max_side: Shrink the image (not its encoding) so that no side is longer, in pixels.
        """
