"""Simulated annotators: clients of the public API that know the truth and click like the papers' robot user.

For each object of an image: open, click at the centre of the largest error until the mask is good enough or the clicks
are used up, accept with its category; then submit. Seeded false clicks (wrong sign) and repeated clicks (the same place
again) make them human. They use nothing but HTTP and the WebSocket.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from pipeline.clicks.simulate import next_click
from pipeline.data.coco import CocoSample, read_coco
from pipeline.evaluation.metrics import iou
from pipeline.masks.packed import unpack
from schemas.clicks import Click
from schemas.errors import BadInputError, ClickloopError
from schemas.predictions import MaskReply
from workers.session_client import Answer, Api, RefusedError, SessionClient

logger = logging.getLogger(__name__)

Truth = Mapping[str, Sequence[CocoSample]]
Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Robot:
    """How a simulated annotator clicks.

    Attributes:
        target: IoU at which a mask is accepted.
        max_clicks: Accept after so many clicks whatever the IoU; delete if the mask is then empty.
        false_clicks: Chance in [0, 1] that a click has the wrong sign.
        repeat_clicks: Chance in [0, 1] that a click is made twice.
        seed: Of both.
    """

    target: float = 0.9
    max_clicks: int = 20
    false_clicks: float = 0.0
    repeat_clicks: float = 0.0
    seed: int = 0


@dataclass
class Tally:
    """What one annotator did.

    Attributes:
        noc: Clicks that each object took to reach the target; `max_clicks` where it never did.
        latencies_ms: From sending a click to having its mask.
    """

    images: int = 0
    masks: int = 0
    clicks: int = 0
    not_reached: int = 0
    unmatched_images: int = 0
    noc: list[int] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Count another annotator's work in."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class SimulationReport:
    """What all annotators did together, in `seconds`."""

    annotators: int
    seconds: float
    tally: Tally

    def to_json(self) -> dict[str, Any]:
        """As `clickloop simulate --json` prints it."""
        tally = self.tally
        latencies = np.array(tally.latencies_ms or [0.0])
        return {
            "annotators": self.annotators,
            "images": tally.images,
            "objects": len(tally.noc),
            "masks": tally.masks,
            "clicks": tally.clicks,
            "clicks_per_mask": round(tally.clicks / tally.masks, 3) if tally.masks else None,
            "noc": round(float(np.mean(tally.noc)), 3) if tally.noc else None,
            "nof": tally.not_reached,
            "mean_iou": round(float(np.mean(tally.ious)), 4) if tally.ious else None,
            "latency_ms": {
                "p50": round(float(np.percentile(latencies, 50)), 2),
                "p95": round(float(np.percentile(latencies, 95)), 2),
                "max": round(float(latencies.max()), 2),
                "count": len(tally.latencies_ms),
            },
            "seconds": round(self.seconds, 2),
            "unmatched_images": tally.unmatched_images,
            "errors": tally.errors,
        }


def read_truth(path: Path) -> Truth:
    """Instances of a COCO file by the image's file name (relative, POSIX); the images themselves are not opened."""
    root = path.parent
    objects: dict[str, list[CocoSample]] = {}
    dataset = read_coco(path, root)
    for image in dataset.images:
        objects[image.path.relative_to(root).as_posix()] = []
    for sample in dataset:
        objects[sample.image.path.relative_to(root).as_posix()].append(sample)
    return objects


