"""What became of a snapshot, against the sets of both snapshots' entries."""

import random

from sqlalchemy import delete, insert, select

from pipeline.storage.changes import changes_between
from pipeline.storage.snapshots import create_snapshot
from schemas.tables import Image, MaskRow, SnapshotItem
from tests.pipeline.storage.catalogues import Catalogue

Entry = tuple[str, str | None, int | None, bool]
"""Image, mask, category, unsure."""


def test_any_two_snapshots_differ_as_their_sets_do(catalogue: Catalogue) -> None:
    for image in (*catalogue.images[:3], *catalogue.images[:3]):
        catalogue.label(catalogue.claim(image_id=image.id))
    with catalogue.database.begin() as conn:
        base, newer = (create_snapshot(conn, catalogue.campaign_id, "export", {}) for _ in range(2))
        numbers = dict(conn.execute(select(Image.id, Image.number)).all())
        masks = {row.id: (row.image_id, row.number) for row in conn.execute(select(MaskRow.__table__))}
    drawn = random.Random(0)
    seen = set()
    for _ in range(60):

        def mark() -> tuple[int | None, bool]:
            return drawn.choice((None, 1, 2)), drawn.random() < 0.3

        entries: list[set[Entry]] = [{(image, mask, *mark()) for mask, (image, _) in masks.items()}]
        entries.append(set(entries[0]))
        for held in entries:
            for image, mask, *_ in sorted(held, key=str):
                if drawn.random() < 0.15:
                    held -= {entry for entry in held if entry[1] == mask}
                    held |= {(image, mask, *mark())} if drawn.random() < 0.5 else set()
            empty = {image.id for image in catalogue.images} - {image for image, *_ in held}
            held |= {(image, None, None, False) for image in empty if drawn.random() < 0.5}
        with catalogue.database.begin() as conn:
            conn.execute(delete(SnapshotItem))
            for snapshot, held in zip((base, newer), entries, strict=True):
                names = ("image_id", "mask_id", "category_number", "unsure")
                rows = [{"snapshot_id": snapshot.id, **dict(zip(names, entry, strict=True))} for entry in held]
                conn.execute(insert(SnapshotItem), drawn.sample(rows, len(rows)))
            found = changes_between(conn, base, newer)
        old, new = entries
        stay, differ = {image for image, *_ in new}, {image for image, *_ in old ^ new}
        assert found.images == sorted(numbers[image] for image in differ & stay)
        assert [gone.id for gone in found.removed_images] == sorted(numbers[image] for image in differ - stay)
        lost = {mask for _, mask, *_ in old} - {mask for _, mask, *_ in new} - {None}
        told = {(gone.id, gone.image_id) for gone in found.removed_annotations}
        assert told == {(masks[mask][1], numbers[masks[mask][0]]) for mask in lost}
        seen |= {len(found.images), *(-len(told) for _ in told)}
    assert seen >= {0, 1, 2, 3}
