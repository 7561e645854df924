"""Prelabels in the catalogue: proposals that carry the model and adapter that made them.

The id of a proposal says image, model, adapter and pixels, so that storing it again changes nothing. Where another
model looks at an image again, what nobody has accepted of the one before is withdrawn. Knows no models.
"""

import uuid
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, Select, and_, exists, select, update

from pipeline.masks.polygons import rle_iou
from pipeline.storage.images import image_record
from pipeline.storage.masks import current_masks, import_masks, proposed_masks
from pipeline.storage.tallies import counted
from schemas.campaigns import ImageRecord
from schemas.catalogue import MaskRecord
from schemas.predictions import Pins, Prelabel
from schemas.tables import Image, Instance, MaskRow, Task


def images_to_prelabel(
    conn: Connection, campaign_id: str, pins: Pins, limit: int | None = None, exclude: Sequence[str] = ()
) -> list[ImageRecord]:
    """Images whose task is new and that have no prelabels of this model and adapter, in the order of the queue.

    Those held out for the gate are left out.
    """
    query = _new_images(campaign_id).where(~_has_prelabels(pins))
    left_out = set(exclude)
    found = (image_record(row) for row in conn.execute(query))
    return [image for image in found if image.id not in left_out][:limit]


def distinct_from_stored(
    conn: Connection, campaign_id: str, image_id: str, pins: Pins, found: Sequence[Prelabel], same_iou: float
) -> list[Prelabel]:
    """Those that are not, by their IoU, a mask which people made or imported."""
    stored = [*current_masks(conn, campaign_id, image_id=image_id), *proposed_masks(conn, campaign_id, image_id)]
    others = [mask for mask in stored if mask.session_id is not None or mask.model_digest is None]
    return [own for own in found if not any(_iou(own, other) >= same_iou for other in others)]


def store_prelabels(
    conn: Connection,
    campaign_id: str,
    image_id: str,
    pins: Pins,
    found: Sequence[Prelabel],
    category_number: int | None,
) -> int:
    """Store masks as an image's proposals, if nobody works on it; those of other models are withdrawn.

    Args:
        conn: Write transaction.
        campaign_id: The campaign.
        image_id: One of its images.
        pins: Model and adapter that made them.
        found: The masks.
        category_number: Of the proposals; None: the annotator says.

    Returns:
        How many are new; 0 when the task is not new any more.
    """
    task = select(Task.state).where(Task.campaign_id == campaign_id, Task.image_id == image_id)
    # The task is locked before the campaign (for a mask's number), in the order in which an accept locks them.
    if conn.execute(task.with_for_update(key_share=True)).scalar_one() != "new":
        return 0
    _withdraw_others(conn, campaign_id, image_id, pins)
    names = {_name(campaign_id, image_id, pins, own): own for own in found}
    ids = {name: str(uuid.uuid5(uuid.NAMESPACE_URL, f"mask/{name}")) for name in names}
    rows = [
        {
            "mask_id": ids[name],
            "instance_id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"instance/{name}")),
            "image_id": image_id,
            "category_number": category_number,
            "rle": own.rle,
            "mask_sha256": own.mask_sha256,
            "area": own.area,
            "bbox": own.box_xywh,
            "score": own.score,
        }
        for name, own in names.items()
    ]
    pinned = {"model_digest": pins.model_digest, "adapter_digest": pins.adapter_digest}
    stored = import_masks(conn, rows, is_trusted=False, **pinned)
    if stored < len(rows):  # the others are known, and may have been withdrawn
        withdrawn = update(Instance).where(Instance.mask_id.in_(ids.values()), Instance.session_id.is_(None))
        with counted(conn, campaign_id, [image_id]):
            conn.execute(withdrawn.values(state="open"))
    return stored


def _new_images(campaign_id: str) -> Select[tuple[Image]]:
    return (
        select(Image.__table__)
        .join(Task, Task.image_id == Image.id)
        .where(Task.campaign_id == campaign_id, Task.state == "new", Image.quarantine_reason.is_(None))
        .where(Image.holdout.is_(False))  # truth that began as the model's own proposal would flatter it at the gate
        .order_by(Task.priority, Task.position)
    )


def _has_prelabels(pins: Pins) -> ColumnElement[bool]:
    made = select(MaskRow.id).join(Instance, Instance.mask_id == MaskRow.id)
    return exists(made.where(MaskRow.image_id == Image.id, Instance.state != "deleted", _made_by(pins)))


def _made_by(pins: Pins) -> ColumnElement[bool]:
    adapter = MaskRow.adapter_digest.is_not_distinct_from(pins.adapter_digest)
    return and_(MaskRow.source == "import", MaskRow.model_digest == pins.model_digest, adapter)


def _withdraw_others(conn: Connection, campaign_id: str, image_id: str, pins: Pins) -> None:
    others = select(MaskRow.id).where(
        MaskRow.campaign_id == campaign_id,
        MaskRow.image_id == image_id,
        MaskRow.source == "import",
        MaskRow.model_digest.is_not(None),
        ~_made_by(pins),
    )
    waiting = update(Instance).where(
        Instance.mask_id.in_(others), Instance.session_id.is_(None), Instance.state == "open"
    )
    with counted(conn, campaign_id, [image_id]):
        conn.execute(waiting.values(state="deleted"))


def _name(campaign_id: str, image_id: str, pins: Pins, own: Prelabel) -> str:
    return f"prelabel/{campaign_id}/{image_id}/{pins.model_digest}/{pins.adapter_digest}/{own.mask_sha256}"


def _iou(own: Prelabel, other: MaskRecord) -> float:
    x, y, width, height = own.box_xywh  # never empty: its click is in it
    u, v, w, h = other.bbox
    if x + width <= u or u + w <= x or y + height <= v or v + h <= y:
        return 0.0
    return rle_iou(own.rle, other.rle)
