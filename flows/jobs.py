"""One long job: a row of `requests`, its heartbeat, its progress and its end. Flows ask for the current job.

The flow runner and the command line run a job inside their own `Services`; a flow that Prefect started from a
deployment makes both for itself (`job_scope`). Knows nothing about what the kinds of jobs do.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection

from flows.services import ActorsGoneError, Services, open_services
from pipeline.storage import campaigns, requests
from pipeline.storage.files import patience
from schemas.campaigns import RequestRecord
from schemas.errors import ClickloopError, DatabaseUnavailableError, LeaseLostError, StateError
from schemas.settings import Settings

logger = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
END_S = 30.0
"""Seconds for which writing a job's end is tried: less than `requests.STALE`, when somebody else takes it up."""
OnProgress = Callable[[dict[str, Any]], None]


class JobStoppedError(Exception):
    """The job was asked to stop between two batches: cancelled, taken over, or its process is ending."""


def owner_name() -> str:
    """Who this process is in `requests.owner`."""
    return f"{socket.gethostname()[:40]}:{os.getpid()}"


class Job:
    """A claimed request while it runs.

    Args:
        services: Database, storage and actors.
        request: The claimed row.
        owner: Who claimed it.
        on_progress: Called with the whole progress whenever it changes.
        stopping: Set when the process is to end: the request goes back into the queue.
    """

    def __init__(
        self,
        services: Services,
        request: RequestRecord,
        owner: str,
        on_progress: OnProgress | None = None,
        stopping: threading.Event | None = None,
    ) -> None:
        self.services = services
        self.request = request
        self.owner = owner
        self._on_progress = on_progress
        self._stopping = stopping or threading.Event()
        self._progress: dict[str, Any] = dict(request.progress)
        self._cancelled = threading.Event()
        self._lost = threading.Event()
        self._ended = threading.Event()
        self._outcome: dict[str, Any] = {}

    def progress(self, **facts: Any) -> None:
        """Say how far the job is; written with the next heartbeat."""
        self._progress = {name: fact for name, fact in self._progress.items() if name != "waiting_for"} | facts
        if self._on_progress:
            self._on_progress(dict(self._progress))

    def done(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """Keep what the work came to, as the request's result."""
        self._outcome = outcome
        return outcome

    def should_stop(self) -> bool:
        """Whether to end between two batches."""
        return self._cancelled.is_set() or self._lost.is_set() or self._stopping.is_set()

    def check(self) -> None:
        """Raise JobStoppedError when the job should end."""
        if self.should_stop():
            raise JobStoppedError

    def check_calls(self) -> None:
        """As `check`, while calls to actors are under way; raise ActorsGoneError when they will not be answered."""
        self.check()
        self.services.check_actors()

    def wait(self, seconds: float) -> None:
        """Sleep, but end early (by JobStoppedError) when the job should stop."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.check()
            time.sleep(0.2)
        self.check()

    def wait_for_storage(self, seconds: float, why: str) -> None:
        """Spend a pause while an object store does not answer, and say so; ends early as `wait` does."""
        self.progress(waiting_for=f"the storage: {why}")
        self.wait(seconds)

    def beat(self) -> None:
        """Write progress and heartbeat, read the cancel flag."""
        try:
            with self.services.database.begin() as conn:
                if requests.heartbeat(conn, self.request.id, self.owner, self._progress):
                    self._cancelled.set()
        except LeaseLostError:
            logger.warning("request %s belongs to somebody else now", self.request.id)
            self._lost.set()
        except ClickloopError as error:
            logger.warning("no heartbeat for request %s: %s", self.request.id, error)

    def _heart(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            self.beat()

    @contextmanager
    def running(self) -> Iterator["Job"]:
        """Heartbeat while the block runs, then write the job's end. Errors of the work go on to the caller."""
        heart = threading.Thread(target=self._heart, name="heartbeat", daemon=True)
        heart.start()
        try:
            token = _CURRENT.set(self)
            try:
                with patience(self.services.settings.storage_wait_s, self.wait_for_storage):
                    yield self
            finally:
                _CURRENT.reset(token)
                self._ended.set()
                heart.join()
        except JobStoppedError:
            self._finish_stopped()
            raise
        except KeyboardInterrupt:
            self._finish("cancelled", None, "interrupted")
            raise
        except Exception as error:
            if _may_pass(error) and self.request.attempt < requests.MAX_ATTEMPTS:
                self._put_back(count_attempt=True)
            elif isinstance(error, ClickloopError):
                self._finish("failed", {"code": error.code}, error.message)
            else:
                self._finish("failed", {"code": "error"}, str(error)[:2000] or type(error).__name__)
            raise
        except BaseException:  # this process is being ended
            self._put_back()
            raise
        self._finish("done", self._outcome, None)

    def _finish_stopped(self) -> None:
        if self._cancelled.is_set():
            self._finish("cancelled", None, None)
        elif not self._lost.is_set():
            self._put_back()

    def _put_back(self, count_attempt: bool = False) -> None:
        self._end(lambda conn: requests.put_back(conn, self.request.id, self.owner, count_attempt=count_attempt))

    def _finish(self, state: str, result: dict[str, Any] | None, error: str | None) -> None:
        self.beat()
        self._end(lambda conn: requests.finish_request(conn, self.request.id, self.owner, state, result, error))

    def _end(self, write: Callable[[Connection], None]) -> None:
        """Write how the job ended; a database that is away for a moment does not cost the work."""
        give_up = time.monotonic() + END_S
        while True:
            try:
                with self.services.database.begin() as conn:
                    write(conn)
                return
            except LeaseLostError:
                logger.warning("request %s belongs to somebody else now, or is over", self.request.id)
                return
            except DatabaseUnavailableError as error:
                if time.monotonic() > give_up:
                    raise
                logger.warning("the end of request %s is not written yet: %s", self.request.id, error)
            time.sleep(1.0)


def _may_pass(error: Exception) -> bool:
    """Whether Ray, its owner or the database failed: they come back, so that the job is worth another try."""
    return type(error).__module__.startswith("ray.") or isinstance(error, ActorsGoneError | DatabaseUnavailableError)


_CURRENT: ContextVar[Job | None] = ContextVar("current_job", default=None)


def current_job() -> Job:
    """The job that this flow or flow step works for."""
    job = _CURRENT.get()
    assert job is not None, "flow steps run inside job_scope"
    return job


@contextmanager
def new_job(
    services: Services,
    kind: str,
    campaign: str | None,
    payload: dict[str, Any],
    *,
    request_id: str | None = None,
    on_progress: OnProgress | None = None,
    stopping: threading.Event | None = None,
) -> Iterator[Job]:
    """Insert a request, claim it for this process and run the block as its work.

    What a dead process left behind is taken up where it was instead: the same job, or a retrain or precompute of the
    campaign. For `on_progress` and `stopping` see `Job`.

    Raises:
        NotFoundError: Unknown campaign.
        StateError: Another retrain or precompute of the campaign is active.
    """
    owner = owner_name()
    stale = timedelta() if services.is_alone else requests.STALE
    with services.database.begin() as conn:
        campaign_id = campaigns.get_campaign(conn, campaign).id if campaign else None
        requests.put_back_silent(conn, stale)  # first, as what died too often is over and keeps nobody from asking anew
        request_id = requests.find_waiting(conn, kind, campaign_id, payload) or request_id or str(uuid4())
        try:
            requests.insert_request(conn, request_id, kind, campaign_id, payload)
        except StateError as error:
            if "request_id" not in error.details:  # the campaign is being purged
                raise
            request_id = str(error.details["request_id"])
        request = requests.claim_request(conn, owner, stale, request_id=request_id)
    if request is None:
        raise StateError(f"A {kind} of this campaign is active already: request {request_id}.", request_id=request_id)
    with Job(services, request, owner, on_progress, stopping).running() as job:
        yield job


@contextmanager
def job_scope(kind: str, campaign: str | None, payload: dict[str, Any]) -> Iterator[Job]:
    """The current job, or (in a flow run started by a deployment) a new one of this flow run."""
    job = _CURRENT.get()
    if job is not None:
        yield job
        return
    from prefect.runtime import flow_run

    with ExitStack() as stack:
        services = stack.enter_context(open_services(Settings()))
        job = stack.enter_context(new_job(services, kind, campaign, payload, request_id=str(flow_run.get_id())))
        yield job
