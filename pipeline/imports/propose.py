"""Label one, propose to the others: the masks of a near-duplicate become proposals on the images like it."""

import uuid
from collections import defaultdict
from collections.abc import Callable

from pydantic import BaseModel
from sqlalchemy import Connection

from pipeline.storage import masks
from pipeline.storage.database import Database
from pipeline.storage.duplicates import GroupMember, labelled_in_groups, unlabelled_in_groups
from pipeline.storage.sql import BATCH
from schemas.campaigns import CampaignRecord


class ProposeReport(BaseModel):
    """What was proposed.

    Attributes:
        images: That got proposals.
        stored: Proposals.
        other_size: Images left alone, because what is labelled in their group has another size.
    """

    images: int = 0
    stored: int = 0
    other_size: int = 0


def propose_in_groups(
    database: Database, campaign: CampaignRecord, on_batch: Callable[[int], None] = lambda done: None
) -> ProposeReport:
    """Store the current masks of the nearest labelled image of the same group and size as an image's proposals.

    Images on which anybody has worked, or that have masks or proposals, are left alone, so that doing it again adds
    nothing. Groups never straddle the hold-out, and neither do proposals.

    Args:
        database: Catalogue.
        campaign: Whose images.
        on_batch: Called with the number of images looked at; may raise to stop, what is stored stays.
    """
    report, after, done = ProposeReport(), 0, 0
    while True:
        with database.connect() as conn:
            waiting = unlabelled_in_groups(conn, campaign.id, after=after, limit=BATCH)
            labelled: dict[str, list[GroupMember]] = defaultdict(list)
            for member in labelled_in_groups(conn, campaign.id, {image.group_key for image in waiting}):
                labelled[member.group_key].append(member)
        if not waiting:
            return report
        for image in waiting:
            others = labelled[image.group_key]
            same_size = [other for other in others if (other.width, other.height) == (image.width, image.height)]
            report.other_size += bool(others) and not same_size
            if same_size:
                nearest = min(same_size, key=lambda other: (_distance(image, other), other.number))
                with database.begin() as conn:  # an image's proposals are stored together or not at all
                    stored = _propose(conn, campaign.id, nearest, image)
                report.stored += stored
                report.images += stored > 0
        after, done = waiting[-1].number, done + len(waiting)
        on_batch(done)


def _distance(image: GroupMember, other: GroupMember) -> int:
    """Bits that their perceptual hashes differ in."""
    return (int(image.phash, 16) ^ int(other.phash, 16)).bit_count()


def _propose(conn: Connection, campaign_id: str, source: GroupMember, target: GroupMember) -> int:
    """How many were stored."""
    found = masks.current_masks(conn, campaign_id, image_id=source.id)
    rows = [
        {
            "mask_id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"propose/{target.id}/{mask.id}")),
            "instance_id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"propose-instance/{target.id}/{mask.id}")),
            "image_id": target.id,
            "category_number": mask.category_number,
            "rle": mask.rle,
            "mask_sha256": mask.mask_sha256,
            "area": mask.area,
            "bbox": mask.bbox,
            "score": None,
        }
        for mask in found
    ]
    return masks.import_masks(conn, rows, is_trusted=False)
