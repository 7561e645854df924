"""Annotators who never give up and remember every acknowledgement."""

import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx

from tests.flows.scenes import SIZE

TIMEOUT_S = 30.0
PASSING = ("busy", "database_unavailable", "embedding_missing", "internal")


class LostError(Exception):
    """The lease is somebody else's."""


@dataclass
class Ledger:
    """What all annotators made, and what was acknowledged.

    Attributes:
        made: Ids of events that were sent at least once.
        acked: Event id -> (session id, seq) of its acknowledgement.
        wrong: What must not happen, in words.
        stopped: Set when nobody is to begin another image.
    """

    made: set[str] = field(default_factory=set)
    acked: dict[str, tuple[str, int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        """One more of these."""
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1


class Annotator(threading.Thread):
    """Labels one image after another: clicks, now and then an undo or a repetition, accept, submit.

    Args:
        url: Of the gateway.
        campaign: Its name.
        ledger: Shared by all.
        name: Who it is.
        seed: Of every choice.
        lease_s: After a pause of this length somebody else may have the image.
    """

    def __init__(self, url: str, campaign: str, ledger: Ledger, name: str, seed: int, lease_s: float) -> None:
        super().__init__(name=name, daemon=True)
        self.url, self.ledger, self.rng = url, ledger, random.Random(seed)
        self._campaign, self._lease_s = campaign, lease_s
        self._http = self._client()
        self.is_cut = threading.Event()
        """Set from outside: its connections break."""
        self.is_idle = threading.Event()
        """Set from outside: it falls asleep for longer than its lease."""

    def run(self) -> None:
        """Work until nothing is left or the ledger says stop."""
        while not self.ledger.stopped.is_set():
            claim_id = str(uuid4())
            claim, _ = self.send(f"/api/campaigns/{self._campaign}/claim", {"claim_id": claim_id})
            if claim is None or claim["task"] is None:
                time.sleep(0.5)
                continue
            try:
                _Work(self, claim).label()
            except LostError:
                self.ledger.count("leases lost")

    def _client(self) -> httpx.Client:
        headers = {"X-Annotator": self.name}
        return httpx.Client(base_url=self.url, headers=headers, timeout=TIMEOUT_S, trust_env=False)

    def send(self, path: str, body: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """(answer, error) of a POST, repeated until the server has decided."""
        pause = 0.1
        while True:
            if self.is_cut.is_set():
                self.is_cut.clear()
                self._http.close()
                self._http = self._client()
            if self.is_idle.is_set():
                self.is_idle.clear()
                time.sleep(1.5 * self._lease_s)
            try:
                answer = self._http.post(path, json=body)
            except (httpx.TransportError, RuntimeError):
                self.ledger.count("sent again")
            else:
                if answer.is_success:
                    return answer.json(), None
                error = answer.json()["error"]
                if answer.status_code < 500 and error["code"] not in PASSING:
                    return None, error
                self.ledger.count(f"told to wait: {error['code']}")
            time.sleep(pause)
            pause = min(2 * pause, 2.0)


class _Work:
    """One image under one lease."""

    def __init__(self, annotator: Annotator, claim: dict[str, Any]) -> None:
        self._who, self._rng, self._ledger = annotator, annotator.rng, annotator.ledger
        self._session = claim["session_id"]
        self._lease_no, self._epoch, self._seq = claim["lease_no"], claim["epoch"], claim["last_seq"]

    def label(self) -> None:
        """One or two objects, then submit."""
        for _ in range(self._rng.randint(1, 2)):
            self._object()
        self._tell("submit", None)

    def _object(self) -> None:
        instance = str(uuid4())
        self._tell("open", instance)
        for number in range(self._rng.randint(2, 5)):
            x = SIZE[1] / 2 + self._rng.uniform(-30, 30)
            y = SIZE[0] / 2 + self._rng.uniform(-20, 20)
            event = self._tell("click", instance, x=x, y=y, is_positive=number == 0 or self._rng.random() < 0.7)
            if number and self._rng.random() < 0.15:
                self._tell("undo", instance, event_id=event["event_id"])
        while True:
            path = f"/api/sessions/{self._session}/events"
            digest = self._mask_digest(instance)
            accept = self._event("accept", instance, seq=digest[0], mask_sha256=digest[1], category=1)
            answer, error = self._who.send(path, {"events": [accept], "mask": "none"})
            if error is None:
                self._note(accept, answer)
                return
            self._refused(error)
            if error["code"] != "stale_preview":
                self._ledger.wrong.append(f"accept refused: {error}")
                raise LostError
            self._seq -= 1

    def _mask_digest(self, instance: str) -> tuple[int, str]:
        while True:
            try:
                answer = httpx.get(
                    f"{self._who.url}/api/sessions/{self._session}/instances/{instance}/mask",
                    headers={"X-Annotator": self._who.name}, timeout=TIMEOUT_S, trust_env=False,
                )  # fmt: skip
                if answer.is_success:
                    found = answer.json()
                    return found["seq"], found["mask_sha256"]
            except httpx.TransportError:
                pass
            time.sleep(0.2)

    def _event(self, kind: str, instance: str | None, **payload: Any) -> dict[str, Any]:
        self._seq += 1
        event = {
            "event_id": str(uuid4()), "seq": self._seq, "session_epoch": self._epoch, "lease_no": self._lease_no,
            "instance_id": instance, "kind": kind, "payload": payload,
        }  # fmt: skip
        with self._ledger.lock:
            self._ledger.made.add(str(event["event_id"]))
        return event

    def _tell(self, kind: str, instance: str | None, **payload: Any) -> dict[str, Any]:
        event = self._event(kind, instance, **payload)
        times = 2 if self._rng.random() < 0.1 else 1  # now and then an acknowledged event is sent again
        for _ in range(times):
            path = f"/api/sessions/{self._session}/events"
            answer, error = self._who.send(path, {"events": [event], "mask": "none"})
            if error is not None:
                self._refused(error)
                if kind == "submit" and error["code"] == "state":
                    return event
                self._ledger.wrong.append(f"{kind} refused: {error}")
                raise LostError
            self._note(event, answer)
        return event

    def _refused(self, error: dict[str, Any]) -> None:
        if error["code"] == "lease_lost":
            raise LostError

    def _note(self, event: dict[str, Any], answer: dict[str, Any] | None) -> None:
        for ack in (answer or {}).get("acks", []):
            place = (self._session, int(ack["seq"]))
            if ack["event_id"] != event["event_id"] or ack["seq"] != event["seq"]:
                self._ledger.wrong.append(f"ack of another event: {ack} for {event}")
            with self._ledger.lock:
                known = self._ledger.acked.setdefault(ack["event_id"], place)
            if known != place:
                self._ledger.wrong.append(f"event {ack['event_id']} was acknowledged at {known} and at {place}")
