"""`make demo`: the whole loop once on real photographs, through the same commands that a user types.

The photographs are read from the installed scikit-image package; the masks in `demo_data/annotations.json` are ours.
With --data DIR it takes DIR/images and DIR/annotations.json instead. Each step prints its command, the end a table.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flows.client import find_server
from flows.demo_pictures import save_pictures
from flows.temporary_server import serving
from pipeline.storage.lock import WorkspaceLock
from schemas.errors import BadInputError, ClickloopError
from schemas.settings import Settings

CAMPAIGN = "demo"
TRUTH = Path(__file__).with_name("demo_data") / "annotations.json"
WORKSPACE = Path(".clickloop/demo")
MADE = ".made-by-demo"
"""In a workspace that the demo made, and so may remove."""
SEED = "2978"
"""Of the hold-out draw, chosen so that 30 of the 58 masks, of 7 images, are held out: the gate does not judge on fewer
than 30 masks or 6 images."""


class Step(ClickloopError):
    """A command of the demo failed."""

    code = "demo_failed"


def clickloop(workspace: Path, *words: str, show: bool = True) -> Any:
    """Run one command as a user would; its JSON.

    Raises:
        Step: It exited with another code than 0.
    """
    if show:
        print(f"\n$ clickloop {' '.join(words)}", flush=True)
    command = [sys.executable, "-m", "flows.cli", *words, "--workspace", str(workspace), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Step(f"clickloop {' '.join(words)} exited with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def own_photographs(target: Path, truth: Path) -> Path:
    """Copy the photographs that the truth names out of scikit-image; the folder they are in.

    Raises:
        BadInputError: scikit-image is not installed.
    """
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise BadInputError("The demo needs the photographs of scikit-image: pip install 'clickloop[demo]'.")
    target.mkdir(parents=True)
    for image in json.loads(truth.read_text())["images"]:
        shutil.copyfile(Path(spec.origin).parent / "data" / image["file_name"], target / image["file_name"])
    return target


def run_loop(workspace: Path, images: Path, truth: Path, annotators: int) -> dict[str, Any]:
    """The loop against a running serve: what each step answered."""
    labels = ",".join(c["name"] for c in json.loads(truth.read_text())["categories"])
    out: dict[str, Any] = {}
    out["create"] = clickloop(
        workspace, "campaign", "create", CAMPAIGN, "--images", str(images), "--labels", labels, "--seed", SEED
    )
    out["precompute"] = clickloop(workspace, "precompute", CAMPAIGN)
    out["simulate"] = clickloop(
        workspace, "simulate", CAMPAIGN, "--truth", str(truth), "--annotators", str(annotators), "--seed", "1"
    )
    out["retrain"] = clickloop(workspace, "retrain", CAMPAIGN, "--minutes", "2")
    export = workspace / "export"
    formats = [word for name in ("coco", "parquet", "png") for word in ("--format", name)]
    out["export"] = clickloop(workspace, "export", CAMPAIGN, "--to", str(export), *formats)
    out["verify"] = clickloop(workspace, "snapshot", "verify", str(export))
    out["replay"] = clickloop(workspace, "replay", CAMPAIGN)
    out["status"] = clickloop(workspace, "campaign", "status", CAMPAIGN, show=False)
    return out


def report(out: dict[str, Any], seconds: float) -> list[tuple[str, str]]:
    """Rows of the closing table."""
    simulate, retrain, status = out["simulate"], out["retrain"], out["status"]
    rows = [
        ("images", f"{status['images']} ({status['holdout_images']} held out)"),
        ("encoded", f"{out['precompute']['encoded']} at {out['precompute']['images_per_s']:.1f} images/s"),
        ("masks accepted", f"{simulate['masks']} by {simulate['annotators']} simulated annotators"),
        ("clicks", f"{simulate['clicks']} ({simulate['clicks'] / max(simulate['masks'], 1):.1f} per mask)"),
        ("click latency", f"p50 {simulate['latency_ms']['p50']:.0f} ms, p95 {simulate['latency_ms']['p95']:.0f} ms"),
        ("NoC@90 on held-out images", f"{_noc90(retrain.get('before'))} before, {_noc90(retrain.get('after'))} after"),
        ("gate", f"{retrain['outcome']}: {'; '.join(retrain['reasons'])}"),
        ("snapshot", f"{out['export']['manifest_uri']}"),
        ("verified", json.dumps(out["verify"].get("counts", out["verify"]))),
        ("replay", json.dumps({k: v for k, v in out["replay"].items() if isinstance(v, int | float)})),
        ("time", f"{seconds:.0f} s"),
    ]
    return rows


def _noc90(summary: dict[str, Any] | None) -> str:
    value = ((summary or {}).get("noc") or {}).get("90")
    return "-" if value is None else f"{value:.2f}"


def main(argv: list[str] | None = None) -> int:
    """Run the demo; its exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description="Run the whole loop once on real photographs.")
    parser.add_argument("--data", type=Path, help="folder with images/ and annotations.json (COCO)")
    parser.add_argument("--workspace", type=Path, default=WORKSPACE, help="made anew at each run")
    parser.add_argument("--annotators", type=int, default=2, help="simulated annotators")
    parser.add_argument("--port", type=int, default=0, help="of the page (0: any free one; 8700 with --serve)")
    parser.add_argument("--serve", action="store_true", help="leave the page running at the end")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server is ended, too
    try:
        return run(args)
    except ClickloopError as error:
        sys.stderr.write(f"demo: {error.message}\n")
        return 2 if isinstance(error, BadInputError) else 1
    except KeyboardInterrupt:
        return 1


