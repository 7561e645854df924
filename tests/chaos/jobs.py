"""The jobs of a campaign that never rests: new pictures come, are ingested, encoded, trained on and exported."""

import threading
import time
from typing import Any
from uuid import uuid4

from flows.client import FINISHED, Client
from schemas.errors import BusyError
from tests.chaos.annotators import Ledger
from tests.chaos.stacks import Stack

PICTURES = 20
"""That come with each round."""
STEPS = 100
"""Of a training."""
ATTEMPTS = 10
POLL_S = 0.5


class Jobs(threading.Thread):
    """Asks for one job after the other, through the public API; one that fails is asked for again and goes on.

    Args:
        url: Of a gateway.
        campaign: Its name.
        stack: Where new pictures go, and exports.
        ledger: Counts the jobs.

    Attributes:
        exports: URLs of finished ones.
        are_under_way: Set when the first is done, for which Prefect has to start.
    """

    def __init__(self, url: str, campaign: str, stack: Stack, ledger: Ledger) -> None:
        super().__init__(name="jobs", daemon=True)
        self._api, self._stack, self._ledger = Client(url), stack, ledger
        self._requests = f"/api/campaigns/{campaign}/requests"
        self._stopped = threading.Event()
        self._rounds = 0
        self.exports: list[str] = []
        self.are_under_way = threading.Event()

    def run(self) -> None:
        """Round after round until told to stop."""
        try:
            while not self._stopped.is_set():
                self._rounds += 1
                self._stack.add_pictures(PICTURES, seed=self._rounds)
                self.take_in()
                self._do("retrain", {"steps": STEPS})
                self.export()
        except Exception as error:
            self._ledger.wrong.append(f"the jobs ended: {error!r}")
            raise

    def stop(self) -> None:
        """Finish the round under way and end."""
        self._stopped.set()
        self.join()

    def take_in(self) -> None:
        """Register new pictures, and again what was quarantined; encode what is missing."""
        self._do("ingest", {})
        self.are_under_way.set()
        self._do("precompute", {})

    def export(self) -> None:
        """Write what is accepted so far to a place of its own."""
        to = f"{self._stack.exports}/{len(self.exports) + 1}"
        self._do("export", {"to": to})
        self.exports.append(to)

    def _do(self, kind: str, payload: dict[str, Any]) -> None:
        for _ in range(ATTEMPTS):
            record = self._follow({"id": str(uuid4()), "kind": kind, "payload": payload})
            self._ledger.count(f"job {kind}: {record['state']}")
            if record["state"] == "done":
                return
            self._ledger.count(f"job {kind}: {record['error']}"[:150])
            time.sleep(1)
        self._ledger.wrong.append(f"{kind} failed {ATTEMPTS} times: {record['error']}")

    def _follow(self, new: dict[str, Any]) -> dict[str, Any]:
        """Ask for a job and wait for its end."""
        record = self._call("POST", self._requests, new)
        while record["state"] not in FINISHED:
            time.sleep(POLL_S)
            record = self._call("GET", f"/api/requests/{new['id']}")
        return record

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        while True:
            try:
                return dict(self._api.call(method, path, body))
            except BusyError:
                self._ledger.count("job asked for again")
