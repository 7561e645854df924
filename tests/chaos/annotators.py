"""Annotators who never give up and remember every acknowledgement, and a crew of them some of whom do vanish."""

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx

from tests.flows.scenes import SIZE

TIMEOUT_S = 30.0
THINK_S = (0.0, 1.0)
TAKE_OVER = 0.4
"""How often somebody asks for an image that is in work."""
PASSING = ("busy", "database_unavailable", "embedding_missing", "out_of_space")
Answer = tuple[dict[str, Any] | None, dict[str, Any] | None]
Object = list[tuple[float, float, bool]]
"""Clicks (x, y, is_positive)."""


class LostError(Exception):
    """The lease is somebody else's."""


class VanishedError(Exception):
    """The annotator is not there any more."""


@dataclass
class Ledger:
    """What all annotators made, and what became of it.

    Attributes:
        made: Ids of events that were sent at least once.
        acked: Event id -> (session id, seq) of its acknowledgement.
        refused: Ids of events that were refused for good: the lease was somebody else's.
        at_work: Ids of images that somebody has, or left behind.
        wrong: What must not happen, in words.
        stopped: Set when nobody is to begin another image.
    """

    made: set[str] = field(default_factory=set)
    acked: dict[str, tuple[str, int]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    at_work: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        """One more of these."""
        with self.lock:
            self.counts[what] += 1


class Annotator(threading.Thread):
    """Labels one image after another: clicks, now and then an undo or a repetition, accept, submit.

    Args:
        url: Of a gateway.
        campaign: Its name.
        ledger: Shared by all.
        name: Who it is.
        seed: Of every choice.
        lease_s: After a pause of this length somebody else may have the image.
    """

    def __init__(self, url: str, campaign: str, ledger: Ledger, name: str, seed: int, lease_s: float) -> None:
        super().__init__(name=name, daemon=True)
        self.ledger, self.rng = ledger, random.Random(seed)
        self._claims, self._lease_s = f"/api/campaigns/{campaign}/claim", lease_s
        headers = {"X-Annotator": self.name}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False)
        self.is_idle = threading.Event()
        """Set from outside: in the midst of a task it falls asleep for longer than its lease."""
        self.is_gone = threading.Event()
        """Set from outside: in the midst of a task it ends without a word."""

    def run(self) -> None:
        """Work until nothing is left or the ledger says stop."""
        while not self.ledger.stopped.is_set():
            claim = self._claim()
            if claim is None or claim["task"] is None:
                time.sleep(0.5)
                continue
            objects = [_drawn(self.rng) for _ in range(self.rng.randint(1, 2))]
            try:
                self._label(claim, objects)
            except VanishedError:
                self.ledger.count("tasks left behind")
                return

    def send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        """(answer, error) of a call, repeated until the server has decided."""
        pause = 0.1
        while True:
            try:
                answer = self._http.request(method, path, json=body)
            except httpx.TransportError:
                self.ledger.count("sent again")
            else:
                if answer.is_success:
                    return answer.json(), None
                error = _error_of(answer)
                if answer.status_code < 500:
                    return None, error
                self.ledger.count(f"told to wait: {error['code']}")
                if error["code"] not in PASSING:
                    self.ledger.wrong.append(f"{path}: {answer.status_code} {error}")
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def _claim(self) -> dict[str, Any] | None:
        """The next task; or now and then that of an image which somebody has, and gets if the lease is over: the queue
        itself gives those out last."""
        wanted = {"claim_id": str(uuid4())}
        taken = sorted(self.ledger.at_work)
        if taken and self.rng.random() < TAKE_OVER:
            wanted["image_id"] = self.rng.choice(taken)
        claim, _ = self.send("POST", self._claims, wanted)
        if claim is not None and "image_id" in wanted:
            self.ledger.count("tasks taken over")
        return claim

    def think(self) -> None:
        """Take a moment; or whatever it was told to do in the midst of a task.

        Raises:
            VanishedError: It ends.
        """
        time.sleep(self.rng.uniform(*THINK_S))
        if self.is_gone.is_set():
            raise VanishedError
        if self.is_idle.is_set():
            self.is_idle.clear()
            time.sleep(1.5 * self._lease_s)

    def _label(self, claim: dict[str, Any], objects: Sequence[Object]) -> None:
        """Do the work; where the lease is lost, put the work back as soon as nobody else holds the image."""
        work, image = _Work(self, claim), claim["image"]["id"]
        self.ledger.at_work.add(image)
        try:
            work.label(objects)
            self.ledger.at_work.discard(image)
        except LostError:
            self.ledger.count("leases lost")
            work.look_back()
            wanted = {"claim_id": str(uuid4()), "image_id": image}
            again, error = self.send("POST", self._claims, wanted)
            if again is None:
                assert error is not None
                self.ledger.count(f"lost work left: {error['code']}")
                return
            self.ledger.count("lost work put back")
            self._label(again, objects)


