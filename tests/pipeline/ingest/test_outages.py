"""A bucket that goes away while it is ingested: waited for, else an end from which the next pass goes on."""

from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.ingest.scan import ingest
from pipeline.storage.database import Database
from pipeline.storage.files import patience
from schemas.campaigns import CampaignRecord
from schemas.errors import BusyError, ForbiddenError
from tests.pipeline.ingest.pictures import write_scenes
from tests.pipeline.ingest.test_scan import catalogue, counts, new_campaign, quarantined
from tests.s3_faults import FaultyS3

pytestmark = pytest.mark.s3
COUNT = 12


@pytest.fixture
def source(faulty_s3: FaultyS3, s3_bucket: str, tmp_path: Path) -> str:
    """`COUNT` images in the bucket."""
    write_scenes(tmp_path, range(COUNT))
    fs = fsspec.filesystem("s3")
    for path in tmp_path.glob("scene-*"):
        fs.put_file(str(path), f"{s3_bucket}/data/{path.name}")
    return f"{s3_bucket}/data"


def facts(database: Database, campaign: CampaignRecord) -> list[dict[str, Any]]:
    """What must not depend on outages."""
    return [image.model_dump(exclude={"id", "campaign_id", "created_at"}) for image in catalogue(database, campaign)]


@pytest.fixture
def undisturbed(sqlite_database: Database, source: str) -> list[dict[str, Any]]:
    """What a pass without outages registers."""
    campaign = new_campaign(sqlite_database)
    ingest(sqlite_database, campaign, source)
    found = facts(sqlite_database, campaign)
    assert len(found) == COUNT
    return found


def test_a_bucket_that_comes_back(
    sqlite_database: Database, source: str, faulty_s3: FaultyS3, undisturbed: list[dict[str, Any]]
) -> None:
    campaign = new_campaign(sqlite_database)
    waits: list[str] = []
    faulty_s3.go_away("ServiceUnavailable", method="GET", after=5, count=6)
    with patience(60, lambda seconds, why: waits.append(why)):
        report = ingest(sqlite_database, campaign, source)
    assert waits and counts(report) == (COUNT, 0, 0, 0)
    assert facts(sqlite_database, campaign) == undisturbed


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        ("SlowDown", BusyError, "does not answer"),
        ("ExpiredToken", ForbiddenError, "expired"),
        ("InvalidAccessKeyId", ForbiddenError, "refused"),
        ("AccessDenied", ForbiddenError, "refused"),
    ],
)
def test_where_it_does_not_come_back_the_next_pass_goes_on(
    sqlite_database: Database,
    source: str,
    faulty_s3: FaultyS3,
    undisturbed: list[dict[str, Any]],
    fault: str,
    error: type[Exception],
    text: str,
) -> None:
    campaign = new_campaign(sqlite_database)
    faulty_s3.go_away(fault, method="GET", after=5)
    with patience(0), pytest.raises(error, match=text) as failure:
        ingest(sqlite_database, campaign, source)
    assert "s3://" in str(failure.value) and "again" in str(failure.value)
    assert quarantined(sqlite_database, campaign) == {}
    before = len(catalogue(sqlite_database, campaign))
    assert 0 < before < COUNT
    faulty_s3.come_back()
    assert counts(ingest(sqlite_database, campaign, source)) == (COUNT - before, 0, 0, before)
    assert facts(sqlite_database, campaign) == undisturbed


def test_one_object_that_may_not_be_read_is_set_apart(
    sqlite_database: Database, source: str, faulty_s3: FaultyS3
) -> None:
    campaign = new_campaign(sqlite_database)
    faulty_s3.go_away("AccessDenied", path="scene-003")
    assert counts(ingest(sqlite_database, campaign, source)) == (COUNT - 1, 0, 1, 0)
    assert "Not allowed" in quarantined(sqlite_database, campaign)["scene-003.jpg"]


def test_unchanged_objects_are_listed_and_none_is_read(
    sqlite_database: Database, source: str, faulty_s3: FaultyS3
) -> None:
    campaign = new_campaign(sqlite_database)
    ingest(sqlite_database, campaign, source)
    faulty_s3.served.clear()
    assert counts(ingest(sqlite_database, campaign, source)) == (0, 0, 0, COUNT)
    assert faulty_s3.reads() == [] and 0 < len(faulty_s3.served) <= 4


def test_a_bucket_that_does_not_answer_is_not_taken_for_empty(
    sqlite_database: Database, source: str, faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    campaign, copies = new_campaign(sqlite_database), tmp_path / "copies"
    ingest(sqlite_database, campaign, source)
    write_scenes(copies, range(COUNT))
    for fault in ("ServiceUnavailable", "AccessDenied"):
        faulty_s3.go_away(fault)
        assert ingest(sqlite_database, campaign, str(copies)).moved == 0
    faulty_s3.come_back()
    assert ingest(sqlite_database, campaign, str(copies)).moved == 0
    fs = fsspec.filesystem("s3")
    fs.rm(source, recursive=True)
    assert ingest(sqlite_database, campaign, str(copies)).moved == COUNT
