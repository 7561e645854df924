"""Which part of a data set an image belongs to: train, val and test by lot, or what the campaign held out."""

import hashlib
from dataclasses import dataclass

from pipeline.storage.snapshots import SnapshotImage
from schemas.errors import BadInputError


@dataclass(frozen=True)
class Splits:
    """How images are split.

    Each near-duplicate group draws its part by its key alone: an image stays where it is however the data set grows,
    and near-duplicates never straddle two parts. With neither share the parts are `train` and `holdout`, as the
    campaign held images out at ingest.

    Attributes:
        val: Share of the groups to validate on, 0 to 1.
        test: Share of the groups to test on, 0 to 1.

    Raises:
        BadInputError: A share is out of range, or nothing is left to train on.
    """

    val: float = 0.0
    test: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise BadInputError(f"The shares val {self.val} and test {self.test} must be 0 or more, together below 1.")

    def of(self, image: SnapshotImage) -> str:
        """The part of an image."""
        if not self.val and not self.test:
            return "holdout" if image.holdout else "train"
        drawn = int.from_bytes(hashlib.sha256(f"split:{image.group_key}".encode()).digest()[:8], "big") / 2**64
        return "test" if drawn < self.test else "val" if drawn >= 1 - self.val else "train"
