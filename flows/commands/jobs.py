"""Run a long job: through the running `serve`, or here, under the workspace lock, when none runs."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from flows.client import Client, error_from, find_server
from flows.commands.terminal import Terminal
from schemas.errors import ClickloopError
from schemas.requests import checked
from schemas.settings import Settings


def run_job(
    settings: Settings, terminal: Terminal, kind: str, campaign: str, payload: dict[str, Any]
) -> dict[str, Any]:
    """Do a job of a campaign and wait for it.

    Args:
        settings: Of this command.
        terminal: Where progress is shown.
        kind: ingest, import, propose, precompute, retrain, export or campaign.
        campaign: Name or id.
        payload: The kind's options.

    Returns:
        The job's result.

    Raises:
        ClickloopError: The job failed, or was cancelled, or could not be started.
    """
    server = find_server(settings)
    if server is None:
        return run_here(settings, terminal, kind, campaign, payload)
    with server:
        campaign_id = server.call("GET", f"/api/campaigns/{quote(campaign, safe='')}")["id"]
        return follow(server, terminal, server.start(campaign_id, kind, payload)["id"])


def follow(server: Client, terminal: Terminal, request_id: str) -> dict[str, Any]:
    """Wait for a request of the running server; its result."""
    record = server.follow(request_id, terminal.progress)
    terminal.end_progress()
    if record["state"] == "done":
        return dict(record["result"] or {})
    if record["state"] == "cancelled":
        raise ClickloopError(f"The {record['kind']} was cancelled.")
    error = {"code": (record["result"] or {}).get("code"), "message": record["error"] or "it failed"}
    raise error_from(0, {"error": error})


def run_here(
    settings: Settings, terminal: Terminal, kind: str, campaign: str | None, payload: dict[str, Any]
) -> dict[str, Any]:
    """Do a job in this process, under the workspace lock.

    Ctrl-C and SIGTERM end it where a cancellation would, and once more at once.
    """
    checked(kind, payload)  # what cannot work is told before Prefect starts, which takes seconds
    from flows.prefect_env import configure_prefect
    from flows.services import open_services, reading
    from pipeline.storage.campaigns import get_campaign

    if campaign is not None:  # unknown: say so before anything is started, or made in a wrong folder
        with reading(settings) as database, database.connect() as conn:
            get_campaign(conn, campaign)
    configure_prefect(settings.workspace)
    from flows.jobs import JobStoppedError, new_job
    from flows.runner import run_flow

    stopping, signals = threading.Event(), list[BaseException]()

    def work() -> dict[str, Any]:
        with open_services(settings) as services, new_job(
            services, kind, campaign, payload,
            request_id=str(uuid4()), on_progress=terminal.progress, stopping=stopping,
        ) as job:  # fmt: skip
            try:
                return run_flow(job)
            except JobStoppedError:
                if signals:
                    raise signals[0] from None
                raise

    def stop(signal: BaseException) -> None:
        terminal.note("stopping after the step at work; once more stops at once")
        signals.append(signal)
        stopping.set()

    result = _in_thread(work, stop)
    terminal.end_progress()
    return result


def _in_thread(work: Callable[[], dict[str, Any]], stop: Callable[[BaseException], None]) -> dict[str, Any]:
    """Do the work in a thread and leave the signals to this one, in which Prefect and Ray would each take them.

    Args:
        work: All that needs Ray: what it starts ends with the thread that started it.
        stop: Given what the first signal raised; after the next one the work is not waited for.
    """
    outcome: Future[dict[str, Any]] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    try:
        threading.Thread(target=run, name="job", daemon=True).start()
        return outcome.result()
    except BaseException as raised:
        if outcome.done() and raised is outcome.exception():
            raise
        stop(raised)
        return outcome.result()
