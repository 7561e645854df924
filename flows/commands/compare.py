"""compare: models and adapters side by side on one data set, quality and costs."""

import argparse
import functools
from pathlib import Path
from typing import Any

from flows.commands.options import (
    Nouns,
    check_writable,
    command,
    fraction,
    partial_of,
    positive_int,
    settings_of,
    write_out,
)
from flows.commands.terminal import Terminal, table
from schemas.evaluation import Comparison

_COLUMNS = ("MODEL", "WEIGHTS", "PARAMS M", "LEARN M", "ENC GMAC", "CLICK GMAC", "ENC MS", "CLICK MS", "PEAK MIB")


def register(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = command(nouns, common, "compare", compare, "compare models and adapters on one data set")
    parser.add_argument("models", nargs="+", metavar="ID[=CHECKPOINT][+ADAPTER]", help="see `model list`")
    parser.add_argument("--data", metavar="COCO.json", required=True, help="ground truth; or NAME:DIR (grabcut, ...)")
    parser.add_argument("--images", metavar="DIR", help="folder of a COCO file's images")
    parser.add_argument("--target", type=fraction, action="append", metavar="IOU", help="repeatable (0.85, 0.90)")
    parser.add_argument("--max-clicks", type=positive_int, default=20, metavar="N", help="per object (20)")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="the first N objects only")
    parser.add_argument("--no-flip", action="store_true", help="don't average with the mirrored image")
    parser.add_argument("--misled", action="store_true", help="also with 5 of the clicks repeated or of the wrong sign")
    parser.add_argument("--random-weights", action="store_true", help="where no weights ship: costs only")
    parser.add_argument("--threads", type=positive_int, default=1, metavar="N", help="torch threads (1)")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and misleading clicks (0)")
    parser.add_argument("--out", metavar="FILE", help="write the figures as JSON; a stopped run goes on (FILE.partial)")
    parser.add_argument("--plot", metavar="FILE", help="draw mean IoU against clicks (.png, .svg, .pdf)")


def compare(args: argparse.Namespace) -> int:
    """Measure each model in a process of its own and print one table."""
    terminal = Terminal.of(args)
    settings_of(args)
    check_writable(args.out)
    from pipeline.data.benchmarks import check_samples, open_samples, state_of
    from pipeline.evaluation.compare import CompareOptions, parse_entry
    from pipeline.evaluation.compare import compare as run
    from pipeline.evaluation.plot import check_plot_path, plot_comparison

    if args.plot:
        check_plot_path(Path(args.plot))
    options = CompareOptions(
        targets=tuple(args.target or (0.85, 0.90)), max_clicks=args.max_clicks, limit=args.limit,
        flip=not args.no_flip, misled=args.misled, seed=args.seed, threads=args.threads,
        random_weights=args.random_weights, data=str(args.data),
        keep=partial_of(args.out), identity=state_of(args.data),
    )  # fmt: skip
    check_samples(open_samples(args.data, args.images), args.limit)  # told before a process is started
    entries = [parse_entry(text) for text in args.models]
    done = run(entries, functools.partial(open_samples, args.data, args.images), options, terminal.progress)
    records = [one.model_dump(mode="json") for one in done]
    terminal.result(records, _lines(done))
    write_out(args.out, records)
    if args.plot:
        plot_comparison(done, Path(args.plot))
    return 0


def _lines(done: list[Comparison]) -> list[str]:
    costs = [
        (
            one.name, one.weights, f"{one.costs.parameters / 1e6:.2f}", f"{one.costs.learnable / 1e6:.2f}",
            *(_figure(value) for value in (
                one.costs.encode_gmacs, one.costs.refine_gmacs, one.costs.encode_ms, one.costs.click_ms,
                one.costs.peak_mib,
            )),
        )
        for one in done
    ]  # fmt: skip
    rows = []
    for one in done:
        for label, report in (("", one.report), (", misled", one.misled)):
            if report is not None:
                per_target = [f"{_figure(report.noc[t])} ({report.nof[t]})" for t in report.noc]
                shown = [report.miou_at.get(k) for k in ("1", "3", "5")] + [report.biou_at.get("5")]
                rows.append((one.name + label, *per_target, *(_figure(value, 4) for value in shown)))
    first = done[0].report
    quality = ("MODEL", *(f"NoC@{t} (NoF)" for t in first.noc), "mIoU@1", "mIoU@3", "mIoU@5", "bIoU@5")
    lines = [*table(_COLUMNS, costs), "", *table(quality, rows), "", f"{first.samples} objects of {first.data}"]
    if any(one.weights == "random" for one in done):
        lines.append("Random weights: costs are those of the architecture, NoC says nothing.")
    return lines


def _figure(value: Any, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
