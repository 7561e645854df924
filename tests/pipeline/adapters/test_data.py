"""The catalogue gives retraining its accepted masks, the edits behind them, and never a held-out image."""

import numpy as np
import pytest

from pipeline.adapters.data import read_holdout_images, read_retrain_images
from pipeline.adapters.scenes import AdapterImage
from pipeline.masks.rle import mask_to_rle, rle_to_mask
from pipeline.storage.click_log import Effects, InstanceChange
from pipeline.storage.database import Database
from pipeline.storage.images import images_of, quarantine_image
from pipeline.storage.snapshots import create_snapshot
from schemas.campaigns import CampaignSettings
from schemas.errors import NotFoundError
from tests.pipeline.storage.catalogues import SHA, Catalogue, event, new_mask, new_uuid

ONE_PIXEL = mask_to_rle(np.eye(4, dtype=np.bool_) & (np.arange(4) == 1))


@pytest.fixture
def catalogue(sqlite_database: Database) -> Catalogue:
    """Twelve images, some of them held out, each with one accepted mask after a click, an undone one and another."""
    catalogue = Catalogue(sqlite_database, images=12, settings=CampaignSettings(holdout_fraction=0.4))
    for image in catalogue.images[:10]:
        label_with_undo(catalogue, image.id)
    return catalogue


def label_with_undo(catalogue: Catalogue, image_id: str) -> None:
    claim = catalogue.claim(image_id=image_id)
    instance = new_uuid()
    wrong = event(claim, 3, instance_id=instance, payload={"x": 3.0, "y": 3.0, "is_positive": False})
    catalogue.append(
        claim, event(claim, 1, "open", instance_id=instance, payload={}), effects=Effects([InstanceChange(instance)])
    )
    catalogue.append(claim, event(claim, 2, instance_id=instance, payload={"x": 1.0, "y": 2.0, "is_positive": True}))
    catalogue.append(claim, wrong)
    catalogue.append(claim, event(claim, 4, "undo", instance_id=instance, payload={"event_id": wrong.event_id}))
    catalogue.append(claim, event(claim, 5, instance_id=instance, payload={"x": 0.5, "y": 1.5, "is_positive": True}))
    mask = new_mask(instance, 5, rle_counts=ONE_PIXEL.counts)
    accepted = InstanceChange(instance, "accepted", mask.category_number, mask_id=mask.mask_id)
    catalogue.append(
        claim,
        event(claim, 6, "accept", instance_id=instance, payload={"seq": 5, "mask_sha256": SHA}),
        effects=Effects([accepted], mask),
    )
    catalogue.append(claim, event(claim, 7, instance_id=instance, payload={"x": 2.0, "y": 2.0, "is_positive": True}))
    catalogue.append(claim, event(claim, 8, "submit"))


def read_both(catalogue: Catalogue, filters: dict[str, object]) -> tuple[list[AdapterImage], list[AdapterImage]]:
    with catalogue.database.begin() as conn:
        snapshot = create_snapshot(conn, catalogue.campaign_id, "retrain", filters)
    with catalogue.database.connect() as conn:
        return read_retrain_images(conn, snapshot.id), read_holdout_images(conn, catalogue.campaign_id)


@pytest.mark.parametrize("filters", [{}, {"holdout": False}])
def test_training_and_held_out_images_are_apart(catalogue: Catalogue, filters: dict[str, object]) -> None:
    training, held_out = read_both(catalogue, filters)
    with catalogue.database.connect() as conn:
        by_sha = {image.sha256: image for image in images_of(conn, catalogue.campaign_id)}
    assert {by_sha[image.ref.sha256].holdout for image in training} == {False}
    assert {by_sha[image.ref.sha256].holdout for image in held_out} == {True}
    assert len(training) + len(held_out) == 10, "labelled ones only"


def test_quarantined_images_are_left_out(catalogue: Catalogue) -> None:
    before = read_both(catalogue, {})
    bad = {images[0].ref.sha256 for images in before}
    with catalogue.database.begin() as conn:
        for image in images_of(conn, catalogue.campaign_id):
            if image.sha256 in bad:
                quarantine_image(conn, image.id, "it killed the encoder")
    assert read_both(catalogue, {}) == tuple(images[1:] for images in before)


def test_targets_carry_mask_category_and_effective_edits(catalogue: Catalogue) -> None:
    training, held_out = read_both(catalogue, {})
    for image in (*training, *held_out):
        (target,) = image.targets
        assert target.category == 1
        assert rle_to_mask(target.rle).shape == (image.ref.height, image.ref.width)
        assert [edit.kind for edit in target.edits] == ["open", "click", "click"], "undone and later clicks are out"
        assert [(click.x, click.y, click.is_positive) for click in target.clicks] == [
            (1.0, 2.0, True),
            (0.5, 1.5, True),
        ]
        assert image.group == image.ref.sha256


def test_unknown_snapshot(catalogue: Catalogue) -> None:
    with catalogue.database.connect() as conn, pytest.raises(NotFoundError):
        read_retrain_images(conn, new_uuid())
