"""import and propose: masks that other tools made, and those of near-duplicates."""

import argparse
from pathlib import Path
from typing import Any

from flows.commands.jobs import run_job
from flows.commands.options import Nouns, command, fraction, settings_of
from flows.commands.terminal import Terminal, table
from flows.commands.work import absolute_url
from schemas.errors import BadAnnotationsError
from schemas.requests import IMPORT_FORMATS


def register(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    parser = command(nouns, common, "import", import_, "take over masks from files of other tools, to correct them")
    parser.add_argument("name", metavar="NAME", help="campaign")
    parser.add_argument("source", metavar="URL", help="file or folder; images are found by their names")
    parser.add_argument("--format", choices=IMPORT_FORMATS, help="what it is (default: by what is there)")
    parser.add_argument("--category", default="object", metavar="NAME", help="of an instance-map's instances (object)")
    least = "leave out what scores lower, 0 to 1; of coco-results (0)"
    parser.add_argument("--min-score", type=fraction, metavar="S", help=least)
    parser.add_argument(
        "--trusted", action="store_true", help="they count as they are (default: once somebody has accepted them)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what is there")

    parser = command(nouns, common, "propose", propose, "propose the masks of labelled images to their near-duplicates")
    parser.add_argument("name", metavar="NAME", help="campaign")


def import_(args: argparse.Namespace) -> int:
    """Store masks, or only count them."""
    settings, terminal = settings_of(args), Terminal.of(args)
    payload = {
        "source": annotations_url(args.source),
        "format": args.format,
        "category": args.category,
        "min_score": args.min_score,
        "trusted": args.trusted,
        "look": args.dry_run,
    }
    result = run_job(settings, terminal, "import", args.name, payload)
    lines = imported(result, stores=not args.dry_run)
    if args.dry_run:
        lines.append("Nothing was stored: leave --dry-run out to store them.")
    terminal.result(result, lines)
    return 0


def annotations_url(text: str) -> str:
    """As `absolute_url`; a path where nothing is, is told before Prefect starts, which takes seconds.

    Raises:
        BadAnnotationsError: Nothing is there.
    """
    url = absolute_url(text)
    if "://" not in url and not Path(url).exists():
        raise BadAnnotationsError(f"There are no annotations at {url!r}. Give a file or a folder.")
    return url


def propose(args: argparse.Namespace) -> int:
    """Store proposals."""
    settings, terminal = settings_of(args), Terminal.of(args)
    result = run_job(settings, terminal, "propose", args.name, {})
    lines = [f"{result['stored']} masks proposed on {result['images']} images."]
    if result["other_size"]:
        lines.append(f"left out {result['other_size']} images: what is labelled like them has another size")
    terminal.result(result, lines)
    return 0


def imported(report: dict[str, Any], *, stores: bool = True) -> list[str]:
    """What an import found, as lines; how many are new is known only of one that stores them."""
    total = sum(report["masks"].values())
    if not total and not report["dropped"]:
        return ["Nothing was found there: no object of any class."]
    new = f", {report['stored']} of them new" if stores else ""
    lines = [
        f"{total} masks on {report['images']} images{new}; "
        f"least IoU with what is stored {report['round_trip_iou']:.4f}."
    ]
    if report["masks"]:
        lines += table(("CATEGORY", "MASKS"), [(name, str(count)) for name, count in report["masks"].items()])
    if report["changed"]:
        lines.append(f"{report['changed']} that were there got their category from the source, or count now.")
    lines += [f"left as they were {count}: {reason}" for reason, count in report["kept"].items()]
    for reason, count in report["dropped"].items():
        lines.append(f"left out {count}: {reason}")
        lines += [f"    {where}" for where in report["examples"][reason]]
    return lines
