"""snapshot list and verify."""

import argparse

from flows.commands.options import Nouns, command, group, settings_of
from flows.commands.terminal import Terminal, table
from flows.commands.work import absolute_url


def register(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    verbs = group(nouns, "snapshot", "check exported snapshots")
    parser = command(verbs, common, "verify", verify, "check an exported snapshot against its manifest")
    parser.add_argument("url", metavar="URL", help="folder or bucket prefix that holds manifest.json")
    command(verbs, common, "list", list_, "list the snapshots of a campaign").add_argument("name", metavar="NAME")


def verify(args: argparse.Namespace) -> int:
    """Check counts, digests and RLE sizes; 1 when something is wrong."""
    from pipeline.export.verify import verify_snapshot
    from pipeline.storage.files import telling

    terminal = Terminal.of(args)
    settings_of(args)
    with telling(f"Reading {args.url}"):
        report = verify_snapshot(absolute_url(args.url))
    record = report.model_dump(mode="json")
    since = "" if report.since_snapshot is None else f", what changed since snapshot {report.since_snapshot}"
    terminal.result(record, [f"{'ok' if report.ok else 'DAMAGED'}: {args.url}{since}", *report.problems])
    return 0 if report.ok else 1


def list_(args: argparse.Namespace) -> int:
    """List the snapshots, and which exports were never written whole."""
    from flows.services import reading
    from pipeline.storage import campaigns, changes, snapshots

    with reading(settings_of(args)) as database, database.connect() as conn:
        campaign_id = campaigns.get_campaign(conn, args.name).id
        records = snapshots.list_snapshots(conn, campaign_id)
        written = changes.written_snapshots(conn, campaign_id)
    rows = []
    for r in records:
        purpose = r.purpose if r.id in written or r.purpose != "export" else "unfinished export"
        rows.append((r.number, purpose, r.images, r.masks, r.created_at.isoformat("T", "seconds")))
    lines = table(("NUMBER", "PURPOSE", "IMAGES", "MASKS", "CREATED"), rows) if rows else ["No snapshots."]
    Terminal.of(args).result([r.model_dump(mode="json") | {"written": r.id in written} for r in records], lines)
    return 0
