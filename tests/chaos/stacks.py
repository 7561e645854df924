"""What a campaign under chaos stands on, and how it is taken away: a disk that fills, a database, an object store.

`sqlite`: SQLite, embeddings, adapters and exports on a small disk. `postgres`: PostgreSQL on the small disk, everything
else in an S3 bucket. moto keeps its objects in memory, so that killing it would lose what a real store keeps: it "goes
away" by a proxy before it that breaks all connections and refuses new ones, or by SIGSTOP.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import s3fs

from pipeline.storage.files import join, open_storage, patience, write_atomic
from tests.chaos.faults import Fault
from tests.chaos.proxy import Proxy
from tests.databases import running_postgres
from tests.flows.scenes import write_pictures
from tests.s3 import client_environment, running_s3

BUCKET = "chaos"
DISK = "512m"
FULL_S = 3.0
AWAY_S = 10.0
"""Longer than what is waited for outside jobs, less than `STORAGE_WAIT_S`."""
STORAGE_WAIT_S = 120


@dataclass
class Stack:
    """Where everything is.

    Attributes:
        folder: Local, for whatever the run itself writes.
        workspace: Of `serve`.
        images: URL of the campaign's pictures.
        exports: URL below which exports go.
        environment: Of `serve` and of this process.
        faults: What can be done to it.
        has_two_gateways: Whether a second gateway can work on the database.
    """

    folder: Path
    workspace: Path
    images: str
    exports: str
    environment: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    has_two_gateways: bool = False

    def add_pictures(self, count: int, seed: int) -> None:
        """Draw pictures and put them where the next ingest finds them."""
        drawn = write_pictures(self.folder / f"drawn-{seed}", count, seed)
        fs, root = open_storage(self.images)
        with patience(STORAGE_WAIT_S):
            for picture in drawn.iterdir():
                write_atomic(fs, join(root, f"{seed}-{picture.name}"), picture)


@contextmanager
def open_stack(kind: str, folder: Path) -> Iterator[Stack]:
    """A stack in an empty folder with a short path; the environment is this process's, too, while the block runs.

    Args:
        kind: sqlite or postgres.
        folder: Local.
    """
    folder.chmod(0o755)  # PostgreSQL's account has to get through
    workspace = folder / "workspace"
    stack = Stack(folder, workspace, f"{folder}/images", f"{workspace}/exports")
    stack.environment = {
        "CLICKLOOP_WORKSPACE": str(stack.workspace),
        "CLICKLOOP_MIN_FREE_BYTES": "0",
        "CLICKLOOP_STORAGE_WAIT_S": str(STORAGE_WAIT_S),
    }
    with ExitStack() as parts:
        if kind == "sqlite":
            stack.faults += parts.enter_context(_small_disk(stack.workspace))
        else:
            stack.faults += parts.enter_context(_postgres(stack))
            stack.faults += parts.enter_context(_objects(stack))
        parts.enter_context(_environment(stack.environment))
        if "AWS_ENDPOINT_URL" in stack.environment:
            boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield stack


@contextmanager
def _small_disk(folder: Path, freed: Callable[[], None] = lambda: None) -> Iterator[list[Fault]]:
    """Make a folder that is a disk (tmpfs) and full for a while; without the right to mount, it never is.

    Args:
        folder: To be made.
        freed: Called when there is room again.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=755", "clickloop-chaos", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield []
        return

    def fill() -> bool:
        ballast = folder / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 20)):
                pass
        time.sleep(FULL_S)
        ballast.unlink()
        freed()
        return True

    try:
        yield [Fault("disk full", fill, 2)]
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def _postgres(stack: Stack) -> Iterator[list[Fault]]:
    disk = stack.folder / "disk"

    def start_again() -> None:
        if server.process is not None and server.process.poll() is not None:
            server.start()  # it gave up when it could not write its log

    def kill() -> bool:
        server.stop()  # at once, as after a crash
        time.sleep(0.5)
        server.start()
        return True

    with _small_disk(disk, start_again) as faults:
        (disk / "pg").mkdir()
        with running_postgres(disk / "pg") as server:
            stack.environment["CLICKLOOP_DATABASE_URL"] = server.url(server.create())
            stack.has_two_gateways = True
            yield [Fault("database killed", kill, 2), *faults]


@contextmanager
def _objects(stack: Stack) -> Iterator[list[Fault]]:
    with running_s3(stack.folder / "s3.log") as (server, port):
        line = Proxy(port)
        stack.environment |= client_environment(f"http://127.0.0.1:{line.port}")
        stack.environment["CLICKLOOP_STORAGE_URL"] = f"s3://{BUCKET}/storage"
        stack.environment["CLICKLOOP_SOURCE_ROOTS"] = json.dumps([f"s3://{BUCKET}"])
        stack.images, stack.exports = f"s3://{BUCKET}/images", f"s3://{BUCKET}/exports"

        def go_away() -> bool:
            line.refuse(True)
            line.cut()
            time.sleep(AWAY_S)
            line.refuse(False)
            return True

        def hang() -> bool:
            server.send_signal(signal.SIGSTOP)
            time.sleep(AWAY_S)
            server.send_signal(signal.SIGCONT)
            return True

        yield [Fault("object store gone", go_away, 2), Fault("object store paused", hang)]


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        s3fs.S3FileSystem.clear_instance_cache()
