"""The runs of a long benchmark: each in a process of its own, each a line of a file (`--out`), so that a benchmark that
was stopped goes on where it was."""

import json
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

Row = dict[str, Any]
Task = TypeVar("Task")


def found_runs(out: Path | None, settings: Row) -> list[Row]:
    """Runs of a file that were made with the same settings (`row["settings"]`); none without a file."""
    if out is None or not out.exists():
        return []
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return [row for row in rows if row.get("settings") == settings]


def missing(rows: Iterable[Row], names: Sequence[str], asked: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Those keys of `asked`, values of the columns `names`, that no row has."""
    done = {tuple(row[name] for name in names) for row in rows}
    return [key for key in asked if key not in done]


def add_runs(
    rows: list[Row],
    run: Callable[[Task], Row],
    tasks: Sequence[Task],
    jobs: int,
    out: Path | None,
    describe: Callable[[Row], str],
) -> None:
    """Carry out tasks, `jobs` at a time; each is added to rows and file, and told, as soon as it is done."""
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        for row in pool.imap(run, tasks):
            rows.append(row)
            print(describe(row), flush=True)
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
