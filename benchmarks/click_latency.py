"""A click through a real gateway, its log and a Ray refiner, as an annotator waits for it, on a 1080p photograph.

    python benchmarks/click_latency.py [--model fdrn-compact] [--instances 6] [--clicks 20] [--misses 12]

Hit: the refiner holds embedding and image. Disk hit: it holds neither, the embedding is stored (more images than fit
into its memory are clicked in turn). Miss: the stored embedding is deleted, too, so that the click waits for an
encoder; the image's first click, sent without asking for a mask on `open`.

With log / without: a second gateway on the same database and the same refiner, which is the product's but for one
method: it acknowledges an event without committing it, and drops the result row. Both have a session open, and one
click is made through each in turn, so that both see the same load. Everything else of the log's cost (checks, hashes,
frames) is in both figures.

Milliseconds are wall clock at the client: from sending the frame to having the ack, or the mask. "rest" is what the
refiner does not account for: WebSocket, gateway, actor hop, waiting for a core; on a miss, the encoder.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import httpx
import numpy as np
from numpy.typing import NDArray
from websockets.sync.client import connect

from flows.temporary_server import serving
from pipeline.campaigns import CampaignSpec, create_campaign
from pipeline.clicks.simulate import next_click
from pipeline.data.coco import read_coco
from pipeline.ingest.scan import ingest
from pipeline.masks.packed import unpack
from pipeline.storage.click_log import Appended
from pipeline.storage.database import open_database
from schemas.clicks import Click
from schemas.events import EventIn
from schemas.masks import PackedMask
from schemas.predictions import MaskReply
from schemas.settings import Settings
from workers.api.intake import Intake, Plan
from workers.api.live import LiveSession

SIZE = (1080, 1920)
COLD_IMAGES = 8
CACHE_MB = 32
"""Of the refiner: two decoded images of this size and five embeddings, fewer than there are cold images."""
STAGES = ("fetch", "model", "post", "encode")
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Reply:
    """What came back for a click.

    Attributes:
        ack_ms: Until the event was acknowledged.
        mask_ms: Until its mask was there.
        sent: Bytes of the frame that asked for it.
        size: Bytes of the mask's frame.
        bits: Bytes of its packed mask, in base64.
    """

    ack_ms: float
    mask_ms: float
    sent: int
    size: int
    bits: int
    stages: dict[str, float]
    cache: str
    steps: int

    @property
    def rest_ms(self) -> float:
        """What the refiner does not account for."""
        return self.mask_ms - sum(self.stages.get(name, 0.0) for name in STAGES)


class Session:
    """A claimed task on a gateway, clicked one event at a time."""

    def __init__(self, url: str, campaign: str, name: str) -> None:
        self._http = httpx.Client(base_url=url, headers={"X-Annotator": name}, timeout=TIMEOUT_S, trust_env=False)
        answer = self._http.post(f"/api/campaigns/{campaign}/claim", json={"claim_id": str(uuid4())})
        self.claim = answer.raise_for_status().json()
        self._seq = 0
        address = f"{url.replace('http', 'ws', 1)}/api/sessions/{self.claim['session_id']}/ws"
        self._socket = connect(
            address, additional_headers={"X-Annotator": name}, compression=None, max_size=None, proxy=None
        )
        self._socket.send(json.dumps({"type": "hello"}))
        assert json.loads(self._socket.recv(timeout=TIMEOUT_S))["type"] == "welcome"

    def open(self, wants_mask: bool = True) -> str:
        """Begin an instance; its id."""
        instance = str(uuid4())
        self._send("open", instance, {}, wants_mask)
        return instance

    def click(self, instance: str, click: Click) -> tuple[Reply, PackedMask]:
        """One click, with its mask."""
        answer = self._send("click", instance, {"x": click.x, "y": click.y, "is_positive": click.is_positive}, True)
        assert answer is not None
        return answer

    def close(self) -> None:
        """Leave; the session stays open."""
        self._socket.close()
        self._http.close()

    def _frame(self, kind: str, instance: str, payload: dict[str, Any], wants_mask: bool) -> str:
        """The session's next event, as it is sent."""
        event = {
            "event_id": str(uuid4()), "seq": self._seq + 1, "session_epoch": self.claim["epoch"],
            "lease_no": self.claim["lease_no"], "instance_id": instance, "kind": kind, "payload": payload,
        }  # fmt: skip
        return json.dumps({"type": "event", "mask": "bits" if wants_mask else "none", "event": event})

    def _send(
        self, kind: str, instance: str, payload: dict[str, Any], wants_mask: bool
    ) -> tuple[Reply, PackedMask] | None:
        frame = self._frame(kind, instance, payload, wants_mask)
        self._seq += 1
        started = time.perf_counter()
        self._socket.send(frame)
        ack = json.loads(self._socket.recv(timeout=TIMEOUT_S))
        ack_ms = 1e3 * (time.perf_counter() - started)
        assert ack["type"] == "ack" and not ack["duplicate"], ack
        if not wants_mask:
            return None
        text = self._socket.recv(timeout=TIMEOUT_S)
        mask_ms = 1e3 * (time.perf_counter() - started)
        message = json.loads(text)
        assert message["type"] == "mask" and message["seq"] == self._seq, message
        bits = message["bits"]
        reply = Reply(
            ack_ms, mask_ms, len(frame), len(text), len(bits["bits"]), message["latency_ms"], message["cache"],
            message["steps"],
        )  # fmt: skip
        return reply, PackedMask.model_validate(bits)


