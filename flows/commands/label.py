"""simulate and replay: clicks without people, and the check of what people's clicks gave."""

import argparse
from pathlib import Path

from flows.commands.options import Nouns, command, fraction, positive_int, settings_of
from flows.commands.terminal import Terminal
from flows.temporary_server import serving
from schemas.errors import BadInputError


def register(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    parser = command(nouns, common, "simulate", simulate, "let simulated annotators label a campaign through the API")
    parser.add_argument("name", metavar="NAME", help="campaign")
    parser.add_argument("--truth", metavar="COCO.json", required=True, help="what they know; by file name")
    parser.add_argument("--annotators", type=positive_int, default=1, metavar="N", help="how many at once (1)")
    parser.add_argument("--target", type=fraction, default=0.90, metavar="IOU", help="accept at this IoU (0.90)")
    parser.add_argument("--max-clicks", type=positive_int, default=20, metavar="N", help="accept after so many (20)")
    parser.add_argument("--false-clicks", type=fraction, default=0.0, metavar="P", help="share with the wrong sign (0)")
    parser.add_argument("--repeat-clicks", type=fraction, default=0.0, metavar="P", help="share sent twice (0)")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="stop after so many images")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of what is random (0)")

    parser = command(nouns, common, "replay", replay, "recompute masks from the event log, compare with the stored")
    parser.add_argument("name", metavar="NAME", help="campaign")
    parser.add_argument("--session", metavar="ID", help="this session only")


def simulate(args: argparse.Namespace) -> int:
    """Label with simulated annotators, through the running `serve` or a temporary one."""
    settings, terminal = settings_of(args), Terminal.of(args)
    truth = Path(args.truth)
    if not truth.is_file():
        raise BadInputError(f"Ground truth {truth} {'is not a file' if truth.exists() else 'does not exist'}.")
    from flows.services import reading
    from pipeline.storage import campaigns

    with reading(settings) as database, database.connect() as conn:
        campaign = campaigns.get_campaign(conn, args.name)
    from workers.annotator import run_annotators

    with serving(settings) as server:
        report = run_annotators(
            server.url,
            campaign.id,
            truth,
            annotators=args.annotators,
            target=args.target,
            max_clicks=args.max_clicks,
            false_clicks=args.false_clicks,
            repeat_clicks=args.repeat_clicks,
            seed=args.seed,
            limit=args.limit,
            token=server.token,
            progress=lambda facts: terminal.progress({"step": "simulate", **facts}),
        ).to_json()
    lines = [f"{name.replace('_', ' '):<18}{value}" for name, value in report.items()]
    terminal.result(report, lines)
    return 1 if report["errors"] else 0


def replay(args: argparse.Namespace) -> int:
    """Check the log against the stored masks; 1 when one differs."""
    settings, terminal = settings_of(args), Terminal.of(args)
    from flows.services import reading
    from pipeline.storage import campaigns

    with reading(settings) as database:
        with database.connect() as conn:
            campaign = campaigns.get_campaign(conn, args.name)
        from flows.replay import replay as run

        report = run(settings, database, campaign, args.session, terminal.progress)
    lines = [
        f"{report.identical} of {report.masks} masks and {report.events_identical} of {report.events} logged digests "
        f"are identical ({report.sessions} sessions, {report.seconds:.1f} s)."
    ]
    if report.purged:
        lines.append(f"{report.purged} sessions were purged: nothing is left of them to check.")
    for miss in report.mismatches:
        why = miss.reason or (f"other {', '.join(miss.differs)}" if miss.differs else "though all pins agree")
        lines.append(
            f"{miss.what} {miss.id} differs: " + (f"IoU {miss.iou:.4f}, " if miss.iou is not None else "") + why
        )
    terminal.result(report.model_dump(mode="json"), lines)
    return 0 if report.ok else 1
