"""What the commands print: results on stdout, progress on stderr, for people or (with --json) for programs."""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, TextIO

PROGRESS_S = 5.0
"""Seconds between two progress lines where the terminal cannot overwrite one."""


class Terminal:
    """Prints for one command.

    Args:
        as_json: One JSON document on stdout and JSON lines of progress on stderr, instead of text.
        out: Where results go; None: stdout.
    """

    def __init__(self, as_json: bool, out: TextIO | None = None) -> None:
        self.as_json = as_json
        self._out = out or sys.stdout
        self._overwrites = sys.stderr.isatty() and not as_json
        self._shown = ""
        self._shown_at = 0.0
        self._waits = False

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Terminal":
        """The terminal that a command's arguments ask for."""
        return cls(bool(getattr(args, "json", False)), getattr(args, "results", None))

    def result(self, record: Any, lines: Iterable[str] = ()) -> None:
        """The command's result: the record as JSON, or the lines."""
        self.end_progress()
        if self.as_json:
            self._out.write(json.dumps(record, default=str, indent=2) + "\n")
        else:
            self._out.write("".join(f"{line}\n" for line in lines))
        self._out.flush()

    def progress(self, facts: dict[str, Any]) -> None:
        """How far the work is; repeated facts are shown once, and what it begins to wait for at once."""
        text = json.dumps(facts, default=str) if self.as_json else progress_line(facts)
        now, waits = time.monotonic(), "waiting_for" in facts
        is_soon = now - self._shown_at < PROGRESS_S and waits == self._waits
        if not facts or text == self._shown or (is_soon and not self._overwrites):
            return
        self._waits = waits
        _tell(f"\r\x1b[K{text[:160]}" if self._overwrites else f"{text}\n")
        self._shown, self._shown_at = text, now

    def note(self, text: str) -> None:
        """A remark for people, on stderr."""
        self.end_progress()
        if not self.as_json:
            _tell(f"{text}\n")

    def end_progress(self) -> None:
        """Leave the line that progress was overwriting."""
        if self._overwrites and self._shown:
            _tell("\n")
        self._shown = ""


def _tell(text: str) -> None:
    """To stderr; work goes on when nobody reads there any more (`2>&1 | head`, a window that was closed)."""
    with suppress(BrokenPipeError):
        sys.stderr.write(text)
        sys.stderr.flush()


def progress_line(facts: dict[str, Any]) -> str:
    """`step 3/10, other 5` from {"step": ..., "done": 3, "total": 10, "other": 5}; ids are for programs."""
    rest = {name: value for name, value in facts.items() if not name.endswith("_id") and value is not None}
    head = str(rest.pop("step", ""))
    if "done" in rest:
        head = f"{head} {rest.pop('done')}" + (f"/{rest.pop('total')}" if rest.get("total") else "")
    rest.pop("total", None)
    return ", ".join(filter(None, [head.strip(), *(f"{k.replace('_', ' ')} {_short(v)}" for k, v in rest.items())]))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Columns of text, left-aligned, two spaces apart."""
    cells = [list(headers), *([_short(cell) if cell is not None else "-" for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
