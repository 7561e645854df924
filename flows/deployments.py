"""The flows as Prefect deployments: `python -m flows.deployments`, with PREFECT_API_URL naming the server.

Without --pool this process serves them: it runs what the server schedules or a person starts in Prefect's page. With
it they are registered for the workers of that pool, which need clickloop installed and the same settings. The flow
runner goes on claiming the requests that come over HTTP and records its flow runs on the same server. Each flow run is
a row of `requests`, so that one retrain or precompute of a campaign is active at most, wherever it came from.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from schemas.settings import Settings

START_S = 60.0
"""For so long a Prefect server that does not answer yet is waited for."""


def deployments(pool: str | None = None, trigger_every: timedelta = timedelta(minutes=1)) -> list[Any]:
    """One deployment per kind of job, started by hand or by request, and `triggers`, which runs by the clock.

    Args:
        pool: Work pool that runs them; None: the process that serves them.
        trigger_every: Between two looks at the campaigns' triggers.
    """
    from prefect.deployments.runner import EntrypointType

    from flows.campaign import triggers_flow
    from flows.kinds import all_flows

    shared: dict[str, Any] = {
        "name": "default",
        "tags": ["clickloop"],
        "work_pool_name": pool,
        "entrypoint_type": EntrypointType.MODULE_PATH,
    }
    by_clock: Any = triggers_flow
    return [
        *(flow.to_deployment(**shared) for flow in all_flows()),
        by_clock.to_deployment(**shared, interval=trigger_every),
    ]


def _answers(url: str) -> bool:
    """Whether a server is there; one that is only starting is waited for."""
    import httpx

    give_up = time.monotonic() + START_S
    while True:
        try:
            if httpx.get(f"{url.rstrip('/')}/health", timeout=10.0).status_code < 500:  # a proxy says 502 meanwhile
                return True
        except (httpx.HTTPError, httpx.InvalidURL):
            pass
        if time.monotonic() > give_up:
            return False
        time.sleep(1.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Register the deployments, and serve them unless a work pool does."""
    parser = argparse.ArgumentParser(prog="python -m flows.deployments", description="Serve the flows to Prefect.")
    parser.add_argument("--pool", metavar="NAME", help="register for this work pool instead of serving")
    parser.add_argument("--limit", type=int, default=2, metavar="N", help="flow runs at once when serving (2)")
    args = parser.parse_args(argv)
    if not os.environ.get("PREFECT_API_URL"):
        sys.stderr.write(
            "clickloop: set PREFECT_API_URL to the address of a Prefect server, such as http://127.0.0.1:4200/api. "
            "Without one, `clickloop serve` runs the flows itself.\n"
        )
        return 2
    from flows.prefect_env import configure_prefect

    configure_prefect(Settings().workspace)
    url = os.environ["PREFECT_API_URL"]
    if not _answers(url):
        sys.stderr.write(f"clickloop: no Prefect server answers at {url}. Check PREFECT_API_URL, or start it.\n")
        return 1
    import prefect

    if args.pool is None:
        prefect.serve(*deployments(), limit=args.limit)
    else:
        for deployment in deployments(args.pool):
            deployment.apply()
    return 0


if __name__ == "__main__":
    sys.exit(main())
