"""Masks as 1-bit PNG files, one per instance, so that overlapping instances stay whole."""

from pathlib import Path

from PIL import Image

from pipeline.masks.rle import rle_to_mask
from schemas.catalogue import MaskRecord


def mask_file_name(mask: MaskRecord) -> str:
    """`masks/IMAGE/ANNOTATION.png`, both by their COCO ids."""
    return f"masks/{mask.image_number:06d}/{mask.number:08d}.png"


def write_mask_png(path: Path, mask: MaskRecord) -> None:
    """Write a mask at the size of its image: white is the instance."""
    Image.fromarray(rle_to_mask(mask.rle)).save(path, format="PNG")
