"""Ray: started by its owner process, attached to by address and token by every other one.

`python -m workers.cluster` is the owner: it starts Ray (or attaches to CLICKLOOP_RAY_ADDRESS), owns the actors, says
where they are in WORKSPACE/ray.json, and exits with 1 when Ray is gone, so that whoever watches it starts it again.
"""

import ctypes
import hashlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import psutil
import ray

from schemas.engines import check_available
from schemas.errors import BusyError, WorkspaceLockedError
from schemas.logs import log_plainly
from schemas.settings import Settings
from schemas.version import own_version
from workers.pool import Pool

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 256 * 1024 * 1024
"""Enough: a refiner returns kilobytes, and embeddings go through the storage."""
HEALTH_PERIOD_S = 1.0
STOP_TIMEOUT_S = 8.0
"""After a signal the process ends within this, whatever Ray does."""
_LISTENS_S = 5.0
_ATTEMPTS = "RAY_gcs_server_port_wait_time_s"
"""What Ray calls the number of its attempts to reach a head."""
_CORE_PROCESSES = ("gcs_server", "raylet")
_CONNECTING = ThreadPoolExecutor(1, "connecting")
"""The one thread that connects; it calls no actor. Ray numbers the calls of each thread, takes all threads that ever
connected for the same one, and begins anew with each cluster: two would give two calls one id, on which it aborts.
"""


@dataclass(frozen=True)
class ClusterInfo:
    """Where the actors are: what WORKSPACE/ray.json says.

    Attributes:
        address: Of Ray's head.
        namespace: Of the actors.
        token_file: Ray's token, empty when the environment has it.
        owner_pid: Process that owns the actors.
        owner_started: When it started, in seconds since 1970, as numbers of processes are used again.
        generation: New at every start of the owner.
    """

    address: str
    namespace: str
    token_file: str
    owner_pid: int
    owner_started: float
    generation: str


def read_info(workspace: Path) -> ClusterInfo | None:
    """What ray.json says, None when there is none or its owner is dead."""
    try:
        info = ClusterInfo(**json.loads(info_path(workspace).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return info if _is_running(info.owner_pid, info.owner_started) else None


def info_path(workspace: Path) -> Path:
    """Where the owner says how to attach."""
    return workspace.resolve() / "ray.json"


def find_info(settings: Settings) -> ClusterInfo | None:
    """How to attach: what the local owner says, else the cluster of the settings."""
    info = read_info(settings.workspace)
    if info is None and settings.ray_address:
        return _external(settings)
    return info


def namespace_of(settings: Settings) -> str:
    """Name of the actors' namespace: the same for all that share a storage and a build."""
    name = hashlib.sha256(settings.resolved_storage_url.encode()).hexdigest()[:12]
    return f"clickloop-{own_version()}-{name}"


def attach(settings: Settings) -> Pool:
    """Connect this process to the running actors.

    Raises:
        BusyError: There are none (yet).
    """
    info = find_info(settings)
    if info is None:
        raise BusyError(f"No workers are running for the workspace {settings.workspace}.", retry_after_s=2)
    connect(info)
    return Pool.find(settings, info.namespace)


def connect(info: ClusterInfo) -> None:
    """Connect this process to Ray, which another process started.

    Raises:
        BusyError: It does not answer.
    """
    _CONNECTING.submit(_connect, info).result()


def _connect(info: ClusterInfo) -> None:
    _use_token(info.token_file)
    if info.token_file and os.environ.get("RAY_AUTH_MODE") != "token":
        raise RuntimeError("Import `workers` before `ray`: Ray reads RAY_AUTH_MODE when it is imported.")
    try:
        is_other = info.owner_pid and ray.is_initialized() and ray.get_runtime_context().gcs_address != info.address
        if is_other or is_node_gone():
            ray.shutdown()  # an earlier owner's, whose actors were not there yet when it went; or nothing answers in it
        with _one_attempt(info), _keeping_sigterm():
            ray.init(
                address=info.address, namespace=info.namespace, log_to_driver=False, logging_level=logging.ERROR,
                ignore_reinit_error=True,
            )  # fmt: skip
        _raylet(ray.get_runtime_context().get_node_id())  # found while it lives
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise BusyError(f"Ray at {info.address} does not answer: {error}", retry_after_s=2) from error


@contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Put back who takes SIGTERM: Ray's core does when it connects in a thread, and aborts the process 3 s later."""
    libc, action = ctypes.CDLL(None), ctypes.create_string_buffer(1024)  # a `struct sigaction`, on Linux 152 bytes
    libc.sigaction(signal.SIGTERM, None, action)
    try:
        yield
    finally:
        libc.sigaction(signal.SIGTERM, action, None)


@contextmanager
def _one_attempt(info: ClusterInfo) -> Iterator[None]:
    """Within, Ray tries once to reach a head that an owner on this machine has started; by itself it tries twenty
    times, 41 s each, and a new head has another port.

    Raises:
        OSError: Nothing listens there.
    """
    if not info.token_file:  # of somebody else's cluster: its head comes back where it was
        yield
        return
    host, _, port = info.address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=_LISTENS_S).close()
    os.environ[_ATTEMPTS] = "1"
    try:
        yield
    finally:
        os.environ.pop(_ATTEMPTS, None)  # heads that are started from here are waited for as ever


def is_node_gone() -> bool:
    """Whether the Ray node that this process is connected through has ended, as all do when the cluster's head is lost.

    Ray does not say so: calls are never answered, also when head and node are back. Only connecting anew helps.
    """
    if not ray.is_initialized():
        return False
    raylet = _raylet(ray.get_runtime_context().get_node_id())
    return raylet is not None and not _is_running(raylet.pid, raylet.create_time())


@lru_cache(maxsize=1)
def _raylet(node_id: str) -> psutil.Process | None:
    """The process of a node of this machine; None when it cannot be seen."""
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet" and f"--node_id={node_id}" in (process.info["cmdline"] or ()):
            return process
    return None


def start_ray(settings: Settings) -> str:
    """Start Ray on this machine, owned by this process.

    Returns:
        Its address.
    """
    _use_token(str(_token_file(settings.workspace)))
    folder = _temp_dir(settings.workspace)
    shutil.rmtree(folder, ignore_errors=True)  # logs and sockets of the last start: the workspace has one owner
    folder.mkdir(mode=0o700)
    os.environ.setdefault("RAY_worker_niceness", "0")  # by Ray's 15 clicks would be as low as heavy roles
    with _keeping_sigterm():
        context = ray.init(
            address="local",
            num_cpus=max(2, len(os.sched_getaffinity(0))),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            namespace=namespace_of(settings),
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder / "r"),  # which Ray opens to everybody; its sockets' paths are to be short
        )
    return str(context.address_info["gcs_address"])


