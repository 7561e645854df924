"""Masks that come with a campaign: a COCO file's instances become imported masks of the images with its file names."""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.data.coco import CocoDataset, CocoSample, read_coco
from pipeline.masks.boxes import mask_box_xywh
from pipeline.masks.digest import mask_digest
from pipeline.masks.rle import mask_to_rle, rle_to_mask
from pipeline.storage import campaigns, images, masks
from pipeline.storage.database import Database
from pipeline.storage.files import open_storage, read_bytes
from pipeline.storage.sql import batches
from schemas.campaigns import CampaignRecord, ImageRecord
from schemas.errors import BadAnnotationsError


def read_annotations(url: str) -> CocoDataset:
    """A COCO file at any storage; its images' paths are their file names.

    Raises:
        BadAnnotationsError: There is none, or it is malformed.
    """
    fs, path = open_storage(url)
    try:
        data = read_bytes(fs, path)
    except OSError as error:
        raise BadAnnotationsError(f"The annotations {url!r} cannot be read: {error}.") from error
    with TemporaryDirectory() as folder:
        local = Path(folder) / Path(path).name
        local.write_bytes(data)
        return read_coco(local, "")


def import_annotations(database: Database, campaign: CampaignRecord, url: str) -> tuple[int, int]:
    """Register a file's masks for the campaign's images, matched by file name. Doing it again adds nothing.

    Categories that are new are added; crowd regions and empty masks are left out.

    Returns:
        Masks imported, and masks of images that the campaign does not have.

    Raises:
        BadAnnotationsError: The file is malformed, or a mask has another size than its image.
    """
    dataset = read_annotations(url)
    with database.begin() as conn:
        records = campaigns.add_categories(conn, campaign.id, dataset.categories.values())
    numbers = {record.name: record.number for record in records}
    with database.connect() as conn:
        by_name = {image.file_name: image for image in images.images_of(conn, campaign.id)}
    samples = list(dataset)
    known = [(sample, by_name[str(sample.image.path)]) for sample in samples if str(sample.image.path) in by_name]
    for batch in batches(known):
        rows = _rows(campaign.id, batch, numbers)  # decoded before the transaction begins
        with database.begin() as conn:
            for row in rows:
                masks.import_mask(conn, **row)
    return len(known), len(samples) - len(known)


def _rows(
    campaign_id: str, batch: Sequence[tuple[CocoSample, ImageRecord]], numbers: Mapping[str, int]
) -> list[dict[str, Any]]:
    rows = []
    for sample, image in batch:
        if (sample.image.height, sample.image.width) != (image.height, image.width):
            raise BadAnnotationsError(
                f"Annotation {sample.annotation_id} is for an image of {sample.image.height}x{sample.image.width} "
                f"(height x width), {image.file_name} has {image.height}x{image.width} after orientation."
            )
        mask = rle_to_mask(sample.rle())
        if not mask.any():
            continue
        name = f"{campaign_id}/{image.id}/{sample.annotation_id}/{mask_digest(mask)}"
        rows.append(
            {
                "mask_id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"mask/{name}")),
                "instance_id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"instance/{name}")),
                "image_id": image.id,
                "category_number": numbers[sample.category],
                "rle": mask_to_rle(mask),
                "mask_sha256": mask_digest(mask),
                "area": int(mask.sum()),
                "bbox": mask_box_xywh(mask),
            }
        )
    return rows
