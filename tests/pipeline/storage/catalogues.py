"""A small catalogue and the few moves that the tests of this folder share."""

import hashlib
import uuid
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, update

from pipeline.masks.boxes import mask_box_xywh
from pipeline.masks.digest import mask_digest
from pipeline.masks.rle import mask_to_rle
from pipeline.storage.annotators import get_or_create_annotator
from pipeline.storage.campaigns import create_campaign
from pipeline.storage.click_log import Appended, Effects, InstanceChange, NewMask, append_event
from pipeline.storage.database import Database
from pipeline.storage.images import add_image, images_of
from pipeline.storage.masks import get_mask, import_masks
from pipeline.storage.tasks import claim_task
from schemas.campaigns import CampaignSettings, Claim
from schemas.catalogue import MaskRecord
from schemas.events import EventIn
from schemas.masks import Rle
from schemas.tables import Task

LEASE_S = 60.0
SHA = "ab" * 32


def new_uuid() -> str:
    """A random UUID as text."""
    return str(uuid.uuid4())


def sha(text: str) -> str:
    """A digest to tell things apart."""
    return hashlib.sha256(text.encode()).hexdigest()


def event(claim: Claim, seq: int, kind: str = "click", /, **fields: Any) -> EventIn:
    """An event of a claim's session; a click at (seq, 1) unless told otherwise."""
    payload = {"x": float(seq), "y": 1.0, "is_positive": True} if kind == "click" else {}
    instance = None if kind in {"submit", "skip", "release"} else fields.pop("instance_id", claim.task_id)
    values = {
        "event_id": new_uuid(),
        "seq": seq,
        "session_epoch": claim.epoch,
        "lease_no": claim.lease_no,
        "instance_id": instance,
        "kind": kind,
        "payload": payload,
    }
    return EventIn(**{**values, **fields})


def store_import(
    conn: Connection, image_id: str, mask: NDArray[np.bool_] | None = None, *, is_trusted: bool = True, **fields: Any
) -> MaskRecord:
    """An imported mask, or proposal; without a mask the first pixel of an image of 4x4."""
    facts = {"rle": Rle(size=(4, 4), counts="01?0"), "mask_sha256": SHA, "area": 1, "bbox": (0, 0, 1, 1)}
    if mask is not None:
        facts = {"rle": mask_to_rle(mask), "mask_sha256": mask_digest(mask), "area": int(mask.sum())}
        facts["bbox"] = mask_box_xywh(mask)
    row = {
        "mask_id": new_uuid(),
        "instance_id": new_uuid(),
        "image_id": image_id,
        "category_number": 1,
        "score": None,
        **facts,
        **fields,
    }
    import_masks(conn, [row], is_trusted=is_trusted)
    return get_mask(conn, row["mask_id"])


def new_mask(instance_id: str, seq: int, **fields: Any) -> NewMask:
    """A mask of one pixel."""
    values = {
        "mask_id": new_uuid(),
        "instance_id": instance_id,
        "seq": seq,
        "category_number": 1,
        "height": 4,
        "width": 4,
        "rle_counts": "01?0",
        "mask_sha256": SHA,
        "area": 1,
        "bbox": (0, 0, 1, 1),
        "num_clicks": 2,
        "model_digest": SHA,
    }
    return NewMask(**{**values, **fields})


class Catalogue:
    """A campaign with images and one annotator."""

    def __init__(self, database: Database, *, images: int, settings: CampaignSettings | None = None) -> None:
        self.database = database
        self.campaign_id = new_uuid()
        with database.begin() as conn:
            create_campaign(
                conn,
                campaign_id=self.campaign_id,
                name=f"campaign {self.campaign_id}",
                source_url="/images",
                model_id="toy-color",
                model_digest=SHA,
                model_key="key",
                labels=["cat", "dog"],
                settings=settings,
            )
            for index in range(images):
                self.add_image(conn, f"image-{index}")
            self.annotator_id = get_or_create_annotator(conn, "ann").id
            self.other_id = get_or_create_annotator(conn, "bob").id
            self.images = images_of(conn, self.campaign_id)

    def add_image(self, conn: Any, content: str, **fields: Any) -> Any:
        """Add an image whose bytes are named by `content`."""
        name = fields.pop("name", content)
        values = {
            "uri": f"/images/{name}.png",
            "file_name": f"{name}.png",
            "uri_sha256": sha(f"/images/{name}.png"),
            "version": "1",
            "sha256": sha(content),
            "phash": "0" * 16,
            "group_key": sha(content),
            "width": 4,
            "height": 4,
            "format": "PNG",
            "size_bytes": 100,
        }
        return add_image(conn, self.campaign_id, **{**values, **fields})

    def claim(self, annotator_id: str | None = None, **options: Any) -> Claim:
        """Claim a task that must be there."""
        options = {"claim_id": new_uuid(), "lease_s": LEASE_S, **options}
        with self.database.begin() as conn:
            claim = claim_task(conn, self.campaign_id, annotator_id or self.annotator_id, **options)
        assert claim is not None
        return claim

    def append(self, claim: Claim, sent: EventIn, annotator_id: str | None = None, **options: Any) -> Appended:
        """Append an event in a transaction of its own."""
        options = {"lease_s": LEASE_S, **options}
        with self.database.begin() as conn:
            return append_event(conn, claim.session_id, sent, annotator_id or self.annotator_id, **options)

    def expire(self, claim: Claim) -> None:
        """Let the lease of a claim have run out long ago."""
        with self.database.begin() as conn:
            from datetime import UTC, datetime

            past = datetime(2020, 1, 1, tzinfo=UTC)
            conn.execute(update(Task).where(Task.id == claim.task_id).values(lease_expires_at=past))

    def label(self, claim: Claim, *, opened: str | None = None, unsure: bool = False, **mask_fields: Any) -> NewMask:
        """Open, click, accept one instance and submit the session; returns the accepted mask."""
        instance = new_uuid()
        start = event(claim, 1, "open", instance_id=instance, payload={"mask_id": opened})
        self.append(claim, start, effects=Effects([InstanceChange(instance)]))
        self.append(claim, event(claim, 2, instance_id=instance))
        mask = new_mask(instance, 2, **mask_fields)
        accept = event(claim, 3, "accept", instance_id=instance, payload={"seq": 2, "mask_sha256": SHA})
        accepted = InstanceChange(instance, "accepted", mask.category_number, unsure, mask.mask_id)
        self.append(claim, accept, effects=Effects([accepted], mask))
        self.append(claim, event(claim, 4, "submit"))
        return mask
