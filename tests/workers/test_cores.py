"""Heavy roles take turns while people click, and a greedy one starves nobody."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

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
    monkeypatch.setattr(cores, "_noted_at", float("-inf"))
    cores.note_click()


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


def test_nobody_clicking_needs_no_turns() -> None:
    long_ago = time.time() - 2 * cores.QUIET_S
    os.utime(cores._path("click"), (long_ago, long_ago))
    with cores.heavy_turn(), cores.heavy_turn():
        pass
    cores._path("click").unlink()  # nobody has ever clicked
    with cores.heavy_turn(), cores.heavy_turn():
        pass


def test_a_click_is_noted_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    path = cores._path("click")
    os.utime(path, (1, 1))
    cores.note_click()
    assert path.stat().st_mtime == 1, "noted a moment ago"
    monkeypatch.setattr(cores, "_NOTE_EVERY_S", 0.0)
    cores.note_click()
    assert time.time() - path.stat().st_mtime < 10


def test_a_click_goes_on_where_it_cannot_be_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    monkeypatch.setattr(cores, "_NOTE_EVERY_S", 0.0)
    cores.note_click()
    assert not cores._path("click").exists()
