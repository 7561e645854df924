"""Masks as 1-bit PNG files, one per instance, so that overlapping instances stay whole."""

from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.export.batches import Labels
from pipeline.export.target import Format, Target
from pipeline.masks.rle import rle_to_mask
from schemas.masks import Rle


class PngFormat(Format):
    """`masks/IMAGE/ANNOTATION.png`, both by their COCO ids."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def add_labels(self, labels: Labels) -> None:
        """Write a file per mask."""
        for mask in labels.masks():
            self._target.tick()
            name = f"masks/{mask.image_id:06d}/{mask.id:08d}.png"
            write_mask_png(self._target.directory.local_path(name), mask.rle)
            self._target.directory.add(name)

    def finish(self) -> dict[str, Any]:
        """Nothing comes last."""
        return {}


def write_mask_png(path: Path, rle: Rle) -> None:
    """Write a mask at the size of its image: white is the instance."""
    Image.fromarray(rle_to_mask(rle)).save(path, format="PNG")
