"""`clickloop <noun> <verb>`: parses, calls the command, turns errors into one line and an exit code.

0: done. 1: the work failed. 2: wrong usage or bad input. 130: interrupted. 143: terminated. A traceback is shown only
with CLICKLOOP_LOG_LEVEL=DEBUG. The commands live in `flows.commands`; they import what is heavy (torch, Ray, Prefect)
only when they run, and this module imports them only in `main`: Ctrl-C in the first second ends it as quietly as later.
"""

import argparse
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

logger = logging.getLogger(__name__)

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
TERMINATED = 143
"""As shells say it: 128 and the number of the signal."""


class TerminatedError(BaseException):
    """SIGTERM, of which Python would die at once: a job is put back, and what was only for a while is cleared away."""


class Parser(argparse.ArgumentParser):
    """argparse with one line of error and help of a fixed width."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", lambda prog: argparse.HelpFormatter(prog, width=110, max_help_position=32))
        kwargs["allow_abbrev"] = False
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit 2."""
        self.exit(BAD_INPUT, f"{self.prog}: {message.rstrip('.')}. See {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole tool."""
    from flows.commands import (
        active,
        adapters,
        admin,
        backups,
        campaigns,
        compare,
        garbage,
        imports,
        label,
        models,
        purge,
        serving,
        snapshots,
        tokens,
        work,
    )
    from schemas.version import own_version

    parser = Parser(prog="clickloop", description="Label images by clicks, retrain behind a gate, export.")
    parser.add_argument("--version", action="version", version=f"clickloop {own_version()}")
    common = Parser(add_help=False)
    common.add_argument("--workspace", metavar="DIR", help="folder of database and storage (.clickloop)")
    common.add_argument("--json", action="store_true", help="print JSON")
    nouns = parser.add_subparsers(dest="noun", required=True, metavar="COMMAND")
    modules = (
        serving, campaigns, imports, work, active, label, adapters, snapshots, models, compare, tokens, purge, garbage,
        backups, admin,
    )  # fmt: skip
    for module in modules:
        module.register(nouns, common)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    try:
        return _run(argv)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except TerminatedError:
        return _complain("terminated", TERMINATED)


def run() -> NoReturn:
    """The process of one command."""
    _open_what_is_closed()
    signal.signal(signal.SIGTERM, _terminate)
    status = main()
    if "prefect" in sys.modules:
        from schemas.logs import end_now

        end_now(status)  # the job's end is written: Prefect and Ray would take seconds to end in order
    sys.exit(status)


def _open_what_is_closed() -> None:
    """Give standard streams that were closed (`>&-`) to /dev/null: else the next files that are opened become them."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - as long as the process lives


def _run(argv: Sequence[str] | None) -> int:
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from schemas.errors import BadInputError, ClickloopError, NotFoundError

    args = build_parser().parse_args(argv)
    args.results = sys.stdout
    try:
        with redirect_stdout(sys.stderr):  # libraries print there, too: Ray does when a node dies
            return int(args.run(args))
    except (BadInputError, NotFoundError) as error:
        return _complain(error.message, BAD_INPUT)
    except ClickloopError as error:
        return _complain(error.message, FAILED)
    except UnicodeEncodeError as error:
        if error.reason != "surrogates not allowed":
            return _complain(f"{type(error).__name__}: {error}"[:500], FAILED)
        return _complain("A name or path is not valid UTF-8. Rename what it names, or give another.", BAD_INPUT)
    except (ValidationError, SettingsError) as error:
        return _complain(_settings_line(error), BAD_INPUT)
    except BrokenPipeError:
        sys.stderr.close()
        return FAILED
    except Exception as error:
        logger.debug("the command failed", exc_info=True)
        return _complain(f"{type(error).__name__}: {error}"[:500], FAILED)


def _terminate(number: int, frame: object) -> NoReturn:
    raise TerminatedError


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"clickloop: {' '.join(str(message).split())}\n")
    return code


def _settings_line(error: "ValidationError | SettingsError") -> str:
    from pydantic import ValidationError

    from schemas.errors import problem_of

    if isinstance(error, ValidationError):
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        return f"Setting CLICKLOOP_{name}: {problem_of(first)} (got {first['input']!r})."
    field = re.search(r'field "(\w+)"', str(error))
    name = field[1].upper() if field else "?"
    return f'Setting CLICKLOOP_{name}: a list is written as JSON, such as ["a", "b"].'


if __name__ == "__main__":
    run()
