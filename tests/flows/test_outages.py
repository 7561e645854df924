"""Jobs wait while an object store does not answer, say so, and neither for ever nor when they are to stop."""

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest

from flows import outages
from flows.jobs import Job, JobStoppedError, new_job
from flows.outages import FATAL, Outage
from flows.services import Services
from pipeline.storage import requests
from pipeline.storage.database import Database
from pipeline.storage.files import with_retry
from schemas.campaigns import CampaignRecord
from schemas.errors import BusyError, ForbiddenError
from schemas.settings import Settings
from workers.encoder import failure_of


@pytest.fixture
def services(settings: Settings, database: Database) -> Iterator[Services]:
    made = Services(settings.model_copy(update={"storage_wait_s": 1.0}), database)
    yield made
    made.close()


def failing(count: int) -> Any:
    """A call that fails so often, then gives "done"."""
    left = [OSError("connection refused")] * count

    def call() -> str:
        if left:
            raise left.pop()
        return "done"

    return call


def test_calls_inside_a_job_wait_and_say_so(services: Services, campaign: CampaignRecord) -> None:
    told: list[dict[str, Any]] = []
    with new_job(services, "ingest", "discs", {}, on_progress=told.append) as job:
        job.progress(step="ingest", done=1)
        assert with_retry(fsspec.filesystem("memory"), failing(1)) == "done"
        job.progress(done=2)
    waiting = {"step": "ingest", "done": 1, "waiting_for": "the storage: connection refused"}
    assert told == [{"step": "ingest", "done": 1}, waiting, {"step": "ingest", "done": 2}]
    with pytest.raises(OSError, match="refused"), new_job(services, "ingest", "discs", {}):
        with_retry(fsspec.filesystem("memory"), failing(100))


def test_a_job_that_is_cancelled_stops_waiting(services: Services, campaign: CampaignRecord) -> None:
    def cancel(facts: dict[str, Any]) -> None:
        with services.database.begin() as conn:
            requests.cancel_request(conn, job.request.id)
        job.beat()

    with pytest.raises(JobStoppedError), new_job(services, "ingest", "discs", {}, on_progress=cancel) as job:
        with_retry(fsspec.filesystem("memory"), failing(100))


def test_actors_are_waited_for_while_something_moves(
    services: Services, campaign: CampaignRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    now = [0.0]

    def pause(job: Job, seconds: float, why: str) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(Job, "wait_for_storage", pause)
    monkeypatch.setattr(outages.time, "monotonic", lambda: now[0])
    services.settings = services.settings.model_copy(update={"storage_wait_s": 100.0})
    with new_job(services, "ingest", "discs", {}) as job:
        outage = Outage(job)
        for _ in range(3):
            outage.wait("gone", has_moved=False)
        assert pauses[0] <= 3 <= 2 * pauses[1] and pauses[1] <= 6 <= 2 * pauses[2]
        outage.wait("gone", has_moved=True)
        assert pauses[3] <= 3
        while now[0] - sum(pauses[:3]) < 100:
            outage.wait("gone", has_moved=False)
        with pytest.raises(BusyError, match="gone"):
            outage.wait("gone", has_moved=False)
    assert sum(pauses[3:]) == pytest.approx(100)


def test_a_refusal_is_nobodys_fault_and_final() -> None:
    refused = failure_of("a", PermissionError("The provided token has expired."))
    assert FATAL[refused.code] is ForbiddenError and not refused.is_image_fault and "expired" in refused.reason
    away = failure_of("a", ConnectionError("refused"))
    assert (away.code, away.is_image_fault) == ("busy", False)
