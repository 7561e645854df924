"""Images once by content, the hold-out by group, and what is known of their embeddings."""

import pytest
from sqlalchemy import Connection

from pipeline.storage.database import Database
from pipeline.storage.images import (
    Added,
    add_quarantined,
    count_images,
    embedding_digest,
    forget_embedding,
    get_image,
    image_by_sha,
    image_hashes,
    images_of,
    in_holdout,
    missing_embeddings,
    note_encode_attempt,
    quarantine_image,
    record_embeddings,
    settled_sources,
)
from pipeline.storage.tasks import peek_tasks
from schemas.campaigns import CampaignSettings
from schemas.errors import NotFoundError
from tests.pipeline.storage.catalogues import Catalogue, new_uuid, sha


def test_each_image_gets_a_number_and_a_task(catalogue: Catalogue) -> None:
    with catalogue.database.connect() as conn:
        assert [image.number for image in images_of(conn, catalogue.campaign_id)] == [1, 2, 3, 4, 5]
        assert images_of(conn, catalogue.campaign_id, after_number=1, limit=2) == catalogue.images[1:3]
        assert get_image(conn, catalogue.images[0].id) == catalogue.images[0]
        assert image_by_sha(conn, catalogue.campaign_id, sha("image-3")) == catalogue.images[3]
        assert image_by_sha(conn, catalogue.campaign_id, sha("nobody")) is None
        assert count_images(conn, catalogue.campaign_id) == 5
        assert peek_tasks(conn, catalogue.campaign_id, 9) == catalogue.images
        with pytest.raises(NotFoundError):
            get_image(conn, new_uuid())


def settled(conn: Connection, catalogue: Catalogue) -> set[tuple[str, str]]:
    """(URI, version) of what need not be read again."""
    return {(row["uri"], row["version"]) for row in settled_sources(conn, catalogue.campaign_id).to_pylist()}


def test_an_image_quarantined_after_it_was_registered_is_not_settled(catalogue: Catalogue) -> None:
    with catalogue.database.begin() as conn:
        assert ("/images/image-1.png", "1") in settled(conn, catalogue)
        quarantine_image(conn, catalogue.images[1].id, "cannot be encoded")
        assert ("/images/image-1.png", "1") not in settled(conn, catalogue)


def test_same_bytes_are_one_image(catalogue: Catalogue) -> None:
    with catalogue.database.begin() as conn:
        assert catalogue.add_image(conn, "image-1", name="elsewhere") == Added(catalogue.images[1].id, True)
        assert count_images(conn, catalogue.campaign_id) == 5
        assert {("/images/elsewhere.png", "1"), ("/images/image-1.png", "1")} <= settled(conn, catalogue)


def test_a_file_listed_again_is_no_duplicate_of_itself(catalogue: Catalogue) -> None:
    with catalogue.database.begin() as conn:
        catalogue.add_image(conn, "image-1", version="2")
        assert ("/images/image-1.png", "2") in settled(conn, catalogue)
        assert ("/images/image-1.png", "1") not in settled(conn, catalogue)


def test_a_quarantined_file_that_was_repaired_becomes_an_image(catalogue: Catalogue) -> None:
    uri = "/images/late.png"
    with catalogue.database.begin() as conn:
        add_quarantined(conn, catalogue.campaign_id, uri=uri, uri_sha256=sha(uri), version="1", reason="truncated")
        assert (uri, "1") not in settled(conn, catalogue)
        added = catalogue.add_image(conn, "late", version="2")
        assert (uri, "2") in settled(conn, catalogue)
        assert get_image(conn, added.image_id).number == 6


def test_adding_to_an_unknown_campaign_is_not_found(catalogue: Catalogue) -> None:
    catalogue.campaign_id = new_uuid()
    with pytest.raises(NotFoundError), catalogue.database.begin() as conn:
        catalogue.add_image(conn, "x")


def test_near_duplicates_are_held_out_together(database: Database) -> None:
    catalogue = Catalogue(database, images=0, settings=CampaignSettings(holdout_fraction=0.5))
    with database.begin() as conn:
        for group in range(20):
            for member in range(3):
                catalogue.add_image(conn, f"{group}-{member}", group_key=sha(f"{group}-0"))
        held, rest = (images_of(conn, catalogue.campaign_id, holdout=side) for side in (True, False))
        groups = {found[0]: found[2] for found in image_hashes(conn, catalogue.campaign_id)}
    assert len(held) + len(rest) == 60
    assert held
    assert rest
    assert not {groups[image.sha256] for image in held} & {groups[image.sha256] for image in rest}


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.9])
def test_holdout_takes_its_share_and_the_seed_decides_whom(fraction: float) -> None:
    def drawn(seed: int) -> list[bool]:
        return [in_holdout(sha(str(n)), CampaignSettings(holdout_fraction=fraction, seed=seed)) for n in range(2000)]

    assert drawn(0) == drawn(0)
    assert abs(sum(drawn(0)) / 2000 - fraction) < 0.03
    assert (drawn(0) != drawn(1)) == (fraction > 0)


def test_missing_embeddings_are_those_not_recorded_under_the_key(catalogue: Catalogue) -> None:
    one, two, three, four, five = catalogue.images
    with catalogue.database.begin() as conn:
        record_embeddings(conn, "key", [(two.sha256, "d2", 5), (four.sha256, "d4", 5)])
        record_embeddings(conn, "other key", [(one.sha256, "d1", 5)])
        quarantine_image(conn, five.id, "poi\0son")
        assert missing_embeddings(conn, catalogue.campaign_id, "key", 10) == [one, three]
        assert missing_embeddings(conn, catalogue.campaign_id, "key", 1) == [one]
        assert missing_embeddings(conn, catalogue.campaign_id, "key", 10, after=one.number) == [three]
        forget_embedding(conn, two.sha256, "key")
        assert missing_embeddings(conn, catalogue.campaign_id, "key", 10) == [one, two, three]
        assert get_image(conn, five.id).quarantine_reason == "poison"


def test_first_recorded_digest_stays(catalogue: Catalogue) -> None:
    key = catalogue.images[0].sha256
    with catalogue.database.begin() as conn:
        assert embedding_digest(conn, key, "key") is None
        record_embeddings(conn, "key", [(key, "first", 5)])
        record_embeddings(conn, "key", [(key, "second", 5)])
        assert embedding_digest(conn, key, "key") == "first"


def test_many_embeddings_are_recorded_in_batches(catalogue: Catalogue) -> None:
    with catalogue.database.begin() as conn:
        record_embeddings(conn, "key", [(sha(str(n)), "d", 1) for n in range(500)])
        assert embedding_digest(conn, sha("499"), "key") == "d"
        record_embeddings(conn, "key", [])


def test_attempts_are_counted_until_the_image_encodes(catalogue: Catalogue) -> None:
    first, second = catalogue.images[:2]
    with catalogue.database.begin() as conn:
        assert note_encode_attempt(conn, [first.id, second.id]) == {first.id: 1, second.id: 1}
        assert note_encode_attempt(conn, [first.id]) == {first.id: 2}
        record_embeddings(conn, "key", [(first.sha256, "d", 5)])
        assert note_encode_attempt(conn, [first.id, second.id]) == {first.id: 1, second.id: 2}
