"""A real S3 endpoint for tests: moto's server in a subprocess, and a new bucket per test.

Use: `from tests.s3 import s3_bucket, s3_server  # noqa: F401` in a conftest.
"""

import ctypes
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import boto3
import fsspec
import pytest
import s3fs


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def free_port() -> int:
    """Of the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: Sequence[str], port: int, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A server of one's own on the loopback, until the block ends."""
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, preexec_fn=_die_with_parent)
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
        else:
            raise AssertionError(f"{command[0]} did not start:\n" + log.read_text())
        yield server
    finally:
        server.terminate()
        server.wait(timeout=10)


@contextmanager
def running_s3(log: Path) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A moto of one's own: its process and port. What is put into it lives in its memory."""
    port = free_port()
    with running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port, log) as server:
        yield server, port


def client_environment(url: str) -> dict[str, str]:
    """What points all clients (of child processes, too) to the server at a URL."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a running server on a free port of the loopback."""
    with running_s3(Path(tmp_path_factory.mktemp("s3") / "log")) as (_, port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """s3:// URL of a new, empty bucket; the environment points all clients (of child processes, too) to the server."""
    for name, value in client_environment(s3_server).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"test-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


def object_names(url: str) -> list[str]:
    """Names of all objects below an s3:// URL, asked anew."""
    fs, root = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return sorted(name.removeprefix(root).lstrip("/") for name in fs.find(root))