class SimulatedAnnotator:
    """One simulated person.

    Args:
        base_url: Of the gateway.
        campaign: Id or name.
        truth: Objects by file name.
        robot: How to click.
        name: Annotator's name; also seeds the random choices.
        token: None on loopback.
    """

    def __init__(
        self,
        base_url: str,
        campaign: str,
        truth: Truth,
        robot: Robot,
        name: str = "simulated-1",
        token: str | None = None,
    ) -> None:
        self._api = Api(base_url, name, token)
        self._campaign = quote(campaign, safe="")
        self._truth = truth
        self._by_base_name = _by_base_name(truth)
        self._robot = robot
        self._random = np.random.default_rng([robot.seed, *name.encode()])
        self.tally = Tally()

    def run(self, may_claim: Callable[[], bool] = lambda: True) -> Tally:
        """Claim and label until nothing is left, or `may_claim` says stop."""
        record = self._api.call("GET", f"/api/campaigns/{self._campaign}")
        numbers = {category["name"]: int(category["number"]) for category in record["categories"]}
        try:
            while may_claim():
                claim = self._api.call("POST", f"/api/campaigns/{self._campaign}/claim", {"claim_id": str(uuid4())})
                if claim["task"] is None:
                    break
                self._label(claim, numbers)
        finally:
            self._api.close()
        return self.tally

    def _label(self, claim: dict[str, Any], numbers: Mapping[str, int]) -> None:
        session = SessionClient(self._api, claim)
        try:
            objects = self._objects(claim["image"]["file_name"])
            if objects is None:
                self.tally.unmatched_images += 1
                session.send("skip", reason="no truth for this image")
                return
            size = (claim["image"]["height"], claim["image"]["width"])
            for sample in objects:
                self._segment(session, sample, size, numbers.get(sample.category))
            session.send("submit")
            self.tally.images += 1
        except RefusedError as error:
            if error.refusal != "lease_lost":
                raise
            logger.warning("lease lost session=%s", session.session_id)
        finally:
            session.close()

    def _objects(self, file_name: str) -> Sequence[CocoSample] | None:
        """By the name below the campaign's source, else by its last part where that is unambiguous."""
        path = file_name if file_name in self._truth else self._by_base_name.get(file_name.rsplit("/", 1)[-1], "")
        return self._truth.get(path)

    def _segment(self, session: SessionClient, sample: CocoSample, size: tuple[int, int], category: int | None) -> None:
        gt = sample.read_gt()
        if gt.shape != size:
            raise BadInputError(
                f"The truth of {sample.image.path.name} has size {gt.shape}, its image {size} (height, width)."
            )
        instance, robot = str(uuid4()), self._robot
        answer = session.send("open", instance)
        mask, clicked = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
        quality, clicks, reached = 0.0, 0, robot.max_clicks
        while clicks < robot.max_clicks and quality < robot.target:
            click = next_click(gt, mask, clicked)
            if click is None:
                break
            for made in self._human(click):
                answer = session.send("click", instance, x=made.x, y=made.y, is_positive=made.is_positive)
                clicked[int(made.y), int(made.x)] = True
                clicks += 1
                self.tally.clicks += 1
                self.tally.latencies_ms.append(answer.latency_ms)
            mask = _mask_of(answer)
            quality = iou(gt, mask)
            if quality >= robot.target:
                reached = min(clicks, robot.max_clicks)
        self.tally.noc.append(reached)
        self.tally.not_reached += quality < robot.target
        self.tally.ious.append(quality)
        if mask.any():
            self._accept(session, instance, answer, category)
        else:
            session.send("delete", instance)

    def _human(self, click: Click) -> Iterator[Click]:
        """The click as a hurried person makes it."""
        if self._random.random() < self._robot.false_clicks:
            click = Click(click.x, click.y, not click.is_positive)
        yield click
        if self._random.random() < self._robot.repeat_clicks:
            yield click

    def _accept(self, session: SessionClient, instance: str, answer: Answer, category: int | None) -> None:
        assert answer.mask is not None
        digest = answer.mask.mask_sha256
        try:
            session.send("accept", instance, seq=answer.seq, mask_sha256=digest, category=category)
        except RefusedError as error:
            if error.refusal != "stale_preview":
                raise
            shown = MaskReply.model_validate(error.details["mask"])
            session.send("accept", instance, seq=answer.seq, mask_sha256=shown.mask_sha256, category=category)
        self.tally.masks += 1


def run_annotators(
    base_url: str,
    campaign: str,
    truth: Path,
    *,
    annotators: int = 1,
    target: float = 0.9,
    max_clicks: int = 20,
    false_clicks: float = 0.0,
    repeat_clicks: float = 0.0,
    seed: int = 0,
    limit: int | None = None,
    token: str | None = None,
    progress: Progress | None = None,
) -> SimulationReport:
    """Let several simulated annotators label a campaign at once, each in a thread.

    Args:
        truth: COCO file; objects are matched by file name.
        limit: Stop after so many images; None: when nothing is left.
        progress: Called about twice a second with {"images", "masks", "clicks"}.

    Raises:
        BadAnnotationsError: The truth is malformed.
    """
    known = read_truth(truth)
    robot = Robot(target, max_clicks, false_clicks, repeat_clicks, seed)
    quota = _Quota(limit)
    people = [
        SimulatedAnnotator(base_url, campaign, known, robot, f"simulated-{number}", token)
        for number in range(1, annotators + 1)
    ]
    started = time.perf_counter()
    threads = [threading.Thread(target=_run, args=(person, quota), daemon=True) for person in people]
    for thread in threads:
        thread.start()
    while alive := [thread for thread in threads if thread.is_alive()]:
        if progress is not None:
            progress({name: sum(getattr(p.tally, name) for p in people) for name in ("images", "masks", "clicks")})
        alive[0].join(0.5)
    total = Tally()
    for person in people:
        total.add(person.tally)
    return SimulationReport(annotators, time.perf_counter() - started, total)


class _Quota:
    """How many more images may be claimed, by all together."""

    def __init__(self, limit: int | None) -> None:
        self._left = limit
        self._lock = threading.Lock()

    def take(self) -> bool:
        with self._lock:
            if self._left is None:
                return True
            self._left -= 1
            return self._left >= 0


def _run(person: SimulatedAnnotator, quota: _Quota) -> None:
    try:
        person.run(quota.take)
    except ClickloopError as error:
        person.tally.errors.append(error.message)
    except Exception as error:
        logger.exception("a simulated annotator failed")
        person.tally.errors.append(f"{type(error).__name__}: {error}")


def _mask_of(answer: Answer) -> NDArray[np.bool_]:
    assert answer.mask is not None and answer.mask.bits is not None
    return unpack(answer.mask.bits)


def _by_base_name(truth: Truth) -> dict[str, str]:
    names: dict[str, list[str]] = {}
    for path in truth:
        names.setdefault(path.rsplit("/", 1)[-1], []).append(path)
    return {name: paths[0] for name, paths in names.items() if len(paths) == 1}
