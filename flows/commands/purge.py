"""purge annotator: forget who somebody is, and keep what they did.

Writes to the database itself, also beside a running `serve`: one short transaction, from the trusted side.
"""

import argparse
import sys

from flows.commands.options import Nouns, command, group, settings_of
from flows.commands.terminal import Terminal
from schemas.errors import BadInputError


def register(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    verbs = group(nouns, "purge", "forget for good what must not be kept")
    parser = command(verbs, common, "annotator", annotator, "remove a name and its tokens; the pseudonym stays")
    parser.add_argument("name", metavar="NAME", help="name or pseudonym")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def annotator(args: argparse.Namespace) -> int:
    """Remove an annotator's identity."""
    from flows.services import reading, small_write
    from pipeline.storage import annotators

    settings = settings_of(args)
    if not args.yes:
        with reading(settings) as database, database.connect() as conn:
            annotators.pseudonym_of(conn, args.name)
        _confirm(f"Forget annotator {args.name!r} and their tokens for good?")
    with small_write(settings) as database, database.begin() as conn:
        pseudonym, tokens = annotators.purge_annotator(conn, args.name)
    lines = [f"The name is gone, {tokens} token{'' if tokens == 1 else 's'} with it; the work stays under {pseudonym}."]
    Terminal.of(args).result({"pseudonym": pseudonym, "tokens": tokens}, lines)
    return 0


def _confirm(question: str) -> None:
    """Ask on the terminal.

    Raises:
        BadInputError: The answer is not yes, or nobody can be asked.
    """
    if not sys.stdin.isatty():
        raise BadInputError("This cannot be undone, and there is no terminal to ask on. Say --yes.")
    sys.stderr.write(f"{question} It cannot be undone. [yes/no] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() != "yes":
        raise BadInputError("Nothing was purged: the answer was not yes.")
