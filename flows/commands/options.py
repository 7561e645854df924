"""What the commands share: settings from the arguments, option types, access to the workspace."""

import argparse
import json
import logging
import math
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schemas.errors import BadInputError
from schemas.logs import log_plainly
from schemas.settings import Settings

Run = Callable[[argparse.Namespace], int]
Nouns = Any
"""argparse's sub-parsers action, whose class is private."""


def settings_of(args: argparse.Namespace, **overrides: Any) -> Settings:
    """Settings from the environment and the arguments that override them; sets up logging."""
    given = {name: value for name, value in overrides.items() if value is not None}
    if args.workspace is not None:
        if not args.workspace:
            raise BadInputError("--workspace is empty, as from a variable that is not set. Give a folder.")
        given["workspace"] = Path(args.workspace)
    settings = Settings(**given)
    level = logging.DEBUG if settings.log_level.upper() == "DEBUG" else logging.WARNING
    log_plainly(logging.WARNING, "%(levelname)s %(name)s: %(message)s")
    for package in ("schemas", "pipeline", "workers", "flows"):
        logging.getLogger(package).setLevel(level)
    return settings


def command(
    nouns: Nouns, common: argparse.ArgumentParser, name: str, run: Run, help_text: str
) -> argparse.ArgumentParser:
    """Add one command; its parser, to add options to."""
    parser: argparse.ArgumentParser = nouns.add_parser(
        name, parents=[common], help=help_text, description=help_text[0].upper() + help_text[1:] + "."
    )
    parser.set_defaults(run=run)
    return parser


def group(nouns: Nouns, name: str, help_text: str) -> Nouns:
    """Add a noun with verbs; where to add them."""
    return nouns.add_parser(name, help=help_text).add_subparsers(dest="verb", required=True, metavar="VERB")


def positive_int(text: str) -> int:
    """Option type: an integer from 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return value


def days(text: str) -> int:
    """Option type: days, at most a century (dates end)."""
    value = positive_int(text)
    if value > 36_500:
        raise argparse.ArgumentTypeError(f"{text} days are more than a century")
    return value


def number(text: str) -> float:
    """Option type: a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a number")
    return value


def fraction(text: str) -> float:
    """Option type: a number in [0, 1]."""
    value = number(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def check_writable(out: str | None) -> None:
    """Refuse a file of --out that could not be written, before the work that it is to hold is done.

    Raises:
        BadInputError: Its folder is not there or may not be written, or it is a folder itself.
    """
    if out is None:
        return
    path = Path(out)
    if path.is_dir():
        raise BadInputError(f"--out {out} is a folder. Name a file.")
    if not path.parent.is_dir():
        raise BadInputError(f"The folder of --out {out} does not exist.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadInputError(f"--out {out} may not be written. Check the permissions, or name another file.")


def partial_of(out: str | None) -> Path | None:
    """Where the work that --out is to hold is kept until it is done."""
    return None if out is None else Path(f"{out}.partial")


def write_out(out: str | None, record: Any) -> None:
    """Write what --out is to hold as JSON; what was kept until then goes."""
    kept = partial_of(out)
    if out is None or kept is None:
        return
    Path(out).write_text(json.dumps(record, indent=2) + "\n")
    kept.unlink(missing_ok=True)


def utc_time(text: str) -> str:
    """Option type: an ISO date or time as an ISO time with its zone; UTC unless it says another."""
    try:
        value = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no date or time such as 2026-11-28T09:30") from error
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
