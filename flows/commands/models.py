"""evaluate, predict, model list, model convert and train: what works without a workspace."""

import argparse
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flows.commands.options import (
    Nouns,
    check_writable,
    command,
    fraction,
    group,
    number,
    partial_of,
    positive_int,
    settings_of,
    write_out,
)
from flows.commands.terminal import Terminal, table
from schemas.clicks import Click
from schemas.errors import BadInputError

DEFAULT_TARGETS = (0.85, 0.90)
_OF_COMPACT_RUNS = ("steps", "seed")
_OF_PUBLISHED_RUNS = ("epochs", "epoch_samples", "batch_size", "devices")


def register(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    parser = command(nouns, common, "evaluate", evaluate, "simulate clicks on labelled images and report NoC")
    _model_options(parser)
    parser.add_argument("--data", metavar="COCO.json", required=True, help="ground truth; or NAME:DIR (grabcut, ...)")
    parser.add_argument("--images", metavar="DIR", help="folder of a COCO file's images")
    parser.add_argument(
        "--target-size", type=side, metavar="PX", help="of the crop (DAVIS: 672 with ViTs, 600 with RITM)"
    )
    parser.add_argument("--target", type=fraction, action="append", metavar="IOU", help="repeatable (0.85, 0.90)")
    parser.add_argument("--max-clicks", type=positive_int, default=20, metavar="N", help="per object (20)")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="the first N objects only")
    parser.add_argument("--no-flip", action="store_true", help="don't average with the mirrored image")
    parser.add_argument("--out", metavar="FILE", help="write the report as JSON; a stopped run goes on (FILE.partial)")

    parser = command(nouns, common, "predict", predict, "the mask of some clicks on one image")
    _model_options(parser)
    parser.add_argument("--image", metavar="FILE", required=True)
    parser.add_argument("--click", type=click, action="append", required=True, metavar="X,Y,+|-", help="repeatable")
    parser.add_argument("--no-flip", action="store_true", help="don't average with the mirrored image")
    parser.add_argument("--out", metavar="MASK.png", required=True, help="black and white, 255 inside")

    verbs = group(nouns, "model", "list models and convert checkpoints")
    command(verbs, common, "list", list_, "list the models")
    parser = command(verbs, common, "convert", convert, "write a checkpoint as safetensors")
    parser.add_argument("--from", dest="source", metavar="FILE", required=True)
    parser.add_argument("--to", dest="target", metavar="MODEL.safetensors", required=True)

    parser = command(nouns, common, "train", train, "train a model from a configuration")
    parser.add_argument("config", metavar="CONFIG", help="a run of pipeline/configs: cpu-small, simpleclick-base-sbd")
    parser.add_argument("--data", metavar="DIR", help="folder of training sets with an index.json (drawn scenes alone)")
    parser.add_argument("--out", metavar="DIR", default="runs/latest", help="checkpoints and log (runs/latest)")
    parser.add_argument(
        "--resume", metavar="FILE",
        help="state to continue from, or weights to begin with (published runs: also MAE's encoder, or the host of a "
        "ClickAdapter)",
    )  # fmt: skip
    parser.add_argument("--minutes", type=number, metavar="M", help="stop in time and save")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="instead of the run's")
    own = parser.add_argument_group("runs of the shipped model")
    own.add_argument("--steps", type=positive_int, metavar="N", help="instead of the run's; its decay shrinks along")
    own.add_argument("--seed", type=positive_int, metavar="N", help="other draws, to go on from own weights")
    published = parser.add_argument_group("published runs")
    published.add_argument("--epochs", type=positive_int, metavar="N", help="instead of the paper's")
    published.add_argument("--epoch-samples", type=positive_int, metavar="N", help="samples of an epoch, likewise")
    published.add_argument("--batch-size", type=positive_int, metavar="N", help="over all devices, likewise")
    published.add_argument("--devices", type=positive_int, metavar="N", help="through Ray Train (1)")


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="ID", default="default", help="see `model list`")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights; default: the shipped ones")
    parser.add_argument("--adapter", metavar="FILE", help="adapter trained on these weights")


def click(text: str) -> Click:
    """Option type: `X,Y,+` or `X,Y,-` in image pixels."""
    parts = text.split(",")
    if len(parts) != 3 or parts[2] not in ("+", "-"):
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y,+ or X,Y,-")
    try:
        return Click(x=float(parts[0]), y=float(parts[1]), is_positive=parts[2] == "+")
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def side(text: str) -> int:
    """Option type: a side in pixels; whether it is one that a model divides as it needs to depends on the model."""
    value = positive_int(text)
    if not 64 <= value <= 2048:
        raise argparse.ArgumentTypeError(f"{text} is not from 64 to 2048")
    return value


