"""gc: remove from the storage what nothing refers to."""

import argparse
from datetime import timedelta

from flows.commands.options import Nouns, command, positive_int, settings_of
from flows.commands.terminal import Terminal, table


def register(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = command(nouns, common, "gc", collect, "remove embeddings that no campaign needs, and partial files")
    parser.add_argument("--dry-run", action="store_true", help="say what would be removed")
    parser.add_argument(
        "--older-than", type=positive_int, default=1, metavar="DAYS", help="leave younger files (default: 1)"
    )


def collect(args: argparse.Namespace) -> int:
    """Remove what is of no use, also beside a running `serve`."""
    from flows.services import reading
    from pipeline.storage import garbage

    settings = settings_of(args)
    with reading(settings) as database:
        age = timedelta(days=args.older_than)
        done = garbage.collect(database, settings.resolved_storage_url, older_than=age, dry_run=args.dry_run)
    rows = [(kind, found.files, found.size_bytes) for kind, found in done.items()]
    facts = {kind: found.model_dump() for kind, found in done.items()}
    head = "WOULD BE REMOVED" if args.dry_run else "REMOVED"
    Terminal.of(args).result({"dry_run": args.dry_run, "kinds": facts}, table((head, "FILES", "BYTES"), rows))
    return 0