class WithoutLog(Intake):
    """The gateway's event path without its log: nothing is committed, neither events nor results."""

    async def _commit(self, live: LiveSession, annotator_id: str, event: EventIn, plan: Plan | None) -> Appended:
        assert plan is not None, "a benchmark repeats nothing"
        live.advance(plan.event, plan.state)
        return Appended(str(event.event_id), event.seq, False)

    async def save_result(self, event_id: str, reply: MaskReply) -> None:
        """Keep nothing."""


def run_without_log() -> None:
    """The second gateway, in a process of its own; as `python -m workers.api` but for its intake."""
    from workers.api.app import build_services, create_app
    from workers.api.server import run
    from workers.router import Router

    settings = Settings()
    database = open_database(settings.resolved_database_url)
    services = build_services(settings, database, Router(settings))
    services.intake = WithoutLog(database, services.writer, services.hub, services.refining, services.metrics, settings)
    run(create_app(services), services)
    database.close()


@contextmanager
def gateway_without_log(settings: Settings, url: str) -> Iterator[str]:
    """Its URL; beside the one at `url`, ready."""
    host, port = url.rsplit(":", 1)
    own = int(port) + 1 if int(port) < 65535 else int(port) - 1
    environment = {**os.environ, "CLICKLOOP_WORKSPACE": str(settings.workspace), "CLICKLOOP_PORT": str(own)}
    with (settings.workspace / "without-log.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, __file__, "--without-log"], env=environment, stdout=log, stderr=log)
    try:
        give_up = time.monotonic() + TIMEOUT_S
        while not _is_ready(f"{host}:{own}"):
            assert process.poll() is None and time.monotonic() < give_up, "the second gateway did not start"
            time.sleep(0.2)
        yield f"{host}:{own}"
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=10, trust_env=False).is_success
    except httpx.TransportError:
        return False


