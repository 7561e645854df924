"""gc: remove what nothing refers to, and weights and snapshot entries that nobody will ask for again."""

import argparse
from datetime import timedelta

from flows.commands.options import Nouns, command, days, positive_int, settings_of
from flows.commands.terminal import Terminal, table


def register(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    text = "remove embeddings that no campaign needs, partial files, and weights and snapshot entries of no more use"
    parser = command(nouns, common, "gc", collect, text)
    parser.add_argument("--dry-run", action="store_true", help="say what would be removed")
    parser.add_argument("--older-than", type=days, default=1, metavar="DAYS", help="leave younger files (default: 1)")
    parser.add_argument(
        "--weights-older-than",
        type=days,
        default=30,
        metavar="DAYS",
        help="leave adapters, models and retrains' snapshots that are younger or were live since (default: 30)",
    )
    parser.add_argument(
        "--keep-promoted",
        type=positive_int,
        default=3,
        metavar="N",
        help="earlier adapters to keep for rolling back (default: 3)",
    )


def collect(args: argparse.Namespace) -> int:
    """Remove what is of no use, also beside a running `serve`."""
    from flows.services import reading
    from pipeline.storage import garbage, old_snapshots, old_weights
    from pipeline.storage.files import telling

    settings, age = settings_of(args), timedelta(days=args.older_than)
    storage, training = settings.resolved_storage_url, settings.workspace.resolve() / "training"
    with reading(settings) as database, telling(f"Looking through {storage}"):
        done = garbage.collect(database, storage, older_than=age, dry_run=args.dry_run)
        mirrored = training / "mirrored"
        if mirrored.is_dir():
            own = garbage.collect(database, str(mirrored), older_than=age, dry_run=args.dry_run)
            for kind, more in own.items():
                done[kind].files += more.files
                done[kind].size_bytes += more.size_bytes
        weights = old_weights.collect_weights(
            database,
            storage,
            older_than=timedelta(days=args.weights_older_than),
            keep_promoted=args.keep_promoted,
            dry_run=args.dry_run,
        )
        entries = old_snapshots.collect_entries(
            database,
            older_than=timedelta(days=args.weights_older_than),
            gone=[one.name for one in weights if one.kind == "adapters"],
            dry_run=args.dry_run,
        )
        weights += old_weights.collect_checkpoints(database, training, dry_run=args.dry_run)
    for kind in ("adapters", "models", "checkpoints"):
        sizes = [one.size_bytes for one in weights if one.kind == kind]
        done[kind] = garbage.Garbage(files=len(sizes), size_bytes=sum(sizes))
    done["snapshot_entries"] = garbage.Garbage(files=entries)
    freed = sum(found.size_bytes for found in done.values())
    rows = [(kind, found.files, found.size_bytes) for kind, found in done.items()]
    head = "WOULD BE REMOVED" if args.dry_run else "REMOVED"
    lines = table((head, "NUMBER", "BYTES"), [*rows, ("all", sum(found.files for found in done.values()), freed)])
    if weights:
        lines += [
            "",
            *table(("NAME", "BYTES", "WHY"), [(one.name[:12], one.size_bytes, one.reason) for one in weights]),
        ]
    facts = {
        "dry_run": args.dry_run,
        "kinds": {kind: found.model_dump() for kind, found in done.items()},
        "weights": [one.model_dump() for one in weights],
        "freed_bytes": freed,
    }
    Terminal.of(args).result(facts, lines)
    return 0
