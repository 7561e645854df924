"""What commands print."""

import contextlib
import json
import os
import sys
from pathlib import Path

import pytest

from flows.cli import main
from flows.commands.terminal import Terminal, progress_line, table
from pipeline.storage import campaigns
from pipeline.storage.database import open_database


def test_a_progress_line_reads_as_a_sentence_without_ids() -> None:
    facts = {"step": "encode", "done": 3, "total": 10, "images_per_s": 33.333333, "snapshot_id": "x", "paused": None}
    assert progress_line(facts) == "encode 3/10, images per s 33.33"
    assert progress_line({"step": "create"}) == "create"


def test_progress_goes_to_stderr_and_results_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(as_json=True)
    terminal.progress({"step": "encode", "done": 1})
    terminal.progress({"step": "encode", "done": 1})
    terminal.result({"n": 1}, ["one"])
    out, err = capsys.readouterr()
    assert json.loads(out) == {"n": 1}
    assert [json.loads(line) for line in err.splitlines()] == [{"step": "encode", "done": 1}]


def test_waiting_is_shown_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(as_json=False)
    for facts in (
        {"done": 1},
        {"done": 2},
        {"done": 2, "waiting_for": "the storage: refused"},
        {"done": 3},
        {"done": 4},
    ):
        terminal.progress({"step": "encode", **facts})
    assert capsys.readouterr().err.splitlines() == [
        "encode 1",
        "encode 2, waiting for the storage: refused",
        "encode 3",
    ]


def test_columns_of_a_table_line_up() -> None:
    assert table(("A", "LONG"), [("xyz", 1.0), ("y", None)]) == ["A    LONG", "xyz  1", "y    -"]


def test_what_libraries_print_stays_out_of_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def chatty(conn: object) -> list[object]:
        sys.stdout.write("a node died\n")
        return []

    open_database(f"sqlite:///{tmp_path / 'clickloop.db'}").close()
    monkeypatch.setattr(campaigns, "list_campaigns", chatty)
    assert main(["campaign", "list", "--json", "--workspace", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == []
    assert "a node died" in said.err


def test_work_goes_on_when_nobody_reads_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    gone = os.fdopen(writing, "w")
    monkeypatch.setattr(sys, "stderr", gone)
    terminal = Terminal(as_json=False)
    terminal.progress({"done": 1, "total": 3})
    terminal.note("A remark.")
    monkeypatch.undo()
    with contextlib.suppress(BrokenPipeError):
        gone.close()  # tries once more