def write_photographs(folder: Path, count: int) -> NDArray[np.bool_]:
    """`count` JPEGs of 1080p that differ in a corner: scikit-image's cup of coffee, enlarged; the cup's mask."""
    spec = find_spec("skimage")
    assert spec is not None and spec.origin is not None, "pip install 'clickloop[demo]'"
    photographs = Path(spec.origin).parent / "data"
    truth = read_coco(Path(__file__).parents[1] / "flows" / "demo_data" / "annotations.json", photographs)
    cup = next(s for s in truth if s.image.path.name == "coffee.png" and s.category == "cup")
    picture, mask = cv2.imread(str(cup.image.path)), (cup.read_gt() == 1).astype(np.uint8)
    used = picture.shape[1] * SIZE[0] // SIZE[1]  # rows of a 16:9 crop
    top = (picture.shape[0] - used) // 4
    picture = cv2.resize(picture[top : top + used], SIZE[::-1], interpolation=cv2.INTER_CUBIC)
    mask = cv2.resize(mask[top : top + used], SIZE[::-1], interpolation=cv2.INTER_NEAREST)
    folder.mkdir(parents=True)
    for number in range(count):
        picture[:16, :16], picture[:16, 16:32] = 8 * (number % 32), 8 * (number // 32)
        assert cv2.imwrite(str(folder / f"{number:02}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return mask.astype(np.bool_)


def make_campaign(settings: Settings, images: Path, model: str) -> str:
    """A campaign of the folder's images; the key of its embeddings."""
    database = open_database(settings.resolved_database_url)
    spec = CampaignSpec(id=str(uuid4()), name="bench", images=str(images), labels=("cup",), model=model)
    record = create_campaign(database, settings.resolved_storage_url, spec)
    ingest(database, record, record.source_url)
    database.close()
    return record.model_key


class Robot:
    """Clicks one object in one session until its clicks are used up."""

    def __init__(self, session: Session, truth: NDArray[np.bool_]) -> None:
        self._session, self._truth = session, truth
        self._instance = session.open()
        self._mask, self._clicked = np.zeros(SIZE, np.bool_), np.zeros(SIZE, np.bool_)
        self.replies: list[Reply] = []

    def click(self) -> None:
        """One click at the centre of the largest error."""
        click = next_click(self._truth, self._mask, self._clicked) or Click(SIZE[1] / 2, SIZE[0] / 2, True)
        self._clicked[int(click.y), int(click.x)] = True
        reply, mask = self._session.click(self._instance, click)
        assert reply.steps == 1, reply.steps
        self._mask = unpack(mask)
        self.replies.append(reply)


def interleaved(pair: Sequence[Session], truth: NDArray[np.bool_], instances: int, clicks: int) -> list[list[Robot]]:
    """Robots of each session, whose clicks took turns; each instance begins with another session."""
    robots: list[list[Robot]] = [[] for _ in pair]
    for number in range(instances):
        shifted = np.roll(truth, 7 * number, axis=1)  # other clicks: what the refiner remembers does not answer them
        turn = [(own, Robot(session, shifted)) for own, session in zip(robots, pair, strict=True)]
        for own, robot in turn:
            own.append(robot)
        for click in range(clicks):
            for _, robot in turn if (number + click) % 2 else turn[::-1]:
                robot.click()
    return robots


def first_clicks(
    sessions: Sequence[Session], truth: NDArray[np.bool_], count: int, delete: Path | None = None
) -> list[Reply]:
    """The first clicks of new instances, on one image after the other; with the stored embeddings deleted before."""
    rows, columns = np.nonzero(truth)
    pick = np.random.default_rng(count).integers(rows.size, size=count)
    replies = []
    for number in range(count):
        session = sessions[number % len(sessions)]
        if delete is not None:
            sha256 = session.claim["image"]["sha256"]
            (delete / sha256[:2] / f"{sha256}.safetensors").unlink()
        instance = session.open(wants_mask=False)
        at = pick[number]
        replies.append(session.click(instance, Click(float(columns[at]), float(rows[at]), True))[0])
    return replies


def gateway_stages(url: str) -> dict[str, NDArray[np.float64]]:
    """Milliseconds and number of events so far, by stage of the gateway's event path, from its /metrics."""
    pattern = r'^clickloop_click_stage_ms_{}\{{stage="(\w+)"\}} (\S+)$'
    text = httpx.get(f"{url}/metrics", timeout=TIMEOUT_S, trust_env=False).text
    sums, counts = (dict(re.findall(pattern.format(name), text, re.MULTILINE)) for name in ("sum", "count"))
    return {stage: np.array([float(sums[stage]), float(counts[stage])]) for stage in ("wait", "check", "commit")}


def wait_for_embeddings(folder: Path, count: int) -> None:
    """Until claims' warming has encoded every image and nothing is loaded behind our back."""
    give_up = time.monotonic() + TIMEOUT_S
    while len(list(folder.rglob("*.safetensors"))) < count:
        assert time.monotonic() < give_up, "the images were not encoded in time"
        time.sleep(0.2)
    time.sleep(1.0)


def quantiles(values: Sequence[float]) -> tuple[float, float]:
    """Median and 95th percentile."""
    return float(np.percentile(values, 50)), float(np.percentile(values, 95))


def row(name: str, replies: Sequence[Reply]) -> None:
    """Print a kind of click."""
    columns = [quantiles([r.mask_ms for r in replies]), quantiles([r.ack_ms for r in replies])]
    columns += [quantiles([r.stages.get(stage, 0.0) for r in replies]) for stage in STAGES]
    columns.append(quantiles([r.rest_ms for r in replies]))
    print(f"{name:<22}{len(replies):>4}" + "".join(f"{p50:>8.1f}/{p95:<7.1f}" for p50, p95 in columns))


def p50(replies: Sequence[Reply], name: str) -> float:
    """Median of an attribute."""
    return float(np.median([getattr(reply, name) for reply in replies]))


@dataclass(frozen=True)
class Clicks:
    """What one run saw.

    Attributes:
        logged: Click by click of each instance on the product's gateway.
        unlogged: Those on the gateway without a log, which took turns with them.
        disk: First clicks on images that the refiner did not hold.
        missed: First clicks on images that were not encoded.
        gateway_ms: Mean milliseconds of the hits' events by stage of the gateway.
    """

    logged: list[list[Reply]]
    unlogged: list[list[Reply]]
    disk: list[Reply]
    missed: list[Reply]
    gateway_ms: dict[str, float]

    @property
    def firsts(self) -> list[Reply]:
        """Click 1 of each instance."""
        return [replies[0] for replies in self.logged + self.unlogged]

    @property
    def lasts(self) -> list[Reply]:
        """Its last click."""
        return [replies[-1] for replies in self.logged + self.unlogged]

    @property
    def hits(self) -> list[Reply]:
        """With log."""
        return [reply for replies in self.logged for reply in replies[1:]]

    @property
    def plain(self) -> list[Reply]:
        """The hits without log, in the same order."""
        return [reply for replies in self.unlogged for reply in replies[1:]]

    @property
    def log_ratio(self) -> float:
        """With / without log: median over clicks made one after the other."""
        pairs = zip(self.hits, self.plain, strict=True)
        return float(np.median([own.mask_ms / other.mask_ms for own, other in pairs]))


def measure(model: str = "fdrn-compact", instances: int = 6, clicks: int = 20, misses: int = 12) -> Clicks:
    """Boot a server on new photographs and click.

    Args:
        model: Of the campaign.
        instances: Per gateway.
        clicks: Per instance.
        misses: First clicks on images whose embedding was deleted.
    """
    os.environ["CLICKLOOP_REFINER_CACHE_MB"] = str(CACHE_MB)
    with tempfile.TemporaryDirectory(prefix="cl-bench-") as folder:
        settings = Settings(workspace=Path(folder) / "workspace")
        truth = write_photographs(Path(folder) / "images", 2 + COLD_IMAGES)
        key = make_campaign(settings, Path(folder) / "images", model)
        store = Path(settings.resolved_storage_url) / "embeddings" / key
        with serving(settings) as client, gateway_without_log(settings, client.url) as without:
            pair = [Session(client.url, "bench", "with"), Session(without, "bench", "without")]
            cold = [Session(client.url, "bench", "cold") for _ in range(COLD_IMAGES)]
            wait_for_embeddings(store, 2 + COLD_IMAGES)
            interleaved(pair, np.roll(truth, -50, axis=1), 1, 3)  # warm
            before = gateway_stages(client.url)
            robots = interleaved(pair, truth, instances, clicks)
            spent = {stage: after - before[stage] for stage, after in gateway_stages(client.url).items()}
            disk = first_clicks(cold, truth, 2 * COLD_IMAGES)
            missed = first_clicks(cold, truth, misses, delete=store)
            for session in (*pair, *cold):
                session.close()
    kinds = [{reply.cache for reply in replies} for replies in (robots[0][0].replies[1:], disk, missed)]
    assert kinds == [{"memory"}, {"store"}, {"encoded"}], kinds
    logged, unlogged = ([robot.replies for robot in own] for own in robots)
    return Clicks(logged, unlogged, disk, missed, {stage: total / count for stage, (total, count) in spent.items()})


def report(found: Clicks) -> None:
    """Print the table and the ratios."""
    firsts, lasts, hits, plain = found.firsts, found.lasts, found.hits, found.plain
    print(f"{'ms, p50/p95':<22}{'n':>4}" + "".join(f"{name:>11}     " for name in ("mask", "ack", *STAGES, "rest")))
    row("hit", hits)
    row("hit, without log", plain)
    row("disk hit", found.disk)
    row("miss", found.missed)
    last = len(found.logged[0])
    print(f"with / without log      mask {p50(hits, 'mask_ms') / p50(plain, 'mask_ms'):6.3f}   at p50, goal <= 1.05")
    print(f"                      pairs {found.log_ratio:6.3f}   median over clicks made one after the other")
    print(
        f"                        ack {p50(hits, 'ack_ms') - p50(plain, 'ack_ms'):+7.2f} ms at p50: what a commit adds"
    )
    print(f"click {last} / click 1      time {p50(lasts, 'mask_ms') / p50(firsts, 'mask_ms'):6.3f}   goal <= 1.05")
    bare = [np.median([reply.size - reply.bits for reply in replies]) for replies in (firsts, lasts)]
    print(f"                      bytes {p50(lasts, 'size') / p50(firsts, 'size'):6.3f}   goal <= 1.05")
    print(f"          without the mask's {bare[1] / bare[0]:6.3f}   (the masks of the two clicks differ)")
    print(f"    bytes of the request {p50(lasts, 'sent') / p50(firsts, 'sent'):8.3f}   goal <= 1.05")
    print(f"bytes per reply        p50 {p50(hits, 'size'):6.0f}   max {max(r.size for r in hits)}, goal <= 10000")
    kinds = [f"{p50(replies, 'mask_ms'):.1f}" for replies in (found.missed, found.disk, hits)]
    print(f"miss / disk hit / hit  {' / '.join(kinds)} ms at p50")
    print(f"load                  {os.getloadavg()[0]:8.2f} on {len(os.sched_getaffinity(0))} cores")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fdrn-compact")
    parser.add_argument("--instances", type=int, default=6, help="per gateway")
    parser.add_argument("--clicks", type=int, default=20, help="per instance")
    parser.add_argument("--misses", type=int, default=12)
    parser.add_argument("--without-log", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.without_log:
        run_without_log()
        return
    found = measure(args.model, args.instances, args.clicks, args.misses)
    print(f"{args.model}, {SIZE[1]}x{SIZE[0]} JPEG, one refiner")
    report(found)
    means = ", ".join(f"{stage} {ms:.2f}" for stage, ms in found.gateway_ms.items())
    print(f"in the gateway         {means} ms, mean of the events of the hits")


if __name__ == "__main__":
    main()
