"""Which masks are current."""

import pytest

from pipeline.storage.click_log import Effects, InstanceChange
from pipeline.storage.masks import current_masks, get_mask
from schemas.catalogue import MaskRecord
from schemas.errors import NotFoundError
from tests.pipeline.storage.catalogues import SHA, Catalogue, event, new_mask, new_uuid, store_import


def _current(catalogue: Catalogue, **options: object) -> list[str]:
    with catalogue.database.connect() as conn:
        return [mask.id for mask in current_masks(conn, catalogue.campaign_id, **options)]  # type: ignore[arg-type]


def _import(catalogue: Catalogue, **changes: object) -> MaskRecord:
    values = {"image_id": catalogue.images[0].id, "category_number": 2, **changes}
    with catalogue.database.begin() as conn:
        return store_import(conn, **values)  # type: ignore[arg-type]


def test_masks_are_current_once_their_session_is_submitted(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    instance = new_uuid()
    mask = new_mask(instance, 1)
    catalogue.append(claim, event(claim, 1, instance_id=instance), effects=Effects([InstanceChange(instance)]))
    accept = event(claim, 2, "accept", instance_id=instance, payload={"seq": 1, "mask_sha256": SHA})
    accepted = InstanceChange(instance, "accepted", 1, mask_id=mask.mask_id)
    catalogue.append(claim, accept, effects=Effects([accepted], mask))
    assert _current(catalogue) == []
    catalogue.append(claim, event(claim, 3, "submit"))
    assert _current(catalogue) == [mask.mask_id]
    with catalogue.database.connect() as conn:
        assert get_mask(conn, mask.mask_id).pseudonym.startswith("annotator-")  # type: ignore[union-attr]


def test_accept_that_was_undone_is_not_current_but_kept(catalogue: Catalogue) -> None:
    claim = catalogue.claim()
    instance = new_uuid()
    mask = new_mask(instance, 1)
    catalogue.append(claim, event(claim, 1, instance_id=instance), effects=Effects([InstanceChange(instance)]))
    accept = event(claim, 2, "accept", instance_id=instance, payload={"seq": 1, "mask_sha256": SHA})
    accepted = InstanceChange(instance, "accepted", 1, mask_id=mask.mask_id)
    catalogue.append(claim, accept, effects=Effects([accepted], mask))
    undo = event(claim, 3, "undo", instance_id=instance, payload={"event_id": str(accept.event_id)})
    catalogue.append(claim, undo, effects=Effects([InstanceChange(instance)]))
    catalogue.append(claim, event(claim, 4, "submit"))
    assert _current(catalogue) == []
    with catalogue.database.connect() as conn:
        assert get_mask(conn, mask.mask_id).number == 1


def test_masks_are_listed_by_number_and_image(catalogue: Catalogue) -> None:
    masks = [catalogue.label(catalogue.claim()).mask_id for _ in range(3)]
    assert _current(catalogue) == masks
    assert _current(catalogue, after=1, limit=1) == masks[1:2]
    assert _current(catalogue, image_id=catalogue.images[2].id) == masks[2:]


def test_imported_masks_are_current_at_once(catalogue: Catalogue) -> None:
    imported = _import(catalogue)
    assert (imported.number, imported.source, imported.session_id, imported.pseudonym) == (1, "import", None, None)
    assert _import(catalogue, mask_id=imported.id, instance_id=imported.instance_id) == imported
    assert _current(catalogue) == [imported.id]
    with pytest.raises(NotFoundError):
        _import(catalogue, image_id=new_uuid())


def test_correction_replaces_only_what_it_opened(catalogue: Catalogue) -> None:
    image = catalogue.images[0].id
    kept, opened = _import(catalogue), _import(catalogue)
    correction = catalogue.claim(image_id=image)
    better = catalogue.label(correction, opened=opened.id)
    assert _current(catalogue) == [kept.id, better.mask_id]
    with catalogue.database.connect() as conn:
        assert get_mask(conn, better.mask_id).parent_id == opened.id


def test_correction_counts_only_when_submitted(catalogue: Catalogue) -> None:
    opened = _import(catalogue)
    claim = catalogue.claim(image_id=catalogue.images[0].id)
    instance = new_uuid()
    start = event(claim, 1, "open", instance_id=instance, payload={"mask_id": opened.id})
    catalogue.append(claim, start, effects=Effects([InstanceChange(instance)]))
    gone = event(claim, 2, "delete", instance_id=instance)
    catalogue.append(claim, gone, effects=Effects([InstanceChange(instance, "deleted")]))
    assert _current(catalogue) == [opened.id]
    catalogue.append(claim, event(claim, 3, "submit"))
    assert _current(catalogue) == []


def test_unknown_mask_is_not_found(catalogue: Catalogue) -> None:
    with pytest.raises(NotFoundError), catalogue.database.connect() as conn:
        get_mask(conn, new_uuid())
