"""What a click is. Knows nothing about models, sessions or storage; needs only the standard library."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Click:
    """One point given by an annotator.

    Attributes:
        x: Column in pixels of the image it was made on (0 is the left edge of the first pixel), finite.
        y: Row in pixels, finite.
        is_positive: True adds the region to the object, False removes it.

    Raises:
        ValueError: A coordinate is NaN or infinite.
    """

    x: float
    y: float
    is_positive: bool

    def __post_init__(self) -> None:
        if not (math.isfinite(self.x) and math.isfinite(self.y)):
            raise ValueError(f"Click at (x={self.x}, y={self.y}) is not finite. Send numbers in image pixels.")
