"""Random moves of people and jobs, for tests of what must hold whatever was done."""

import random
from collections.abc import Callable
from typing import Any

from sqlalchemy import select

from pipeline.storage.click_log import record_results
from pipeline.storage.database import Database
from pipeline.storage.effects import Effects, InstanceChange
from pipeline.storage.images import forget_embedding, record_embeddings
from pipeline.storage.masks import current_masks
from pipeline.storage.prelabels import store_prelabels
from pipeline.storage.purge import find_scope, purge
from pipeline.storage.snapshots import create_snapshot
from schemas.catalogue import EventResultRecord
from schemas.masks import Rle
from schemas.predictions import Pins, Prelabel
from schemas.tables import EventRow
from tests.pipeline.storage.catalogues import SHA, Catalogue, event, new_mask, new_uuid, sha, store_import


class Walk:
    """Random moves of people and jobs in two campaigns that share a model and some images."""

    def __init__(self, database: Database, storage_url: str, seed: int) -> None:
        self.database, self.storage_url, self.random = database, storage_url, random.Random(seed)
        self.catalogues = [Catalogue(database, images=4) for _ in range(2)]

    def step(self) -> None:
        catalogue = self.random.choice(self.catalogues)
        moves = (
            self.label,
            self.label,
            self.leave,
            self.take_back,
            self.encode,
            self.propose,
            self.bring,
            self.compute,
        )
        self.random.choice((*moves, self.freeze))(catalogue)

    def claim(self, catalogue: Catalogue) -> Any:
        return catalogue.claim(image_id=self.random.choice(catalogue.images).id)

    def accept(self, catalogue: Catalogue, claim: Any, seq: int, opened: str | None = None, **fields: Any) -> Any:
        """Open, click and accept an instance, its first event being number `seq`."""
        instance = new_uuid()
        start = event(claim, seq, "open", instance_id=instance, payload={"mask_id": opened})
        catalogue.append(claim, start, effects=Effects([InstanceChange(instance)]))
        clicked = event(claim, seq + 1, instance_id=instance)
        catalogue.append(claim, clicked)
        category = self.random.choice([1, 2, None])
        mask = new_mask(instance, seq + 1, category_number=category, num_clicks=self.random.randrange(9), **fields)
        accept = event(claim, seq + 2, "accept", instance_id=instance, payload={"seq": seq + 1, "mask_sha256": SHA})
        change = InstanceChange(instance, "accepted", category, mask_id=mask.mask_id)
        catalogue.append(claim, accept, effects=Effects([change], mask))
        return instance

    def label(self, catalogue: Catalogue) -> None:
        """New masks, and some in the place of those that are there."""
        claim = self.claim(catalogue)
        with self.database.connect() as conn:
            there = [mask.id for mask in current_masks(conn, catalogue.campaign_id, image_id=claim.image.id)]
        opened = [None, *self.random.sample(there, min(len(there), 2))]
        for place, mask_id in enumerate(opened):
            self.accept(catalogue, claim, 3 * place + 1, mask_id, adapter_digest=self.random.choice([None, SHA]))
        catalogue.append(claim, event(claim, 3 * len(opened) + 1, "submit"))

    def leave(self, catalogue: Catalogue) -> None:
        """Masks of a session that is not submitted do not count as current."""
        claim = self.claim(catalogue)
        self.accept(catalogue, claim, 1)
        catalogue.append(claim, event(claim, 4, self.random.choice(["skip", "release"])))

    def take_back(self, catalogue: Catalogue) -> None:
        """A mask that was accepted gets another category, or is deleted; so is one that was there before."""
        claim = self.claim(catalogue)
        instance = self.accept(catalogue, claim, 1)
        change = self.random.choice([InstanceChange(instance, "deleted"), InstanceChange(instance)])
        undo = event(claim, 4, "delete", instance_id=instance)
        catalogue.append(claim, undo, effects=Effects([change]))
        with self.database.connect() as conn:
            there = [mask.id for mask in current_masks(conn, catalogue.campaign_id, image_id=claim.image.id)]
        if there:
            other = new_uuid()
            start = event(claim, 5, "open", instance_id=other, payload={"mask_id": there[0]})
            catalogue.append(claim, start, effects=Effects([InstanceChange(other, "deleted")]))
            catalogue.append(claim, event(claim, 6, "submit"))
        else:
            catalogue.append(claim, event(claim, 5, "submit"))

    def encode(self, catalogue: Catalogue) -> None:
        image = self.random.choice(catalogue.images)
        with self.database.begin() as conn:
            if self.random.random() < 0.3:
                forget_embedding(conn, image.sha256, "key")
            else:
                record_embeddings(conn, self.random.choice(["key", "other"]), [(image.sha256, SHA, 1)])

    def propose(self, catalogue: Catalogue) -> None:
        """Prelabels, by one model or another; those of the other are withdrawn."""
        image = self.random.choice(catalogue.images)
        pins = Pins(model_digest=self.random.choice([SHA, sha("other")]), model_key="key", adapter_digest=None)
        found = [
            Prelabel(rle=Rle(size=(4, 4), counts="01?0"), mask_sha256=sha(str(self.random.randrange(3))), area=1,
                     box_xywh=(0, 0, 1, 1), score=0.9, stability=0.9, click=(0.0, 0.0))
        ]  # fmt: skip
        with self.database.begin() as conn:
            store_prelabels(conn, catalogue.campaign_id, image.id, pins, found, None)

    def bring(self, catalogue: Catalogue) -> None:
        """A mask of a file, as truth or as a proposal; and an image, perhaps one that the other campaign has."""
        with self.database.begin() as conn:
            image = self.random.choice(catalogue.images)
            store_import(conn, image.id, is_trusted=self.random.random() < 0.5)
            catalogue.add_image(conn, f"image-{self.random.randrange(8)}")

    def compute(self, catalogue: Catalogue) -> None:
        """Results of clicks, some of them again."""
        with self.database.begin() as conn:
            clicks = conn.execute(select(EventRow.event_id).where(EventRow.kind == "click")).scalars().all()
            for event_id in self.random.sample(clicks, min(len(clicks), 3)):
                took = {"model": self.random.choice([1.0, 12.5, 6000.0]), "post": 0.5}
                facts = {"event_id": event_id, "mask_sha256": SHA, "engine": {}, "latency_ms": took}
                record_results(conn, [EventResultRecord(**facts)])

    def freeze(self, catalogue: Catalogue) -> None:
        with self.database.begin() as conn:
            create_snapshot(conn, catalogue.campaign_id, "export")

    def purge(self, catalogue: Catalogue, image: str | None, check: Callable[[Database], object]) -> None:
        """Purge an image, with a check after each step, or the campaign."""
        with self.database.connect() as conn:
            scope = find_scope(conn, catalogue.campaign_id, image)
        each = (lambda facts: None) if image is None else (lambda facts: check(self.database))
        purge(self.database, scope, self.storage_url, purged_by="me", chunk=3, progress=each)
