"""What we export comes back on the images that it was of, as it was."""

import uuid
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.export.snapshot import export_snapshot
from pipeline.imports import Found, import_masks, import_source
from pipeline.ingest.scan import ingest
from pipeline.masks.rle import mask_to_rle
from pipeline.storage.campaigns import add_categories, create_campaign, list_categories
from pipeline.storage.database import Database
from pipeline.storage.images import images_of
from pipeline.storage.masks import current_masks
from schemas.campaigns import CampaignRecord
from tests.pipeline.storage.catalogues import store_import

Mask = NDArray[np.bool_]


def mask(number: int) -> Mask:
    """A rectangle; one with a hole and a part of one pixel."""
    made = np.zeros((40, 60), np.bool_)
    made[5:15, 5 + 10 * number : 15 + 10 * number] = True
    if number == 0:
        made[8:11, 8:11] = False
        made[30, 50] = True
    return made


def campaign_of(database: Database, *folders: Path) -> CampaignRecord:
    """A campaign of the images of these folders."""
    with database.begin() as conn:
        made = create_campaign(
            conn,
            campaign_id=str(uuid.uuid4()),
            name=f"campaign {uuid.uuid4()}",
            source_url=str(folders[0]),
            model_id="toy-color",
            model_digest="d" * 64,
            model_key="k",
            labels=[],
        )
    for folder in folders:
        ingest(database, made, str(folder))
    return made


def stored(database: Database, campaign: CampaignRecord) -> dict[str, tuple[int, str]]:
    """Area and RLE of each image's mask, by the image's URI."""
    with database.connect() as conn:
        uris = {image.number: image.uri for image in images_of(conn, campaign.id)}
        masks = current_masks(conn, campaign.id)
    assert len(masks) == len({made.image_number for made in masks})
    return {uris[made.image_number]: (made.area, made.rle_counts) for made in masks}


def photos(folder: Path, *names: str) -> Path:
    """Images of noise, no two alike."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = [ord(letter) for letter in str(path.relative_to(folder.parent))]
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8)).save(path)
    return folder


def labelled(database: Database, *folders: Path) -> CampaignRecord:
    """A campaign whose images have a mask each."""
    campaign = campaign_of(database, *folders)
    with database.connect() as conn:
        images = images_of(conn, campaign.id)
    items = (Found(image, "cat", image.id, mask_to_rle(mask(number))) for number, image in enumerate(images))
    assert import_masks(database, campaign, items, is_trusted=True).stored == len(images)
    return campaign


def test_yolo_labels_named_by_number_come_to_the_images_that_they_are_of(database: Database, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", "000000.jpg", "000001.jpg", "000002.jpg")
    campaign, again = labelled(database, folder), campaign_of(database, folder)
    export_snapshot(database, campaign, str(tmp_path / "out"), ["yolo-seg"])
    assert import_source(database, again, str(tmp_path / "out" / "yolo-seg"), is_trusted=True).dropped == {}
    first, *others = (str(folder / f"{number:06d}.jpg") for number in range(3))
    truth, found = stored(database, campaign), stored(database, again)
    assert {uri: found[uri] for uri in others} == {uri: truth[uri] for uri in others}
    assert truth[first][0] < found[first][0] < 1.5 * truth[first][0]  # the bridges to the hole and the part


@pytest.mark.parametrize(("format_", "url"), [("coco", "coco/instances.json"), ("yolo-seg", "yolo-seg")])
def test_a_mask_without_a_category_comes_back_without_one(
    database: Database, tmp_path: Path, format_: str, url: str
) -> None:
    folder = photos(tmp_path / "photos", "a.jpg", "b.jpg")
    campaign, again = campaign_of(database, folder), campaign_of(database, folder)
    with database.begin() as conn:
        first, second = images_of(conn, campaign.id)
        add_categories(conn, campaign.id, ["unlabelled", "cat"])
        store_import(conn, first.id, mask(1), category_number=None)
        store_import(conn, second.id, mask(2))
    export_snapshot(database, campaign, str(tmp_path / "out"), [format_], images="uri")
    assert import_source(database, again, str(tmp_path / "out" / url), is_trusted=True).stored == 2
    with database.connect() as conn:
        names = {known.number: known.name for known in list_categories(conn, again.id)}
        found = [names.get(known.category_number or 0) for known in current_masks(conn, again.id)]
    assert found == [None, "unlabelled"]


def test_who_was_unsure_still_is_after_coco(database: Database, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", "a.jpg", "b.jpg")
    campaign, again = campaign_of(database, folder), campaign_of(database, folder)
    with database.begin() as conn:
        first, second = images_of(conn, campaign.id)
        store_import(conn, first.id, mask(1), category_number=None, unsure=True)
        store_import(conn, second.id, mask(2), category_number=None)
    export_snapshot(database, campaign, str(tmp_path / "out"), ["coco"])
    import_source(database, again, str(tmp_path / "out" / "coco" / "instances.json"), is_trusted=True)
    report = export_snapshot(database, again, str(tmp_path / "sure"), ["coco"], filters={"sure": True})
    assert report.counts["annotations"] == 1


@pytest.mark.parametrize(("format_", "url"), [("coco", "coco/instances.json"), ("yolo-seg", "yolo-seg")])
def test_sources_with_the_same_names_are_told_apart(database: Database, tmp_path: Path, format_: str, url: str) -> None:
    folders = photos(tmp_path / "one", "a.jpg", "b.jpg"), photos(tmp_path / "two", "a.jpg")
    campaign, again = labelled(database, *folders), campaign_of(database, *folders)
    export_snapshot(database, campaign, str(tmp_path / "out"), [format_], images="uri")
    report = import_source(database, again, str(tmp_path / "out" / url), is_trusted=True)
    assert (report.stored, report.dropped) == (3, {})
    truth, found = stored(database, campaign), stored(database, again)
    assert found.keys() == truth.keys()
    del truth[str(folders[0] / "a.jpg")], found[str(folders[0] / "a.jpg")]  # polygons have bridges
    assert found == truth
