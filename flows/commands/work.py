"""precompute, retrain and export of a campaign."""

import argparse
from pathlib import Path
from typing import get_args

from flows.commands.jobs import run_job
from flows.commands.options import Nouns, command, fraction, number, positive_int, settings_of, utc_time
from flows.commands.terminal import Terminal
from schemas.campaigns import TaskState
from schemas.errors import BadInputError
from schemas.requests import ADAPTER_KINDS, FORMATS


def register(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    parser = command(nouns, common, "precompute", precompute, "encode every image that is not encoded yet")
    parser.add_argument("name", metavar="NAME", help="campaign")

    parser = command(nouns, common, "retrain", retrain, "train an adapter on the accepted masks, promote a better one")
    parser.add_argument("name", metavar="NAME", help="campaign")
    kinds = f"what is trained: {', '.join(ADAPTER_KINDS)} (by model and number of masks)"
    parser.add_argument("--adapter", metavar="KIND", choices=ADAPTER_KINDS, help=kinds)
    parser.add_argument(
        "--minutes", type=number, metavar="M", help="train for so long at most (10 to 30, by the masks)"
    )
    parser.add_argument(
        "--steps", type=positive_int, metavar="N", help="train for so many steps at most (300 to 900, likewise)"
    )
    parser.add_argument("--promote", choices=["auto", "never"], default="auto", help="what to do when the gate agrees")

    parser = command(nouns, common, "export", export, "write a snapshot of the accepted masks")
    parser.add_argument("name", metavar="NAME", help="campaign")
    parser.add_argument("--to", metavar="URL", required=True, help="folder or bucket prefix to write to")
    parser.add_argument("--format", action="append", choices=FORMATS, help="repeatable (coco and parquet)")
    parser.add_argument("--category", action="append", metavar="NAME", help="only its masks; repeatable (all)")
    parser.add_argument("--annotator", action="append", metavar="NAME", help="only theirs; repeatable (all)")
    parser.add_argument("--since", type=utc_time, metavar="TIME", help="only masks accepted from then on; ISO, UTC")
    parser.add_argument("--until", type=utc_time, metavar="TIME", help="only masks accepted before then; ISO, UTC")
    states = "only images whose task is so; repeatable (all)"
    parser.add_argument("--state", action="append", choices=get_args(TaskState), help=states)
    parser.add_argument("--sure", action="store_true", help="no masks that an annotator flagged as unsure")
    least = "no masks whose model states a lower IoU than this, 0 to 1; what no model made stays"
    parser.add_argument("--min-score", type=fraction, metavar="S", help=least)
    parser.add_argument("--val", type=fraction, metavar="SHARE", help="share of the images to validate on, 0 to 1 (0)")
    parser.add_argument("--test", type=fraction, metavar="SHARE", help="share of the images to test on, 0 to 1 (0)")
    parser.add_argument("--images", choices=["embedded", "uri"], help="copy image files or name them (embedded)")
    since = "write only what changed since this one (number or id), as coco or parquet"
    parser.add_argument("--since-snapshot", metavar="SNAPSHOT", help=since)


def precompute(args: argparse.Namespace) -> int:
    """Encode what is missing."""
    settings, terminal = settings_of(args), Terminal.of(args)
    result = run_job(settings, terminal, "precompute", args.name, {})
    if result.get("skipped"):
        terminal.result(result, [result["skipped"]])
        return 0
    lines = [f"{result['encoded']} images encoded in {result['seconds']:.1f} s ({result['images_per_s']:.1f}/s), "
             f"{result['already']} were there already, {result['quarantined']} quarantined."]  # fmt: skip
    terminal.result(result, lines)
    return 0


def retrain(args: argparse.Namespace) -> int:
    """Train an adapter and let the gate decide."""
    settings, terminal = settings_of(args), Terminal.of(args)
    chosen = {"adapter": args.adapter, "promote": args.promote, "minutes": args.minutes, "steps": args.steps}
    payload = {name: value for name, value in chosen.items() if value is not None}
    result = run_job(settings, terminal, "retrain", args.name, payload)
    lines = [f"{result['outcome']}: {'; '.join(result['reasons'])}"]
    if result.get("digest"):
        lines.insert(0, f"Adapter {result['digest'][:12]} from snapshot {result['snapshot']}.")
    if result.get("unreadable"):
        lines.append(f"Images left out, since their files are gone or changed: {result['unreadable']}.")
    terminal.result(result, lines)
    return 0


def export(args: argparse.Namespace) -> int:
    """Write a snapshot."""
    settings, terminal = settings_of(args), Terminal.of(args)
    chosen = {
        "to": absolute_url(args.to),
        "formats": list(dict.fromkeys(args.format or ["coco", "parquet"])),
        "categories": args.category,
        "annotators": args.annotator,
        "since": args.since,
        "until": args.until,
        "states": args.state,
        "sure": args.sure or None,
        "min_score": args.min_score,
        "val": args.val,
        "test": args.test,
        "images": args.images,
        "since_snapshot": args.since_snapshot,
    }
    payload = {name: value for name, value in chosen.items() if value is not None}
    result = run_job(settings, terminal, "export", args.name, payload)
    named = {"clicks": "events of the click log"}
    counts = ", ".join(f"{value} {named.get(name, name)}" for name, value in result["counts"].items())
    what = f"Snapshot {result['snapshot']}"
    lines = [f"{what}: {counts}.", f"Manifest: {result['manifest_uri']}"]
    if (since := result.get("since_snapshot")) is not None:
        is_empty = not any(result["counts"].values())
        lines[0] = f"{what}: nothing changed since {since}." if is_empty else f"{what} since {since}: {counts}."
    terminal.result(result, lines)
    return 0


def absolute_url(text: str) -> str:
    """A path as absolute, since the server may run elsewhere; URLs stay as they are.

    Raises:
        BadInputError: It is empty (a variable that is not set), which is not meant to be the current folder.
    """
    if not text:
        raise BadInputError("A path or URL is empty. Give a folder, or a URL such as s3://bucket/prefix.")
    return text if "://" in text else str(Path(text).resolve())
