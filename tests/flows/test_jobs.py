"""A job's row tells the truth about its work, however the work ends."""

import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import ray

from flows.jobs import Job, JobStoppedError, current_job, job_scope, new_job
from flows.services import ActorsGoneError, Services
from pipeline.storage import requests
from pipeline.storage.database import Database
from schemas.campaigns import CampaignRecord, RequestRecord
from schemas.errors import BadInputError, DatabaseUnavailableError, NotFoundError, StateError
from schemas.settings import Settings
from workers.cluster import info_path


@pytest.fixture
def services(settings: Settings, database: Database) -> Iterator[Services]:
    made = Services(settings, database)
    yield made
    made.close()


def record_of(database: Database, request_id: str) -> RequestRecord:
    with database.connect() as conn:
        return requests.get_request(conn, request_id)


def claimed(services: Services, campaign: CampaignRecord, owner: str = "me") -> RequestRecord:
    """A precompute request, running under `owner`."""
    with services.database.begin() as conn:
        requests.insert_request(conn, "r", "precompute", campaign.id, {})
        request = requests.claim_request(conn, owner)
    assert request is not None
    return request


def test_a_finished_job_keeps_its_result_and_last_progress(services: Services, campaign: CampaignRecord) -> None:
    told: list[dict[str, Any]] = []
    with new_job(services, "ingest", "discs", {"images": None}, on_progress=told.append) as job:
        assert current_job() is job
        with job_scope("ingest", "discs", {}) as inner:
            assert inner is job  # a flow called by a flow works for the same job
        job.progress(step="a", done=1)
        job.progress(done=2)
        job.done({"n": 5})
    record = record_of(services.database, job.request.id)
    assert (record.state, record.result, record.progress) == ("done", {"n": 5}, {"step": "a", "done": 2})
    assert told == [{"step": "a", "done": 1}, {"step": "a", "done": 2}]


def test_a_failed_job_says_why(services: Services, campaign: CampaignRecord) -> None:
    with pytest.raises(BadInputError), new_job(services, "ingest", "discs", {}) as job:
        raise BadInputError("There is nothing at 'x'.")
    record = record_of(services.database, job.request.id)
    assert (record.state, record.error, record.result) == ("failed", "There is nothing at 'x'.", {"code": "bad_input"})


def test_an_unknown_campaign_leaves_no_request(services: Services) -> None:
    with pytest.raises(NotFoundError), new_job(services, "ingest", "none", {}):
        pytest.fail("it must not begin")
    with services.database.connect() as conn:
        assert requests.list_requests(conn) == []


def test_cancel_is_seen_between_batches(services: Services, campaign: CampaignRecord) -> None:
    def work(job: Job) -> None:
        job.check()
        with services.database.begin() as conn:
            requests.cancel_request(conn, job.request.id)
        job.beat()
        job.check()

    with pytest.raises(JobStoppedError), new_job(services, "ingest", "discs", {}) as job:
        work(job)
    assert record_of(services.database, job.request.id).state == "cancelled"


def test_a_job_whose_process_is_ending_waits_again_and_the_attempt_does_not_count(
    services: Services, campaign: CampaignRecord
) -> None:
    stopping = threading.Event()
    stopping.set()
    job = Job(services, claimed(services, campaign), "me", stopping=stopping)
    with pytest.raises(JobStoppedError), job.running():
        job.wait(10)
    record = record_of(services.database, "r")
    assert (record.state, record.attempt) == ("queued", 0)


def test_a_job_that_somebody_else_took_is_left_alone(services: Services, campaign: CampaignRecord) -> None:
    def work(job: Job) -> None:
        with services.database.begin() as conn:
            assert requests.claim_request(conn, "other", stale=timedelta(seconds=-1)) is not None
        job.beat()
        job.check()

    with pytest.raises(JobStoppedError), Job(services, claimed(services, campaign), "me").running() as job:
        work(job)
    record = record_of(services.database, "r")
    assert (record.state, record.attempt) == ("running", 2)


