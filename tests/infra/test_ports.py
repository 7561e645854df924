"""`infra/loopback.py` beside somebody who listens on its ports."""

import socket
import subprocess
import sys

from tests.infra.files import INFRA


def test_a_port_that_is_taken_is_named_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = [sys.executable, str(INFRA / "loopback.py"), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{port}: Address already in use." in done.stderr
    assert "--port" in done.stderr and done.stdout == ""