class Crew:
    """Annotators at work, some of whom vanish; for each of them somebody new comes.

    Args:
        urls: Of the gateways; the annotators are spread over them.
        campaign: Its name.
        ledger: Shared by all.
        count: How many work at a time.
        seed: Of every choice.
        lease_s: See `Annotator`.
    """

    def __init__(
        self, urls: Sequence[str], campaign: str, ledger: Ledger, count: int, seed: int, lease_s: float
    ) -> None:
        self._urls, self._campaign, self.ledger, self._lease_s = urls, campaign, ledger, lease_s
        self._seed, self._number = 1000 * seed, 0
        self._rng = random.Random(seed)
        self._people = [self._hire() for _ in range(count)]

    def send_to_sleep(self) -> bool:
        """Somebody falls asleep beyond the lease."""
        self._rng.choice(self._people).is_idle.set()
        return True

    def vanish(self) -> bool:
        """Somebody ends in the midst of a task; somebody else is there at once."""
        place = self._rng.randrange(len(self._people))
        self._people[place].is_gone.set()
        self._people[place] = self._hire()
        return True

    def join(self) -> None:
        """Tell everybody to stop, and wait until they did."""
        self.ledger.stopped.set()
        for person in self._people:
            person.join(timeout=120)
            if person.is_alive():
                self.ledger.wrong.append(f"{person.name} does not come to an end")

    def _hire(self) -> Annotator:
        self._number += 1
        url, name = self._urls[self._number % len(self._urls)], f"person {self._number}"
        person = Annotator(url, self._campaign, self.ledger, name, self._seed + self._number, self._lease_s)
        person.start()
        return person


def _drawn(rng: random.Random) -> Object:
    """Clicks on one object, the first of them positive."""
    return [
        (SIZE[1] / 2 + rng.uniform(-30, 30), SIZE[0] / 2 + rng.uniform(-20, 20), number == 0 or rng.random() < 0.7)
        for number in range(rng.randint(2, 5))
    ]


def _error_of(answer: httpx.Response) -> dict[str, Any]:
    try:
        return dict(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return {"code": f"HTTP {answer.status_code}", "message": answer.text[:200]}


class _Work:
    """One image under one lease."""

    def __init__(self, annotator: Annotator, claim: dict[str, Any]) -> None:
        self._who, self._rng, self._ledger = annotator, annotator.rng, annotator.ledger
        self._path = f"/api/sessions/{claim['session_id']}"
        self._session = claim["session_id"]
        self._lease_no, self._epoch, self._seq = claim["lease_no"], claim["epoch"], claim["last_seq"]

    def label(self, objects: Sequence[Object]) -> None:
        """Each object, then submit.

        Raises:
            LostError: Somebody else has the image.
            VanishedError: See `Annotator.think`.
        """
        for clicks in objects:
            self._object(clicks)
        self._tell("submit", None)

    def look_back(self) -> None:
        """A session that was lost still shows its annotator every event that was acknowledged."""
        mine = {event for event, (session, _) in list(self._ledger.acked.items()) if session == self._session}
        found, error = self._who.send("GET", f"{self._path}/events")
        shown = {event["event_id"] for event in found["results"]} if found else set()
        if missing := mine - shown:
            self._ledger.wrong.append(f"lost session {self._session} does not show {missing}: {error}")

    def _object(self, clicks: Object) -> None:
        instance = str(uuid4())
        self._tell("open", instance)
        for number, (x, y, is_positive) in enumerate(clicks):
            event = self._tell("click", instance, x=x, y=y, is_positive=is_positive)
            if number and self._rng.random() < 0.15:
                self._tell("undo", instance, event_id=event["event_id"])
        while True:
            shown, error = self._who.send("GET", f"{self._path}/instances/{instance}/mask")
            if shown is None:
                raise self._refused({"kind": "mask"}, error)
            accept = self._event("accept", instance, seq=shown["seq"], mask_sha256=shown["mask_sha256"], category=1)
            answer, error = self._send(accept)
            if error is None:
                self._note(accept, answer)
                return
            if error["code"] != "stale_preview":
                raise self._refused(accept, error)
            self._seq -= 1

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
            answer, error = self._send(event)
            if error is not None:
                raise self._refused(event, error)
            self._note(event, answer)
        return event

    def _send(self, event: dict[str, Any]) -> Answer:
        self._who.think()
        return self._who.send("POST", f"{self._path}/events", {"events": [event], "mask": "none"})

    def _refused(self, event: dict[str, Any], error: dict[str, Any] | None) -> LostError:
        """Note an event that will never be in the log; only a lost lease may be the reason."""
        if error is None or error["code"] != "lease_lost":
            self._ledger.wrong.append(f"{event['kind']} refused: {error}")
        if "event_id" in event:
            self._ledger.refused.add(event["event_id"])
        return LostError()

    def _note(self, event: dict[str, Any], answer: dict[str, Any] | None) -> None:
        for ack in (answer or {}).get("acks", []):
            place = (self._session, int(ack["seq"]))
            if ack["event_id"] != event["event_id"] or ack["seq"] != event["seq"]:
                self._ledger.wrong.append(f"ack of another event: {ack} for {event}")
            with self._ledger.lock:
                known = self._ledger.acked.setdefault(ack["event_id"], place)
            if known != place:
                self._ledger.wrong.append(f"event {ack['event_id']} was acknowledged at {known} and at {place}")