def _existing(path: str, what: str) -> Path:
    found = Path(path)
    if not path or not found.exists():  # "" is no folder: a variable that is not set
        raise BadInputError(f"{what} {path} does not exist.")
    return found


def _file(path: str, what: str) -> Path:
    found = _existing(path, what)
    if not found.is_file():
        raise BadInputError(f"{what} {path} is not a file.")
    return found


def _load(args: argparse.Namespace) -> Any:
    from pipeline.models import load_model

    checkpoint = _file(args.checkpoint, "Checkpoint") if args.checkpoint is not None else None
    adapter = _file(args.adapter, "Adapter") if args.adapter is not None else None
    return load_model(args.model, checkpoint=checkpoint, adapter=adapter)


def evaluate(args: argparse.Namespace) -> int:
    """Report NoC, NoF, mIoU and boundary IoU of the papers' robot user."""
    terminal = Terminal.of(args)
    settings_of(args)
    check_writable(args.out)
    from pipeline.data.benchmarks import check_samples, open_samples, state_of
    from pipeline.evaluation.run import evaluate as run
    from pipeline.models import default_weights_path, weights_digest

    samples = open_samples(args.data, args.images)
    check_samples(samples, args.limit)
    model = _load(args)
    if args.target_size and args.target_size % 32 and model.input_side is None:
        raise BadInputError(f"--target-size {args.target_size} is not a multiple of 32, as {model.model_id} needs it.")
    report = run(
        model,
        samples,
        targets=tuple(args.target or DEFAULT_TARGETS),
        max_clicks=args.max_clicks,
        limit=args.limit,
        flip=not args.no_flip,
        target_size=(args.target_size, args.target_size) if args.target_size else None,
        checkpoint_sha256=weights_digest(args.checkpoint or default_weights_path(args.model)),
        data=str(args.data),
        progress=terminal.progress,
        keep=partial_of(args.out),
        identity=f"{state_of(args.data)} {weights_digest(args.adapter) if args.adapter else ''}",
    ).model_dump(mode="json")
    terminal.result(report, _report_lines(report))
    write_out(args.out, report)
    return 0


def _report_lines(report: dict[str, Any]) -> list[str]:
    rows = [(f"NoC@{name}", report["noc"][name], report["nof"][name]) for name in report["noc"]]
    last = list(report["miou_at"])[-1]
    return [
        f"{report['model']} on {report['data']}: {report['samples']} objects",
        *table(("", "NoC", "NoF"), rows),
        f"mIoU@1 {report['miou_at']['1']:.4f}, mIoU@{last} {report['miou_at'][last]:.4f}",
        f"{report['spc_ms']:.0f} ms per click",
    ]


def predict(args: argparse.Namespace) -> int:
    """Write the mask of some clicks."""
    terminal = Terminal.of(args)
    settings = settings_of(args)
    path, out = _file(args.image, "Image"), Path(args.out)
    if out.suffix.lower() != ".png" or not out.parent.is_dir():
        raise BadInputError(f"--out {args.out}: expected a .png file in a folder that exists.")
    check_writable(args.out)
    from pipeline.inference.predictor import Predictor
    from pipeline.ingest.decode import decode_image
    from pipeline.masks.png import write_mask

    image, _ = decode_image(path.read_bytes(), settings.max_image_pixels)
    predictor = Predictor(_load(args), flip=not args.no_flip)
    predictor.set_image(image)
    for one in args.click:
        probability = predictor.click(one)
    height, width = image.shape[:2]
    area = write_mask(out, probability > predictor.threshold)
    record = {"out": str(out), "width": width, "height": height, "area": area, "clicks": len(args.click)}
    terminal.result(record, [f"{out}: {area} of {height * width} pixels."])
    return 0


def list_(args: argparse.Namespace) -> int:
    """List the models."""
    from pipeline.models import list_models, outline_of

    records = []
    for model_id in list_models():
        model = outline_of(model_id)  # to draw weights for all of them takes half a minute
        parameters = sum(p.numel() for p in model.parameters())
        records.append({"id": model_id, "cut": model.cut, "parameters": parameters, "input_size": model.input_size})
    rows = [(r["id"], r["cut"], r["parameters"]) for r in records]
    Terminal.of(args).result(records, table(("ID", "CUT", "PARAMETERS"), rows))
    return 0


