"""Label one, propose to the others, on both databases."""

import pytest

from pipeline.imports.propose import ProposeReport, propose_in_groups
from pipeline.storage.campaigns import get_campaign
from pipeline.storage.database import Database
from pipeline.storage.images import images_of, quarantine_image
from pipeline.storage.masks import current_masks, proposed_masks
from schemas.catalogue import MaskRecord
from schemas.masks import Rle
from tests.pipeline.storage.catalogues import Catalogue, store_import


class Group:
    """A campaign whose images have a group, a hash and a size."""

    def __init__(self, database: Database) -> None:
        self.catalogue = Catalogue(database, images=0)
        self.database = database
        with database.connect() as conn:
            self.campaign = get_campaign(conn, self.catalogue.campaign_id)

    def add(self, name: str, group: str, phash: int = 0, **fields: object) -> str:
        """An image's id."""
        values = {"group_key": group, "phash": f"{phash:016x}", **fields}
        with self.database.begin() as conn:
            return str(self.catalogue.add_image(conn, name, **values).image_id)

    def label(self, image_id: str, counts: str = "01?0", *, is_trusted: bool = True, category: int = 2) -> None:
        """Give an image a mask, or a proposal."""
        with self.database.begin() as conn:
            rle = Rle(size=(4, 4), counts=counts)
            store_import(conn, image_id, category_number=category, rle=rle, is_trusted=is_trusted)

    def propose(self) -> ProposeReport:
        return propose_in_groups(self.database, self.campaign)

    def proposals(self, image_id: str) -> list[MaskRecord]:
        with self.database.connect() as conn:
            return proposed_masks(conn, self.campaign.id, image_id)


@pytest.fixture
def group(database: Database) -> Group:
    return Group(database)


def test_masks_of_the_labelled_one_are_proposed_to_the_others_once(group: Group) -> None:
    first, second, third, apart = (group.add(name, key) for name, key in zip("abcd", "xxxy", strict=True))
    assert group.propose() == ProposeReport()
    group.label(first)
    group.label(first, "11>0", category=1)
    assert group.propose() == ProposeReport(images=2, stored=4)
    for image_id in (second, third):
        found = group.proposals(image_id)
        assert [(mask.category_number, mask.rle_counts, mask.area) for mask in found] == [
            (2, "01?0", 1),
            (1, "11>0", 1),
        ]
    assert group.proposals(first) == group.proposals(apart) == []
    assert group.propose() == ProposeReport()
    with group.database.connect() as conn:  # they count for nothing yet
        assert {mask.image_id for mask in current_masks(conn, group.campaign.id)} == {first}


def test_the_nearest_of_the_same_size_is_taken(group: Group) -> None:
    far, near, other = group.add("a", "x", 0b111111), group.add("b", "x", 0b11), group.add("c", "x", 0b1, width=8)
    wanting, wide = group.add("d", "x", 0b1), group.add("e", "x", 0b1, height=9)
    group.label(far, "01?0")
    group.label(near, "11>0")
    group.label(other, "21=0")
    assert group.propose() == ProposeReport(images=1, stored=1, other_size=1)
    assert [mask.rle_counts for mask in group.proposals(wanting)] == ["11>0"]
    assert group.proposals(wide) == []


def test_what_somebody_touched_or_that_holds_masks_is_left_alone(group: Group) -> None:
    source, labelled, proposed, leased, bad = (group.add(name, "x") for name in "abcde")
    group.label(source)
    group.label(labelled)
    group.label(proposed, is_trusted=False)
    with group.database.begin() as conn:
        quarantine_image(conn, bad, "it cannot be encoded")
    claim = group.catalogue.claim(image_id=leased)
    assert claim.image.id == leased
    assert group.propose() == ProposeReport()
    assert [len(group.proposals(image_id)) for image_id in (labelled, proposed, leased, bad)] == [0, 1, 0, 0]


def test_what_an_annotator_accepted_is_proposed_and_can_be_corrected(group: Group) -> None:
    first, second = group.add("a", "x"), group.add("b", "x")
    claim = group.catalogue.claim(image_id=first)
    mask = group.catalogue.label(claim)
    assert group.propose() == ProposeReport(images=1, stored=1)
    (proposal,) = group.proposals(second)
    assert (proposal.mask_sha256, proposal.category_number) == (mask.mask_sha256, mask.category_number)
    corrected = group.catalogue.label(group.catalogue.claim(image_id=second), opened=proposal.id)
    assert group.proposals(second) == []
    with group.database.connect() as conn:
        current = {mask.id for mask in current_masks(conn, group.campaign.id, image_id=second)}
    assert current == {corrected.mask_id}
    assert group.propose() == ProposeReport()


def test_many_images_go_by_batches_and_proposals_stay_on_their_side(group: Group) -> None:
    for number in range(270):
        group.add(f"{number:03d}", str(number // 9))
    with group.database.connect() as conn:
        images = images_of(conn, group.campaign.id)
    for image in images[::9]:
        group.label(image.id)
    asked: list[int] = []
    assert propose_in_groups(group.database, group.campaign, asked.append) == ProposeReport(images=240, stored=240)
    assert asked == [200, 240]
    assert all(image.holdout == images[(image.number - 1) // 9 * 9].holdout for image in images)
    assert 0 < sum(image.holdout for image in images) < 270