@contextmanager
def cluster(settings: Settings) -> Iterator[Pool]:
    """The actors for a command: the running ones, else own ones that end with the block."""
    if find_info(settings) is not None:
        pool = attach(settings)
        try:
            yield pool
        finally:
            ray.shutdown()
        return
    with owned(settings) as pool:
        yield pool


@contextmanager
def owned(settings: Settings) -> Iterator[Pool]:
    """Start Ray (or attach to the cluster of the settings) and the actors, and end what was started.

    Raises:
        WorkspaceLockedError: Another process owns the workspace's actors.
        BadInputError: The engine of the settings is not installed.
    """
    check_available(settings.engine)
    if (info := read_info(settings.workspace)) is not None:
        raise WorkspaceLockedError(f"Process {info.owner_pid} owns the workers of {settings.workspace}.")
    settings.workspace.mkdir(parents=True, exist_ok=True)
    try:
        if settings.ray_address:
            connect(_external(settings))
        else:
            start_ray(settings)
        yield Pool.start(settings, namespace_of(settings))
    finally:
        ray.shutdown()
        if not settings.ray_address:
            shutil.rmtree(_temp_dir(settings.workspace), ignore_errors=True)


def _external(settings: Settings) -> ClusterInfo:
    return ClusterInfo(settings.ray_address, namespace_of(settings), "", 0, 0.0, settings.ray_address)


def _is_running(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return bool(process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _use_token(token_file: str) -> None:
    """Authenticate with the workspace's token; without one the environment's own settings hold."""
    if token_file:
        os.environ["RAY_AUTH_TOKEN_PATH"] = token_file


def _token_file(workspace: Path) -> Path:
    path = workspace.resolve() / "ray.token"
    if not path.exists():
        write_private(path, secrets.token_hex(32))
    return path


def write_private(path: Path, text: str) -> None:
    """Write or replace a file that only this user may read, whole."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    aside.unlink(missing_ok=True)
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    os.replace(aside, path)


def _temp_dir(workspace: Path) -> Path:
    """A short path: Ray's sockets lie below it, and their names are limited to 107 characters."""
    name = hashlib.sha256(str(workspace.resolve()).encode()).hexdigest()[:10]
    return Path(tempfile.gettempdir()) / f"clickloop-{os.getuid()}-{name}"


def _core_processes() -> list[psutil.Process]:
    """Ray's own processes, where this process started Ray."""
    return [p for p in psutil.Process().children() if p.name() in _CORE_PROCESSES]


def _watch(pool: Pool, stop: threading.Event) -> int:
    """Keep the actors alive until told to stop (0) or until Ray is gone (1)."""
    core = _core_processes()
    while not stop.wait(HEALTH_PERIOD_S):
        # Asking Ray instead would block for a minute when its head is gone.
        if not all(_is_running(p.pid, p.create_time()) for p in core) or not ray.is_initialized() or is_node_gone():
            logger.error("Ray is gone")
            return 1
        pool.replace_dead()
    return 0


def _stop_on_signals(stop: threading.Event) -> None:
    def handle(*_: object) -> None:
        stop.set()
        last_resort = threading.Timer(STOP_TIMEOUT_S, _end_by_force)
        last_resort.daemon = True
        last_resort.start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def _end_by_force() -> None:
    """End this process and, where it leads its process group, what it started."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def own(settings: Settings) -> int:
    """Own the actors until SIGTERM (0) or until Ray is gone (1, and the process ends here).

    Raises:
        WorkspaceLockedError: Another process owns the workspace's actors.
    """
    stop = threading.Event()
    with owned(settings) as pool:
        _stop_on_signals(stop)  # after ray.init, which sets its own
        process = psutil.Process()
        info = ClusterInfo(
            address=settings.ray_address or str(ray.get_runtime_context().gcs_address),
            namespace=pool.namespace,
            token_file="" if settings.ray_address else str(_token_file(settings.workspace)),
            owner_pid=process.pid,
            owner_started=process.create_time(),
            generation=secrets.token_hex(8),
        )
        write_private(info_path(settings.workspace), json.dumps(asdict(info)))
        logger.info("workers are ready: refiners=%d encoders=%d", len(pool.refiners), len(pool.encoders))
        status = _watch(pool, stop)
        info_path(settings.workspace).unlink(missing_ok=True)
        if status:
            logging.shutdown()
            os._exit(status)  # an orderly end would wait for Ray's head
    return status


if __name__ == "__main__":
    log_plainly(logging.INFO, "%(asctime)s %(levelname)s %(name)s %(message)s")
    sys.exit(own(Settings()))