def convert(args: argparse.Namespace) -> int:
    """Write an official checkpoint as safetensors, naming the model that it is of."""
    source, target = _file(args.source, "Checkpoint"), Path(args.target)
    if target.suffix != ".safetensors" or not target.parent.is_dir():
        raise BadInputError(f"--to {target}: expected a .safetensors file in a folder that exists.")
    from pipeline.models import convert_checkpoint

    model_id = convert_checkpoint(source, target)
    Terminal.of(args).result({"model": model_id, "out": str(target)}, [f"{source} is {model_id}; wrote {target}."])
    return 0


def train(args: argparse.Namespace) -> int:
    """Train a model: one of our runs, or one that a paper published."""
    settings_of(args)
    logging.getLogger("pipeline.training").setLevel(logging.INFO)
    data = _existing(args.data, "Training data") if args.data is not None else None
    resume = _file(args.resume, "Checkpoint") if args.resume is not None else None
    from pipeline.configs.fdrn_compact import RUNS
    from pipeline.configs.published import PUBLISHED

    if args.minutes is not None and args.minutes <= 0:
        raise BadInputError(f"--minutes {args.minutes:g} is no time to train. Give more than 0.")
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise BadInputError(f"--out {out} is a file. Name a folder.")
    state = out / "state.pt"
    if state.exists() and (resume is None or not resume.samefile(state)):
        raise BadInputError(
            f"{out} holds the state of an earlier training, which this one would replace. Go on from it with "
            f"--resume {state}, or name another folder by --out."
        )
    if args.config in PUBLISHED:
        _refuse(args, _OF_COMPACT_RUNS)
        result = _train_published(args, data, out, resume)
    elif args.config in RUNS:
        _refuse(args, _OF_PUBLISHED_RUNS)
        result = _train_compact(args, data, out, resume)
    else:
        raise BadInputError(f"Unknown configuration {args.config!r}. Known: {', '.join([*sorted(RUNS), *PUBLISHED])}.")
    lines = [f"{name:<12}{value}" for name, value in result.items()]
    if not result["finished"]:
        lines.append(f"To go on: --resume {state}")
    Terminal.of(args).result(result, lines)
    return int(result["interrupted"])


def _refuse(args: argparse.Namespace, names: tuple[str, ...]) -> None:
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
    if given:
        raise BadInputError(f"{args.config} does not take {', '.join(given)}. See `clickloop train --help`.")


def _train_compact(args: argparse.Namespace, data: Path | None, out: Path, resume: Path | None) -> dict[str, Any]:
    from pipeline.configs.fdrn_compact import RUNS, export, on_device
    from pipeline.configs.fdrn_compact import train as run

    chosen = RUNS[args.config](*([args.steps] if args.steps else []))
    if args.seed is not None:
        chosen = replace(chosen, train=replace(chosen.train, seed=args.seed))
    if args.device is not None:
        chosen = on_device(chosen, args.device)
    done = run(chosen, data, out, resume, args.minutes)
    weights = out / f"{chosen.train.model_id}.safetensors"
    export(chosen, done.state_path, weights)
    return asdict(done) | {"weights": weights}


def _train_published(args: argparse.Namespace, data: Path | None, out: Path, resume: Path | None) -> dict[str, Any]:
    from pipeline.configs.published import PUBLISHED, train_published

    if data is None:
        raise BadInputError(f"{args.config} needs its data set: --data DIR (its own layout, or a COCO-format folder).")
    run = PUBLISHED[args.config]()
    if resume is None and run.train.model_id.startswith("clickadapter-"):
        raise BadInputError(
            f"{args.config} trains beside a frozen host, which must have learned: give its weights by --resume."
        )
    changed: dict[str, Any] = {
        name: value
        for name, value in (
            ("epochs", args.epochs), ("epoch_samples", args.epoch_samples), ("batch_size", args.batch_size),
            ("device", args.device), ("bfloat16", True if args.device == "cuda" else None),
        )
        if value is not None
    }  # fmt: skip
    run = replace(run, train=replace(run.train, **changed))
    if args.devices is not None and args.devices > 1:
        from workers.distributed import train_on_devices

        done = train_on_devices(
            run, data.resolve(), out.resolve(), args.devices, resume, args.device == "cuda", args.minutes
        )
    else:
        done = train_published(run, data, out, resume, args.minutes)
    return asdict(done) | {"weights": out / f"{run.train.model_id}.safetensors"}
