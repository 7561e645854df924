"""The flow runner: claims requests and runs their flows, one at a time, and inserts requests when a trigger fires.

`python -m flows.runner` is a child of `serve`: it attaches to the actors, and puts its request back when it is ended.
Knows nothing about what the flows do.
"""

import logging
import signal
import threading
import time
from typing import Any

from flows.jobs import Job, JobStoppedError, owner_name
from flows.services import Services, attached_services
from flows.triggers import fire_triggers
from pipeline.storage import requests
from pipeline.storage.lock import succession
from schemas.errors import ClickloopError, DatabaseUnavailableError
from schemas.logs import end_now, log_plainly, tell_no_start
from schemas.requests import checked
from schemas.settings import Settings

logger = logging.getLogger("flows.runner")

POLL_S = 0.5
PAUSE_S = 5.0
"""Seconds times attempt before a job that the database left is begun again."""
SWEEP_S = 10.0
"""Seconds between two claims when nothing waits."""
TRIGGER_S = 10.0
"""Seconds between two looks at the campaigns' triggers."""


def run_flow(job: Job) -> dict[str, Any]:
    """Run the flow of a job's request, inside `job.running()`; its result.

    Raises:
        BadInputError: No such kind, or its payload is not one.
    """
    arguments = checked(job.request.kind, job.request.payload)
    from flows.prefect_env import start_ephemeral_server, without_heartbeats

    start_ephemeral_server()
    from flows.kinds import flow_of

    with without_heartbeats():
        result: dict[str, Any] = flow_of(job.request.kind)(job.request.campaign_id, **arguments)
    return result


class Runner:
    """Claims and runs requests until told to stop.

    Args:
        services: Database, storage, actors.
        dead: A runner that is known to be dead, by its owner name: its requests need not be waited for.
    """

    def __init__(self, services: Services, dead: str | None = None) -> None:
        self.services = services
        self._dead = dead
        self.stopping = threading.Event()
        self._triggers_at = 0.0
        self._claimed_at = time.monotonic()

    def run(self) -> None:
        """Work until `stopping` is set."""
        while not self.stopping.is_set():
            try:
                self._inherit()
                busy = self.run_one()
                self._fire()
            except DatabaseUnavailableError as error:
                logger.warning("the database is not available: %s", error)
                busy = False
            if not busy:
                self.stopping.wait(POLL_S)

    def run_one(self) -> bool:
        """Claim the next request and run it to its end; False when there is none."""
        owner = owner_name()
        if not self._is_worth_a_claim():
            return False
        with self.services.database.begin() as conn:
            request = requests.claim_request(conn, owner)
        if request is None:
            return False
        logger.info("request %s begins kind=%s campaign_id=%s", request.id, request.kind, request.campaign_id)
        try:
            with Job(self.services, request, owner, stopping=self.stopping).running() as job:
                run_flow(job)
        except JobStoppedError:
            logger.info("request %s stopped", request.id)
        except DatabaseUnavailableError as error:
            logger.warning("request %s waits for the database: %s", request.id, error)
            self.stopping.wait(PAUSE_S * request.attempt)  # a full disk takes a claim, and nothing after it
        except ClickloopError as error:
            logger.warning("request %s failed: %s", request.id, error)
        except Exception:  # a bug in one kind of job must not end the others
            logger.exception("request %s failed", request.id)
        else:
            logger.info("request %s done", request.id)
        return True

    def _inherit(self) -> None:
        """Put back what the dead runner left, once."""
        if self._dead is not None:
            with self.services.database.begin() as conn:
                requests.put_back_of(conn, self._dead)
            self._dead = None

    def _is_worth_a_claim(self) -> bool:
        """A look first, as a claim is a write, which the gateway's writer would wait for; but one now and then, which
        also puts back what dead owners left."""
        if time.monotonic() - self._claimed_at >= SWEEP_S:
            self._claimed_at = time.monotonic()
            return True
        with self.services.database.connect() as conn:
            return bool(requests.list_requests(conn, state="queued", limit=1))

    def _fire(self) -> None:
        if time.monotonic() - self._triggers_at >= TRIGGER_S:
            fire_triggers(self.services.database)
            self._triggers_at = time.monotonic()


def main() -> int:
    """Run as a child of the supervisor, until SIGTERM.

    Returns:
        0 after SIGTERM; 2 when the settings or the database's version do not allow a start; 1 when the database does
        not answer, after which another start may do.
    """
    from flows.prefect_env import configure_prefect

    settings = Settings()
    log_plainly(logging.WARNING, "%(asctime)s %(levelname)s %(name)s %(message)s")
    for package in ("pipeline", "workers", "flows"):
        logging.getLogger(package).setLevel(settings.log_level.upper())
    try:
        configure_prefect(settings.workspace)
        _work(settings)
    except ClickloopError as error:
        return tell_no_start(logger, error)
    return 0


def _work(settings: Settings) -> None:
    """Open the database and run a runner until SIGTERM."""
    with attached_services(settings) as services, succession(settings.workspace, owner_name()) as dead:
        runner = Runner(services, dead)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: runner.stopping.set())
        # In the main thread Prefect would turn SIGTERM into an exception in the middle of a batch.
        work = threading.Thread(target=runner.run, name="runner")
        work.start()
        while work.is_alive():
            work.join(0.5)


if __name__ == "__main__":
    end_now(main())  # the job is put back: Prefect and Ray would take seconds to end in order
