"""Prelabels are proposals that know their model, and are stored once however often it is done."""

import numpy as np

from pipeline.masks.boxes import mask_box_xywh
from pipeline.masks.digest import mask_digest
from pipeline.masks.rle import mask_to_rle, rle_to_mask
from pipeline.storage.masks import count_proposals, proposed_masks
from pipeline.storage.prelabels import distinct_from_stored, images_to_prelabel, store_prelabels
from pipeline.storage.tasks import peek_tasks, set_priorities, task_order
from schemas.catalogue import MaskRecord
from schemas.predictions import Pins, Prelabel
from tests.pipeline.storage.catalogues import SHA, Catalogue, sha, store_import

PINS = Pins(model_digest=SHA, model_key="key")
ADAPTED = PINS.model_copy(update={"adapter_digest": sha("adapter")})


def found(*boxes: tuple[int, int, int, int]) -> list[Prelabel]:
    """Rectangles (y0, x0, y1, x1) of an image of 4x4."""
    made = []
    for y0, x0, y1, x1 in boxes:
        mask = np.zeros((4, 4), bool)
        mask[y0:y1, x0:x1] = True
        made.append(
            Prelabel(
                rle=mask_to_rle(mask),
                mask_sha256=mask_digest(mask),
                area=int(mask.sum()),
                box_xywh=mask_box_xywh(mask),
                score=0.9,
                stability=0.9,
                click=(0.0, 0.0),
            )
        )
    return made


def store(catalogue: Catalogue, image: int, pins: Pins, masks: list[Prelabel], category: int | None = 1) -> int:
    with catalogue.database.begin() as conn:
        return store_prelabels(conn, catalogue.campaign_id, catalogue.images[image].id, pins, masks, category)


def proposals(catalogue: Catalogue, image: int = 0) -> list[MaskRecord]:
    with catalogue.database.connect() as conn:
        return proposed_masks(conn, catalogue.campaign_id, catalogue.images[image].id)


def waiting(catalogue: Catalogue, pins: Pins = PINS, limit: int | None = None) -> list[int]:
    with catalogue.database.connect() as conn:
        return [image.number for image in images_to_prelabel(conn, catalogue.campaign_id, pins, limit)]


def test_prelabels_are_proposals_with_their_lineage_and_stored_once(catalogue: Catalogue) -> None:
    masks = found((0, 0, 2, 2), (2, 2, 4, 4))
    assert store(catalogue, 0, ADAPTED, masks) == 2
    first = proposals(catalogue)
    assert [(m.model_digest, m.adapter_digest, m.source, m.category_number, m.score) for m in first] == [
        (SHA, ADAPTED.adapter_digest, "import", 1, 0.9)
    ] * 2
    assert store(catalogue, 0, ADAPTED, masks) == 0
    assert proposals(catalogue) == first
    assert store(catalogue, 1, ADAPTED, masks[:1], category=None) == 1
    assert proposals(catalogue, 1)[0].category_number is None
    with catalogue.database.connect() as conn:
        assert count_proposals(conn, catalogue.campaign_id) == 3


def test_images_wait_until_this_model_and_adapter_has_looked(catalogue: Catalogue) -> None:
    assert [image.holdout for image in catalogue.images] == [False, False, False, True, False]
    assert waiting(catalogue) == [1, 2, 3, 5]  # what the gate judges by is not proposed
    store(catalogue, 1, PINS, found((0, 0, 2, 2)))
    assert waiting(catalogue) == [1, 3, 5] and waiting(catalogue, ADAPTED) == [1, 2, 3, 5]
    catalogue.label(catalogue.claim())
    assert waiting(catalogue, limit=2) == [3, 5]


def test_another_model_replaces_what_nobody_accepted_and_the_first_may_come_back(catalogue: Catalogue) -> None:
    old, new = found((0, 0, 2, 2), (2, 2, 4, 4)), found((0, 0, 2, 2))
    store(catalogue, 0, PINS, old)
    with catalogue.database.begin() as conn:
        store_import(conn, catalogue.images[0].id, rle_to_mask(old[1].rle), is_trusted=False)
    assert store(catalogue, 0, ADAPTED, new) == 1
    assert [m.adapter_digest for m in proposals(catalogue)] == [None, ADAPTED.adapter_digest]
    assert [m.model_digest for m in proposals(catalogue)] == [None, SHA]  # what people imported stays
    assert 1 in waiting(catalogue)
    assert store(catalogue, 0, PINS, old) == 0
    assert sorted(m.model_digest or "" for m in proposals(catalogue)) == ["", SHA, SHA]
    assert 1 not in waiting(catalogue) and 1 in waiting(catalogue, ADAPTED)


def test_nothing_is_proposed_on_an_image_that_somebody_works_on(catalogue: Catalogue) -> None:
    catalogue.claim()
    assert store(catalogue, 0, PINS, found((0, 0, 2, 2))) == 0
    assert proposals(catalogue) == []


def test_what_people_made_or_imported_is_not_proposed_again(catalogue: Catalogue) -> None:
    image = catalogue.images[0]
    own, other = found((0, 0, 4, 3), (0, 0, 2, 4))
    same = found((0, 0, 4, 3))[0]
    with catalogue.database.begin() as conn:
        store_import(conn, image.id, rle_to_mask(same.rle), is_trusted=False)
    store(catalogue, 0, PINS, [other])
    with catalogue.database.connect() as conn:
        left = distinct_from_stored(conn, catalogue.campaign_id, image.id, ADAPTED, [own, other], 0.7)
    assert left == [other]  # a prelabel of another model does not stand in the way


def test_priorities_order_the_queue_of_new_tasks_only(catalogue: Catalogue) -> None:
    with catalogue.database.begin() as conn:
        ids = {image.number: task for task, image in task_order(conn, catalogue.campaign_id, new=True)}
    taken = catalogue.claim()
    with catalogue.database.begin() as conn:
        set_priorities(conn, {ids[1]: -9.0, ids[4]: -2.0, ids[3]: -1.0})
        assert [image.number for image in peek_tasks(conn, catalogue.campaign_id, 9)] == [4, 3, 2, 5]
        assert [image.number for _, image in task_order(conn, catalogue.campaign_id, new=True)] == [2, 3, 4, 5]
        assert [image.id for _, image in task_order(conn, catalogue.campaign_id, new=False)] == [taken.image.id]
    assert catalogue.claim(catalogue.other_id).image.number == 4
