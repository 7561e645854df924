"""Heavy roles take turns, and a greedy one starves nobody."""

import subprocess
import sys
import threading
import time

import pytest

from workers import cores

HOLDER = """
import sys, time
from workers import cores
cores.FEW_CORES = 10**6
with cores.heavy_turn():
    print("held", flush=True)
    time.sleep(1000)
"""


@pytest.fixture(autouse=True)
def _few_cores(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(cores, "FEW_CORES", 10**6)
    folder = str(tmp_path_factory.mktemp("locks"))
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr("tempfile.tempdir", None)


def test_a_greedy_loop_lets_the_other_role_in() -> None:
    stop = threading.Event()
    inside = []

    def greedy() -> None:
        while not stop.is_set():
            with cores.heavy_turn():
                inside.append("greedy")
                time.sleep(0.01)

    thread = threading.Thread(target=greedy)
    thread.start()
    try:
        while not inside:
            time.sleep(0.001)
        for _ in range(5):
            before = len(inside)
            with cores.heavy_turn():
                assert len(inside) - before <= 3, "waited for more than the turn that ran"
    finally:
        stop.set()
        thread.join()


def test_a_killed_holder_gives_its_turn_back() -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    taken = threading.Event()

    def take() -> None:
        with cores.heavy_turn():
            taken.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert not taken.wait(0.2), "two turns at once"
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert taken.wait(10)
    thread.join()


def test_plenty_of_cores_need_no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "FEW_CORES", 1)
    with cores.heavy_turn(), cores.heavy_turn():
        pass