def _clear(workspace: Path) -> None:
    """An empty workspace.

    Raises:
        BadInputError: What is there is not the demo's, or cannot be removed.
        WorkspaceLockedError: A command still works in it.
    """
    try:
        if workspace.exists() and any(workspace.iterdir()):
            if not (workspace / MADE).exists() and workspace != WORKSPACE.resolve():
                raise BadInputError(
                    f"{workspace} holds something that the demo did not make. Name another --workspace."
                )
            with WorkspaceLock(workspace):
                shutil.rmtree(workspace)
        workspace.mkdir(parents=True, exist_ok=True)
        (workspace / MADE).touch()
    except OSError as error:
        raise BadInputError(f"{workspace} cannot be made anew: {error.strerror or error}.") from error


def run(args: argparse.Namespace) -> int:
    """Prepare the workspace, run the loop, print the table."""
    workspace, truth = args.workspace.resolve(), TRUTH
    if args.data is not None:
        truth = args.data.resolve() / "annotations.json"
        if not truth.is_file() or not (truth.parent / "images").is_dir():
            raise BadInputError(f"{args.data} needs images/ and annotations.json (COCO).")
    if find_server(Settings(workspace=workspace)) is not None:
        raise BadInputError(f"A server is still running in {workspace}; end it first.")
    _clear(workspace)
    images = truth.parent / "images" if args.data else own_photographs(workspace / "images", truth)
    started = time.monotonic()
    port = args.port or (8700 if args.serve else 0)
    print(f"\n$ clickloop serve --port {port} &", flush=True)
    with serving(Settings(workspace=workspace), port) as client:
        out = run_loop(workspace, images, truth, args.annotators)
        pictures = save_pictures(workspace / "export", images, workspace / "pictures")
        rows = report(out, time.monotonic() - started)
        rows.append(("pictures", f"{len(pictures)} in {workspace / 'pictures'}"))
        width = max(len(name) for name, _ in rows)
        print("\n" + "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows), flush=True)
        if args.serve:
            print(f"\nThe page is at {client.url} (Ctrl+C ends it).", flush=True)
            while client.is_ready() or find_server(Settings(workspace=workspace)) is not None:
                time.sleep(2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
