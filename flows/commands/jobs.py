"""Run a long job: through the running `serve`, or here, under the workspace lock, when none runs."""

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
    """Do a job in this process, under the workspace lock."""
    checked(kind, payload)  # what cannot work is told before Prefect starts, which takes seconds
    from flows.prefect_env import configure_prefect

    configure_prefect(settings.workspace)
    from flows.jobs import new_job
    from flows.runner import run_flow
    from flows.services import open_services

    with open_services(settings) as services:
        if campaign is not None:
            services.campaign(campaign)  # unknown: say so before Ray and Prefect start
        with new_job(services, kind, campaign, payload, request_id=str(uuid4()), on_progress=terminal.progress) as job:
            result = run_flow(job)
    terminal.end_progress()
    return result
