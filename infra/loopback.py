"""A whole Clickloop on this machine's loopback, without containers and gone when it ends: `python infra/loopback.py`.

The processes of compose.yaml: PostgreSQL, an S3 endpoint (moto's server), Prefect's server, a Ray head that offers
nothing and a node that works, the owner, two gateways, the flow runner and the deployments. Needs PostgreSQL's server
binaries and the development packages. Prints one line of JSON when both gateways are ready; the file `environment` that
it names gives a shell the settings of all of them.
"""

import argparse
import ctypes
import json
import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from flows.supervisor import Child, supervise, usable_port
from schemas.errors import BadInputError

START_S = 60.0
BUCKET = "clickloop"
PYTHON = sys.executable
_LIBC = ctypes.CDLL(None)


def main() -> int:
    """Run until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=8700, help="of the first gateway; the others follow (8700)")
    args = parser.parse_args()
    ports = {name: args.port + n for n, name in enumerate(("first", "second", "objects", "prefect", "ray"))}
    _require_free(ports)
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the processes print is no part of our one line
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with ExitStack() as stack:
        # Short: sockets of Ray and PostgreSQL lie below it.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cl-", dir="/tmp")))
        folder.chmod(0o755)
        environment = _environment(folder, ports, stack.enter_context(postgres(folder)))
        stack.enter_context(_objects(ports["objects"], folder, environment))
        subprocess.run([PYTHON, "-m", "flows.cli", "db", "upgrade"], env=environment, check=True)
        ready = threading.Thread(target=_say_when_ready, args=(folder, ports, environment, stop, said), daemon=True)
        ready.start()
        return supervise(_children(folder, ports), environment, stop, "", None)


def _require_free(ports: dict[str, int]) -> None:
    """Whoever else listens would be taken for ours: a second stack called the first one's gateways ready."""
    for port in ports.values():
        try:
            usable_port("127.0.0.1", port)
        except BadInputError as error:
            needed = f"{min(ports.values())} to {max(ports.values())} are needed"
            raise SystemExit(f"{error} {needed}.") from error


def _environment(folder: Path, ports: dict[str, int], database_url: str) -> dict[str, str]:
    """What all processes share; each has a workspace of its own, as in a container."""
    (folder / "shell").mkdir()
    own = {
        "CLICKLOOP_WORKSPACE": str(folder / "shell"),
        "CLICKLOOP_DATABASE_URL": database_url,
        "CLICKLOOP_STORAGE_URL": f"s3://{BUCKET}/storage",
        "CLICKLOOP_SOURCE_ROOTS": json.dumps([f"s3://{BUCKET}"]),
        "CLICKLOOP_RAY_ADDRESS": f"127.0.0.1:{ports['ray']}",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['objects']}",
        "AWS_ACCESS_KEY_ID": "loopback",
        "AWS_SECRET_ACCESS_KEY": "loopback",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "PREFECT_API_URL": f"http://127.0.0.1:{ports['prefect']}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "DO_NOT_TRACK": "1",
    }
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in own.items()]
    (folder / "environment").write_text("".join(lines))
    (folder / "environment").chmod(0o600)
    inherited = {n: v for n, v in os.environ.items() if not n.startswith(("CLICKLOOP_", "PREFECT_", "RAY_", "AWS_"))}
    return inherited | own