def test_what_a_dead_command_left_is_taken_up_by_the_next_one(services: Services, campaign: CampaignRecord) -> None:
    claimed(services, campaign, owner="dead")
    with new_job(services, "precompute", "discs", {}) as job:
        assert (job.request.id, job.request.attempt) == ("r", 2)
    assert record_of(services.database, "r").state == "done"


def test_the_same_command_again_is_the_same_job(services: Services, campaign: CampaignRecord) -> None:
    """Else the one that died would wait for a `serve`, which does it once more, and keep a purge from beginning."""
    asked = {"images": "there"}
    with services.database.begin() as conn:
        requests.insert_request(conn, "r", "ingest", campaign.id, asked)
        assert requests.claim_request(conn, "dead") is not None
    with new_job(services, "ingest", "discs", {"images": "elsewhere"}) as other:
        assert other.request.id != "r"
    with new_job(services, "ingest", "discs", asked) as job:
        assert (job.request.id, job.request.attempt) == ("r", 2)
    with new_job(services, "ingest", "discs", asked) as job:
        assert job.request.id != "r"
    with services.database.connect() as conn:
        assert requests.list_requests(conn, active=True) == []


def test_what_died_three_times_does_not_keep_the_next_command_from_beginning(
    services: Services, campaign: CampaignRecord
) -> None:
    claimed(services, campaign, owner="dead")
    for _ in range(2):
        with services.database.begin() as conn:
            assert requests.claim_request(conn, "dead", stale=timedelta(seconds=-1)) is not None
    with new_job(services, "precompute", "discs", {}) as job:
        assert job.request.id != "r"
    assert record_of(services.database, "r").error == "Its runner died 3 times."


def test_beside_serve_a_running_precompute_is_not_taken(
    settings: Settings, database: Database, services: Services, campaign: CampaignRecord
) -> None:
    claimed(services, campaign, owner="runner")
    beside = Services(settings, database, beside_serve=True)
    with pytest.raises(StateError, match="active already"), new_job(beside, "precompute", "discs", {}):
        pytest.fail("it must not begin")
    assert record_of(database, "r").state == "running"


def test_a_job_that_the_database_left_is_put_back_and_one_that_was_done_is_noted_when_it_returns(
    services: Services, campaign: CampaignRecord
) -> None:
    with pytest.raises(DatabaseUnavailableError), Job(services, claimed(services, campaign), "me").running():
        raise DatabaseUnavailableError("The database is not available: connection refused. Try again.")
    record = record_of(services.database, "r")
    assert (record.state, record.attempt, record.error) == ("queued", 1, None)

    with services.database.begin() as conn:
        again = requests.claim_request(conn, "me")
    assert again is not None
    impatient = Services(services.settings, Database(services.database.url, busy_timeout_s=0.1))
    locked, done = threading.Event(), threading.Event()

    def lock() -> None:
        with services.database.begin():
            locked.set()
            done.wait(10)
            time.sleep(0.5)

    locker = threading.Thread(target=lock)
    with Job(impatient, again, "me").running() as job:
        job.done({"n": 5})
        locker.start()
        locked.wait(10)
        done.set()
    locker.join()
    impatient.database.close()
    record = record_of(services.database, "r")
    assert (record.state, record.result) == ("done", {"n": 5})


@pytest.mark.ray
def test_a_job_whose_actors_lost_their_owner_is_put_back(
    ray_workers: Settings, services: Services, campaign: CampaignRecord
) -> None:
    """The owner was killed and its successor is there: what Ray was asked before is never answered."""
    attached = Services(ray_workers, services.database, beside_serve=True)
    where, known = info_path(ray_workers.workspace), info_path(ray_workers.workspace).read_text()

    def ask_and_lose(job: Job) -> None:
        job.services.pool(job.check)
        job.check_calls()
        where.write_text(json.dumps(json.loads(known) | {"generation": "the next one"}))
        job.check_calls()

    try:
        job = Job(attached, claimed(services, campaign), "me")
        with pytest.raises(ActorsGoneError), job.running():
            ask_and_lose(job)
    finally:
        where.write_text(known)
        ray.shutdown()
    record = record_of(services.database, "r")
    assert (record.state, record.attempt) == ("queued", 1)
