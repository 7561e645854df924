"""Memory of `clickloop serve` with one refiner and one encoder: idle, with a model at work, and after 2,000 clicks.

    python benchmarks/serve_memory.py [--model fdrn-compact] [--clicks 2000]

PSS (each shared page divided among those that share it), so that the processes' figures add up. Idle: ready, nobody has
clicked. The refiner's cache is small here and full before the growth is measured, since filling a bounded cache is no
leak; what is left is the gateway's copy of the sessions (bounded, too) and whatever leaks. The clicks are those of
annotators on several images: instances of about twenty clicks, some undone and redone, accepted or deleted, submitted.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from uuid import uuid4

import cv2
import numpy as np
import psutil

from flows.temporary_server import serving
from pipeline.campaigns import CampaignSpec, create_campaign
from pipeline.ingest.scan import ingest
from pipeline.storage.database import open_database
from schemas.settings import Settings
from workers.session_client import Answer, Api, SessionClient

SIZE = (768, 1024)
CACHE_MB = 32
PER_INSTANCE = 20
PER_SESSION = 10
"""Instances; so a session has 200 clicks, and memory is looked at after each one."""
WARM_SESSIONS = 2
ROLES = {
    "flows.cli": "supervisor",
    "workers.cluster": "owner of Ray",
    "workers.api": "gateway",
    "flows.runner": "flow runner",
    "_RefinerShell": "refiner",
    "_EncoderShell": "encoder",
    "gcs_server": "Ray: head",
    "raylet/raylet": "Ray: raylet",
}
REST = "Ray: other"


def role_of(process: psutil.Process) -> str:
    """What a process of `serve` is there for."""
    words = " ".join(process.cmdline())
    return next((role for pattern, role in ROLES.items() if pattern in words), REST)


def memory(server: psutil.Process) -> Counter[str]:
    """PSS in MB by role."""
    found: Counter[str] = Counter()
    for process in (server, *server.children(recursive=True)):
        try:
            found[role_of(process)] += process.memory_full_info().pss / 1e6
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def settled(server: psutil.Process) -> Counter[str]:
    """The same once two looks agree within 1 %: processes that have just started are still growing."""
    before, now = memory(server), Counter[str]()
    for _ in range(15):
        time.sleep(1.0)
        now = memory(server)
        if abs(now.total() - before.total()) < 0.01 * now.total():
            break
        before = now
    return now


def make_campaign(settings: Settings, images: Path, count: int, model: str) -> None:
    """A campaign of `count` JPEGs with soft shapes."""
    images.mkdir()
    for seed in range(count):
        rng = np.random.default_rng(seed)
        soft = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), SIZE[::-1], interpolation=cv2.INTER_CUBIC)
        assert cv2.imwrite(str(images / f"{seed}.jpg"), cv2.add(soft, rng.integers(0, 16, soft.shape, np.uint8)))
    database = open_database(settings.resolved_database_url)
    spec = CampaignSpec(id=str(uuid4()), name="bench", images=str(images), labels=("thing",), model=model)
    ingest(database, create_campaign(database, settings.resolved_storage_url, spec), str(images))
    database.close()


def label_image(api: Api, clicks: int, rng: np.random.Generator) -> int:
    """Claim an image, make about so many clicks on it, submit; how many were made."""
    claim = api.call("POST", "/api/campaigns/bench/claim", {"claim_id": str(uuid4())})
    session = SessionClient(api, claim)
    made = 0
    while made < clicks:
        instance = str(uuid4())
        answer = session.send("open", instance)
        for number in range(min(PER_INSTANCE, clicks - made)):
            answer = click(session, instance, rng, is_positive=number % 4 != 3)
            made += 1
            if number % 5 == 4:
                undone = session.send("undo", instance, event_id=answer.event_id)
                answer = session.send("redo", instance, event_id=undone.event_id) if number % 2 else undone
        assert answer.mask is not None
        if answer.mask.area and rng.random() < 0.8:
            session.send("accept", instance, seq=answer.seq, mask_sha256=answer.mask.mask_sha256, category=1)
        else:
            session.send("delete", instance)
    session.send("submit")
    session.close()
    return made


def click(session: SessionClient, instance: str, rng: np.random.Generator, is_positive: bool) -> Answer:
    """A click anywhere."""
    x, y = float(rng.uniform(0, SIZE[1] - 1)), float(rng.uniform(0, SIZE[0] - 1))
    return session.send("click", instance, x=x, y=y, is_positive=is_positive)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fdrn-compact")
    parser.add_argument("--clicks", type=int, default=2000, help="between the two looks that the growth is taken from")
    args = parser.parse_args()
    os.environ["CLICKLOOP_REFINER_CACHE_MB"] = str(CACHE_MB)
    per_session = PER_INSTANCE * PER_SESSION
    sessions = -(-args.clicks // per_session)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="cl-bench-") as folder:
        settings = Settings(workspace=Path(folder) / "workspace")
        make_campaign(settings, Path(folder) / "images", WARM_SESSIONS + sessions, args.model)
        own = psutil.Process()
        with serving(settings) as client:
            server = next(p for p in own.children() if role_of(p) == "supervisor")
            looks = [settled(server)]
            api = Api(client.url, "bench")
            for _ in range(WARM_SESSIONS):
                label_image(api, per_session, rng)
            looks.append(settled(server))
            made, began, course = 0, time.perf_counter(), [looks[1].total()]
            while made < args.clicks:
                made += label_image(api, min(per_session, args.clicks - made), rng)
                course.append(memory(server).total())
            seconds = time.perf_counter() - began
            looks.append(settled(server))
            api.close()
    print(f"{args.model}, one refiner ({CACHE_MB} MB cache), one encoder; PSS in MB")
    print(f"{'':<16}{'idle':>8}{'working':>10}{f'+{made} clicks':>14}{'growth':>9}")
    names = sorted(looks[2], key=lambda name: -looks[2][name])
    for name in names:
        idle, warm, end = (look[name] for look in looks)
        print(f"{name:<16}{idle:8.0f}{warm:10.0f}{end:14.0f}{end - warm:+9.1f}")
    idle, warm, end = (look.total() for look in looks)
    print(f"{'total':<16}{idle:8.0f}{warm:10.0f}{end:14.0f}{end - warm:+9.1f}")
    half = len(course) // 2
    print(f"growth / working  {(end - warm) / warm:8.4f}   {1000 * (end - warm) / made:.1f} kB per click, goal: none")
    print(f"in the second half {course[-1] - course[half]:+7.1f} MB over {len(course) - 1 - half} sessions")
    print(f"clicks            {made / seconds:8.1f} per second, undo and redo beside them")
    print(f"load              {os.getloadavg()[0]:8.2f} on {len(os.sched_getaffinity(0))} cores")


if __name__ == "__main__":
    main()
