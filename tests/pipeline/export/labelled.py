"""A labelled campaign for export tests: real image files, real masks, a click log with an undo."""

import uuid
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import update

from pipeline.ingest.scan import ingest
from pipeline.masks.boxes import mask_box_xywh
from pipeline.masks.digest import mask_digest
from pipeline.masks.rle import mask_to_rle
from pipeline.storage.annotators import get_or_create_annotator
from pipeline.storage.campaigns import create_campaign, get_campaign
from pipeline.storage.click_log import Effects, InstanceChange, append_event, record_results
from pipeline.storage.database import Database
from pipeline.storage.images import images_of
from pipeline.storage.tasks import claim_task
from schemas.campaigns import CampaignRecord, CampaignSettings, Claim, ImageRecord
from schemas.catalogue import EventResultRecord
from schemas.events import EventIn
from schemas.tables import Image
from tests.pipeline.ingest.pictures import write_scenes
from tests.pipeline.storage.catalogues import event, new_mask

Mask = NDArray[np.bool_]
ADAPTER = "a" * 64


def blob(seed: int, height: int = 60, width: int = 80) -> Mask:
    """An ellipse with a hole somewhere in the image; never empty."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    y, x = random.uniform(10, height - 10), random.uniform(10, width - 10)
    distance = ((rows - y) / random.uniform(6, 20)) ** 2 + ((columns - x) / random.uniform(6, 20)) ** 2
    return np.asarray((distance < 1) & (distance > 0.1))


class Labelled:
    """A campaign over `count` scenes with categories cat (1) and dog (2).

    Args:
        database: Empty.
        folder: Where the image files go.
        count: Of images.
    """

    def __init__(self, database: Database, folder: Path, count: int = 6) -> None:
        self.database = database
        self.masks: dict[int, Mask] = {}
        """What was accepted, by annotation id."""
        write_scenes(folder, range(count))
        with database.begin() as conn:
            created = create_campaign(
                conn,
                campaign_id=str(uuid.uuid4()),
                name=f"campaign {uuid.uuid4()}",
                source_url=str(folder),
                model_id="toy-color",
                model_digest="d" * 64,
                model_key="k",
                labels=["cat", "dog"],
                settings=CampaignSettings(holdout_fraction=0.5),
            )
            self.annotator = get_or_create_annotator(conn, "Ann Secret").id
        ingest(database, created, str(folder))
        with database.connect() as conn:
            self.images: list[ImageRecord] = images_of(conn, created.id)
        self.campaign_id = created.id

    @property
    def campaign(self) -> CampaignRecord:
        """Its record now."""
        with self.database.connect() as conn:
            return get_campaign(conn, self.campaign_id)

    def move(self, uris: dict[str, str]) -> None:
        """Say that the images' files lie elsewhere, by image id."""
        with self.database.begin() as conn:
            for image_id, uri in uris.items():
                conn.execute(update(Image).where(Image.id == image_id).values(uri=uri))

    def label(
        self,
        image: ImageRecord,
        masks: list[tuple[int | None, Mask]],
        *,
        corrects: Sequence[str] = (),
        deletes: Sequence[str] = (),
        score: float | None = None,
        unsure: bool = False,
    ) -> None:
        """One submitted session: per instance open, two clicks, an undone click, accept.

        Args:
            image: The image.
            masks: Category and mask of each instance.
            corrects: Ids of stored masks that the first ones replace.
            deletes: Ids of stored masks that are opened and deleted.
            score: What the model states of the masks.
            unsure: Whether they are flagged.
        """
        with self.database.begin() as conn:
            claim = claim_task(
                conn, self.campaign_id, self.annotator, claim_id=str(uuid.uuid4()), lease_s=60, image_id=image.id
            )
            assert claim is not None
            seq = 0
            for (category, mask), opened in zip_longest(masks, corrects):
                seq = self._instance(conn, claim, seq, category, mask, opened, score=score, unsure=unsure)
            for opened in deletes:
                seq = self._delete(conn, claim, seq, opened)
            append_event(conn, claim.session_id, event(claim, seq + 1, "submit"), self.annotator, lease_s=60)

    def _delete(self, conn: Any, claim: Claim, seq: int, opened: str) -> int:
        instance = str(uuid.uuid4())
        for kind, state, payload in (("open", "open", {"mask_id": opened}), ("delete", "deleted", {})):
            seq += 1
            sent = event(claim, seq, kind, instance_id=instance, payload=payload)
            effects = Effects([InstanceChange(instance, state)])
            append_event(conn, claim.session_id, sent, self.annotator, lease_s=60, effects=effects)
        return seq

    def _instance(
        self,
        conn: Any,
        claim: Claim,
        seq: int,
        category: int | None,
        mask: Mask,
        opened: str | None = None,
        *,
        score: float | None,
        unsure: bool,
    ) -> int:
        instance = str(uuid.uuid4())

        def send(
            kind: str, effects: Effects | None = None, pins: dict[str, str] | None = None, **fields: object
        ) -> EventIn:
            nonlocal seq
            seq += 1
            sent = event(claim, seq, kind, instance_id=instance, **fields)
            append_event(conn, claim.session_id, sent, self.annotator, lease_s=60, effects=effects, pins=pins)
            return sent

        pins = {"model_digest": "d" * 64, "model_key": "k", "adapter_digest": ADAPTER}
        send("open", Effects([InstanceChange(instance)]), pins, payload={"mask_id": opened})
        first = send("click")
        send("click", payload={"x": 3.5, "y": 2.25, "is_positive": False})
        wrong = send("click")
        send("undo", payload={"event_id": str(wrong.event_id)})
        result = EventResultRecord(
            event_id=str(first.event_id),
            mask_sha256=mask_digest(mask),
            roi=(0, 0, 60, 80),
            scores=(0.5, 0.25),
            engine={"runtime": "torch"},
            latency_ms={"model": 2.0, "fetch": 0.5},
        )
        record_results(conn, [result])
        accepted = new_mask(
            instance,
            seq,
            category_number=category,
            height=mask.shape[0],
            width=mask.shape[1],
            rle_counts=mask_to_rle(mask).counts,
            mask_sha256=mask_digest(mask),
            area=int(mask.sum()),
            bbox=mask_box_xywh(mask),
            adapter_digest=ADAPTER,
            model_digest="d" * 64,
            score=score,
        )
        change = InstanceChange(instance, "accepted", category, unsure, accepted.mask_id)
        payload = {"seq": seq, "mask_sha256": mask_digest(mask), "category": category}
        send("accept", Effects([change], accepted), payload=payload)
        self.masks[len(self.masks) + 1] = mask
        return seq


def standard(database: Database, folder: Path) -> Labelled:
    """Six images: three with masks (one without category), one verified to be empty, two not looked at."""
    world = Labelled(database, folder)
    world.label(world.images[2], [(1, blob(0)), (2, blob(1)), (None, blob(2))])
    world.label(world.images[0], [(2, blob(3))])
    world.label(world.images[1], [])
    world.label(world.images[4], [(1, blob(4)), (1, blob(5))])
    return world


def tree(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