def _children(folder: Path, ports: dict[str, int]) -> list[Child]:
    def child(name: str, *command: str, is_owner: bool = False, **settings: object) -> Child:
        given = [f"{key}={value}" for key, value in settings.items()]
        return Child(name, ("env", f"CLICKLOOP_WORKSPACE={folder / name}", *given, *command), is_owner=is_owner)

    ray = (str(Path(PYTHON).with_name("ray")), "start", "--block", "--num-gpus=0", "--node-ip-address=127.0.0.1")
    head = ("--head", f"--port={ports['ray']}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}/ray")
    node = (f"--address=127.0.0.1:{ports['ray']}", "--num-cpus=4")
    prefect = ("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(ports["prefect"]))
    return [
        child("ray-head", *ray, *head, "--object-store-memory=80000000", is_owner=True),
        child("ray-worker", *ray, *node, "--object-store-memory=160000000", is_owner=True),
        child("prefect", PYTHON, *prefect, PREFECT_HOME=folder / "prefect"),
        child("owner", PYTHON, "-m", "flows.cli", "workers", is_owner=True),
        child("first", PYTHON, "-m", "workers.api", CLICKLOOP_PORT=ports["first"]),
        child("second", PYTHON, "-m", "workers.api", CLICKLOOP_PORT=ports["second"]),
        child("runner", PYTHON, "-m", "flows.runner"),
        child("deployments", PYTHON, "-m", "flows.deployments", "--limit", "1"),
    ]


def _say_when_ready(
    folder: Path, ports: dict[str, int], environment: dict[str, str], stop: threading.Event, said: TextIO
) -> None:
    urls = [f"http://127.0.0.1:{ports[name]}" for name in ("first", "second")]
    asked = [*(f"{url}/readyz" for url in urls), f"{environment['PREFECT_API_URL']}/health"]
    while not all(_answers(url) for url in asked):
        if stop.wait(0.5):
            return
    said.write(json.dumps({"gateways": urls, "environment": str(folder / "environment")}) + "\n")
    said.flush()


def _answers(url: str) -> bool:
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5.0).close()
    except OSError:
        return False
    return True


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A throw-away server on a socket in the folder; the URL of its database."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parent.parent.name))
    on_path = shutil.which("postgres")
    if not found and on_path is None:
        raise SystemExit("PostgreSQL's server is missing. On Debian or Ubuntu: sudo apt-get install postgresql")
    binaries = (found[-1] if found else Path(str(on_path))).parent
    account = pwd.getpwnam("postgres") if os.getuid() == 0 else None  # initdb refuses root
    home = folder / "postgres"
    home.mkdir()
    rights: dict[str, Any] = {}
    if account is not None:
        os.chown(home, account.pw_uid, account.pw_gid)
        rights = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    user = account.pw_name if account else pwd.getpwuid(os.getuid()).pw_name
    make = [f"{binaries}/initdb", "-D", f"{home}/data", "-A", "trust", "-E", "UTF8", "--locale=C"]
    subprocess.run(make, check=True, cwd=home, stdout=subprocess.DEVNULL, **rights)
    serve = [f"{binaries}/postgres", "-D", f"{home}/data", "-c", "listen_addresses="]
    serve += ["-c", f"unix_socket_directories={home}", "-c", "max_connections=200"]
    create = [f"{binaries}/createdb", "-h", str(home), "-U", user, "clickloop"]

    def is_there() -> bool:
        return subprocess.run(create, check=False, stderr=subprocess.DEVNULL).returncode == 0

    with _running(serve, folder / "postgres.log", is_there, signal.SIGINT, cwd=home, **rights):
        yield f"postgresql+psycopg://{user}@/clickloop?host={home}"


@contextmanager
def _objects(port: int, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """An S3 endpoint with a bucket; what it holds is in its memory."""

    def is_there() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    command = [PYTHON, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, folder / "objects.log", is_there, signal.SIGTERM, env=environment):
        make = "import sys, s3fs; s3fs.S3FileSystem().makedirs(sys.argv[1], exist_ok=True)"
        subprocess.run([PYTHON, "-c", make, BUCKET], env=environment, check=True)
        yield


@contextmanager
def _running(
    command: list[str], log: Path, is_there: Callable[[], bool], last_signal: int, **options: Any
) -> Iterator[None]:
    """A process that ends with the block, or with this process."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, preexec_fn=lambda: _LIBC.prctl(1, last_signal), **options
        )
    try:
        end = time.monotonic() + START_S
        while not is_there():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{command[0]} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        process.send_signal(last_signal)
        process.wait(20)


if __name__ == "__main__":
    sys.exit(main())
