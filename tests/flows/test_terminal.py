"""What commands print."""

import json

import pytest

from flows.commands.terminal import Terminal, progress_line, table


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
