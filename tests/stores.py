"""Google's and Azure's object stores for tests: an emulator of each, and a server that refuses or is silent.

Use: `from tests.stores import az_container, gs_bucket, gs_server  # noqa: F401`.
"""

import json
import shutil
import sys
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import adlfs
import gcsfs.core
import pytest

from tests.conftest import need
from tests.s3 import free_port, running

AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of the account that every Azurite has; no secret."""


def azure_environment(url: str) -> dict[str, str]:
    """What points adlfs to a server at a URL."""
    facts = ["DefaultEndpointsProtocol=http", "AccountName=devstoreaccount1", f"AccountKey={AZURE_KEY}"]
    return {"AZURE_STORAGE_CONNECTION_STRING": ";".join([*facts, f"BlobEndpoint={url}/devstoreaccount1"])}


def google_environment(url: str) -> dict[str, str]:
    """What points gcsfs to a server at a URL, without looking for credentials."""
    return {"STORAGE_EMULATOR_HOST": url, "NO_GCE_CHECK": "true"}


@pytest.fixture(scope="session")
def gs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an emulator of Google Cloud Storage."""
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port", str(port)]
    with running([*command, "--in-memory"], port, tmp_path_factory.mktemp("gs") / "log"):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def gs_bucket(gs_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """gs:// URL of a new, empty bucket; the environment points gcsfs to its server."""
    for name, value in google_environment(gs_server).items():
        monkeypatch.setenv(name, value)
    gcsfs.core.GCSFileSystem.clear_instance_cache()
    name = f"test-{uuid.uuid4().hex[:12]}"
    gcsfs.core.GCSFileSystem(project="test").mkdir(name)
    yield f"gs://{name}"
    gcsfs.core.GCSFileSystem.clear_instance_cache()


@pytest.fixture
def az_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """az:// URL of a new, empty container in an Azurite (npm install azurite), where there is one."""
    azurite = shutil.which("azurite-blob")
    need("azurite", azurite is not None, "azurite-blob is not on the PATH")
    port = free_port()
    command = [str(azurite), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"]
    with running([*command, "--skipApiVersionCheck", "--disableTelemetry"], port, tmp_path / "azurite.log"):
        for name, value in azure_environment(f"http://127.0.0.1:{port}").items():
            monkeypatch.setenv(name, value)
        adlfs.AzureBlobFileSystem.clear_instance_cache()
        name = f"test-{uuid.uuid4().hex[:12]}"
        adlfs.AzureBlobFileSystem().mkdir(name)
        yield f"az://{name}"
        adlfs.AzureBlobFileSystem.clear_instance_cache()


class Refusing:
    """A server that answers every request with the same status, cuts it off, or is silent.

    Attributes:
        url: Of the server.
        requests: How many came.
    """

    def __init__(self, answer: int | str) -> None:
        """Begin.

        Args:
            answer: An HTTP status, "cut" or "silent".
        """
        self.requests = 0
        self._end = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def refuse(self) -> None:
                outer.requests += 1
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.close_connection = True
                if isinstance(answer, str):
                    outer._end.wait(60 if answer == "silent" else 0)
                    return
                is_google = "devstoreaccount1" not in self.path
                google = json.dumps({"error": {"code": answer, "message": "Refused by the test."}})
                azure = "<Error><Code>RefusedByTheTest</Code><Message>Refused by the test.</Message></Error>"
                body = (google if is_google else azure).encode()
                self.send_response(answer)
                self.send_header("Content-Type", "application/json" if is_google else "application/xml")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = refuse

            def log_message(self, format: str, *args: Any) -> None:
                """Keep stderr quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """End the server, and whoever waits for it."""
        self._end.set()
        self._server.shutdown()
        self._server.server_close()
