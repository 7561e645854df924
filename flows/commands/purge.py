"""purge annotator, campaign and image: forget for good; purge list: what was purged.

Writes to the database itself, also beside a running `serve`: short transactions, from the trusted side.
"""

import argparse
import getpass
import sys
from typing import TYPE_CHECKING, Any

from flows.commands.options import Nouns, command, group, settings_of
from flows.commands.terminal import Terminal, table
from schemas.errors import BadInputError

if TYPE_CHECKING:
    from schemas.catalogue import TombstoneRecord


def register(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    verbs = group(nouns, "purge", "forget for good what must not be kept")
    parser = command(verbs, common, "annotator", annotator, "remove a name and its tokens; the pseudonym stays")
    parser.add_argument("name", metavar="NAME", help="name or pseudonym")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    for name, text in (
        ("campaign", "remove a campaign with its work, embeddings and adapters; image files and exports stay"),
        ("image", "remove an image with its work and embeddings; its file and exports stay"),
    ):
        parser = command(verbs, common, name, data, text)
        parser.add_argument("name", metavar="NAME", help="campaign")
        if name == "image":
            parser.add_argument("image", metavar="IMAGE", help="its number or id")
        parser.add_argument("--yes", action="store_true", help="do not ask")
        parser.add_argument("--dry-run", action="store_true", help="say what would be removed")
        parser.set_defaults(image=None)
    parser = command(verbs, common, "list", list_, "list what was purged")
    parser.add_argument("name", metavar="NAME", nargs="?", help="only of this campaign")


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


def data(args: argparse.Namespace) -> int:
    """Remove a campaign or one of its images."""
    from flows.services import reading
    from pipeline.storage import purge
    from pipeline.storage.files import telling

    settings, terminal = settings_of(args), Terminal.of(args)
    with reading(settings) as database, telling(f"Removing files from {settings.resolved_storage_url}"):
        with database.connect() as conn:
            scope = purge.find_scope(conn, args.name, args.image)
            counts, holding = purge.count(conn, scope), purge.holding_snapshots(conn, scope)
        if args.dry_run:
            lines = [*_counted("WOULD BE REMOVED", counts), *_held(holding)]
            terminal.result({"dry_run": True, "counts": counts, "snapshots": holding}, lines)
            return 0
        if not args.yes:
            what = f"image {args.image} of campaign" if args.image else "campaign"
            work = ", ".join(f"{counts.get(kind, 0)} {kind}" for kind in ("images", "sessions", "events", "masks"))
            _confirm(f"Remove {what} {scope.campaign.name!r} for good, with {work}?")
        found = purge.purge(
            database,
            scope,
            settings.resolved_storage_url,
            purged_by=getpass.getuser(),
            cache_dir=str(settings.workspace.resolve() / "cache"),
            work_dir=str(settings.workspace.resolve() / "training"),
            progress=lambda facts: terminal.progress({"step": "purge", **facts}),
        )
    lines = [*_counted("REMOVED", found.counts), *_held(found.snapshots)]
    terminal.result({"dry_run": False, **found.model_dump(mode="json")}, lines)
    return 0


def list_(args: argparse.Namespace) -> int:
    """List the tombstones."""
    from flows.services import reading
    from pipeline.storage.tombstones import tombstones

    with reading(settings_of(args)) as database, database.connect() as conn:
        found = [t for t in tombstones(conn) if args.name in (None, t.campaign_name, t.campaign_id)]
    rows = [(t.campaign_name, t.image_number or "all", _state(t), t.purged_by, _counts(t)) for t in found]
    lines = table(("CAMPAIGN", "IMAGE", "STATE", "BY", "REMOVED"), rows) if rows else ["Nothing was purged."]
    lines += [f"{t.what} is half purged: `{t.command}` goes on with it." for t in found if t.state == "running"]
    Terminal.of(args).result([t.model_dump(mode="json") for t in found], lines)
    return 0


def _state(tombstone: "TombstoneRecord") -> str:
    if tombstone.finished_at is None:
        return "half done"
    again = ", admitted again" if tombstone.readmitted_at else ""
    return tombstone.finished_at.isoformat("T", "seconds") + again


def _counts(tombstone: "TombstoneRecord") -> str:
    return ", ".join(f"{number} {kind}" for kind, number in tombstone.counts.items())


def _counted(head: str, counts: dict[str, int]) -> list[str]:
    return table((head, "ROWS"), list(counts.items()))


def _held(snapshots: list[dict[str, Any]]) -> list[str]:
    """Which exports hold the data still."""
    if not snapshots:
        return ["No exported snapshot holds any of it."]
    lines = ["These exported snapshots hold some of it still, and stay; delete them yourself:"]
    for snapshot in snapshots:
        paths = snapshot["paths"] or ["(where it was written is not known)"]
        lines += [f"  snapshot {snapshot['number']}: {path}" for path in paths]
    return lines


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
