"""prelabel and order: the model proposes masks, and says which images to label first."""

import argparse
from typing import get_args

from flows.commands.jobs import run_job
from flows.commands.options import Nouns, command, fraction, positive_int, settings_of
from flows.commands.terminal import Terminal
from schemas.requests import DEFAULT_MIN_SCORE, OrderBy


def register(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    parser = command(nouns, common, "prelabel", prelabel, "let the model propose masks on images that are still new")
    parser.add_argument("name", metavar="NAME", help="campaign")
    parser.add_argument("--grid", type=positive_int, default=8, metavar="N", help="click N x N places (8)")
    score = f"drop masks that the model thinks less of ({DEFAULT_MIN_SCORE:g})"
    parser.add_argument("--min-score", type=fraction, default=DEFAULT_MIN_SCORE, metavar="S", help=score)
    parser.add_argument("--limit", type=positive_int, metavar="IMAGES", help="look at so many more images (all)")

    parser = command(nouns, common, "order", order, "choose the order in which new images are handed out")
    parser.add_argument("name", metavar="NAME", help="campaign")
    parser.add_argument("--by", choices=get_args(OrderBy), required=True, help="what comes first")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (0)")


def prelabel(args: argparse.Namespace) -> int:
    """Propose masks."""
    settings, terminal = settings_of(args), Terminal.of(args)
    payload = {"grid": args.grid, "min_score": args.min_score, "limit": args.limit}
    result = run_job(settings, terminal, "prelabel", args.name, payload)
    lines = [f"{result['proposals']} proposals on {result['images']} images, {result['stored']} of them new; "
             f"{result['empty']} images without any, {result['failed']} could not be looked at."]  # fmt: skip
    lines += [f"    {name}: {reason}" for name, reason in result["reasons"].items()]
    terminal.result(result, lines)
    return 0


def order(args: argparse.Namespace) -> int:
    """Set priorities."""
    settings, terminal = settings_of(args), Terminal.of(args)
    result = run_job(settings, terminal, "order", args.name, {"by": args.by, "seed": args.seed})
    lines = [f"{result['tasks']} tasks ordered by {result['score']}, seed {result['seed']}."]
    if result["first"]:
        lines.append(f"First: {', '.join(result['first'])}.")
    if result["failed"]:
        lines.append(f"{result['failed']} images could not be looked at and come last.")
    terminal.result(result, lines)
    return 0
