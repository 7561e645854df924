"""NoC of a model against classical graph cut with the same robot user, objects and images, in one run.

python benchmarks/noc.py [--model ID] [--data DIR ...] [--split val] [--limit N] [--no-graph-cut]

DIR holds images/ and annotations.json. Without --data the photographs of the demo are used (they are easy: whole
objects, some drawn with the help of a threshold); quote figures of your own data. bIoU is the boundary IoU, spoilt the
share of the object that a click makes wrong, |score| the mean error of the IoU that the model states. After several
data sets comes the mean over them.
"""

import argparse
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.clicks.simulate import next_click
from pipeline.data.coco import CocoSample, read_coco
from pipeline.evaluation.metrics import iou, noc, nof
from pipeline.evaluation.run import evaluate
from pipeline.models import load_model
from schemas.evaluation import NocReport

DEMO_TRUTH = Path(__file__).resolve().parent.parent / "flows" / "demo_data" / "annotations.json"
WIDTHS = (7, 7, 7, 6, 7, 7, 7, 7, 7, 7, 13, 6, 6)
SIDE = 320
"""Longest side that graph cut works at, to keep its time bearable."""


def graph_cut(image: NDArray[np.uint8], seeds: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """GrabCut from clicked disks: seeds are 1 sure object, 0 sure background, 3 unknown."""
    state = seeds.copy()
    if not (seeds == cv2.GC_BGD).any():
        state[0, :] = state[-1, :] = state[:, 0] = state[:, -1] = cv2.GC_BGD
        state[seeds == cv2.GC_FGD] = cv2.GC_FGD
    cv2.setRNGSeed(0)
    cv2.grabCut(image, state, None, np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_MASK)
    return np.isin(state, (cv2.GC_FGD, cv2.GC_PR_FGD))


def graph_cut_curve(image: NDArray[np.uint8], gt: NDArray[np.int8], target: float, max_clicks: int = 20) -> list[float]:
    """IoU after each click of the robot user."""
    scale = min(1.0, SIDE / max(gt.shape))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    size = (gt.shape[1], gt.shape[0])
    seeds = np.full(small.shape[:2], cv2.GC_PR_BGD, np.uint8)
    mask, clicked, ious = np.zeros(gt.shape, np.bool_), np.zeros(gt.shape, np.bool_), list[float]()
    for _ in range(max_clicks):
        click = next_click(gt, mask, clicked)
        if click is None:
            break
        clicked[int(click.y), int(click.x)] = True
        value = cv2.GC_FGD if click.is_positive else cv2.GC_BGD
        cv2.circle(seeds, (int(click.x * scale), int(click.y * scale)), 3, value, -1)
        if (seeds == cv2.GC_FGD).any():
            cut = graph_cut(small, seeds).astype(np.uint8)
            mask = cv2.resize(cut, size, interpolation=cv2.INTER_LINEAR) > 0
        ious.append(iou(gt, mask))
        if ious[-1] >= target:
            break
    return ious


def data_sets(folders: Iterable[Path]) -> list[tuple[str, Path, Path]]:
    """(name, annotations, images) of each folder, or of the demo."""
    found = [(f.name, f / "annotations.json", f / "images") for f in folders]
    if found:
        return found
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit("Without --data this needs scikit-image (pip install 'clickloop[demo]').")
    return [("demo photographs", DEMO_TRUTH, Path(spec.origin).parent / "data")]


def objects(annotations: Path, images: Path, split: str | None, min_area: int, limit: int | None) -> list[CocoSample]:
    """A data set's objects of so many pixels; at most so many of them, evenly over the list."""
    samples = [s for s in read_coco(annotations, images, split) if (s.read_gt() == 1).sum() >= min_area]
    if not limit or len(samples) <= limit:
        return samples
    return [samples[i] for i in np.linspace(0, len(samples) - 1, limit).astype(int)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--split")
    parser.add_argument("--limit", type=int, help="objects per data set, spread evenly")
    parser.add_argument("--min-area", type=int, default=0, help="leave out smaller objects (pixels)")
    parser.add_argument("--no-graph-cut", action="store_true")
    args = parser.parse_args()
    model = load_model(args.model, checkpoint=args.checkpoint)
    print(f"{args.model}, flip off, at most 20 clicks, threshold 0.49; graph cut at {SIDE} px with disks of radius 3")
    figures = (
        "objects",
        "NoC@85",
        "NoC@90",
        "NoF@90",
        "mIoU@1",
        "mIoU@3",
        "mIoU@5",
        "bIoU@5",
        "spoilt",
        "|score|",
        "graph cut @90",
        "ratio",
        "s",
    )
    print(f"{'data':24} " + " ".join(name.rjust(width) for name, width in zip(figures, WIDTHS, strict=True)))
    reports = list[NocReport]()
    for name, annotations, images in data_sets(args.data):
        samples = objects(annotations, images, args.split, args.min_area, args.limit)
        if not samples:
            print(f"{name:24} {'none':>7}")
            continue
        began = time.perf_counter()
        report = evaluate(model, samples, (0.85, 0.90), flip=False, data=name)
        seconds = time.perf_counter() - began
        reports.append(report)
        row = f"{name:24} {report.samples:7d} {report.noc['85']:7.2f} {report.noc['90']:7.2f} {report.nof['90']:6d}"
        row += "".join(f" {report.miou_at[clicks]:7.3f}" for clicks in ("1", "3", "5"))
        row += f" {report.biou_at['5']:7.3f} {report.spoilt or 0:7.3f} {report.score_error or 0:7.3f}"
        if args.no_graph_cut:
            print(f"{row} {'-':>13} {'-':>6} {seconds:6.0f}", flush=True)
            continue
        curves = [graph_cut_curve(s.read_image(), s.read_gt(), 0.90) for s in samples]
        cut = noc(curves, 0.90, 20)
        print(f"{row} {cut:8.2f} ({nof(curves, 0.90, 20):2d}) {report.noc['90'] / cut:6.2f} {seconds:6.0f}", flush=True)
    if len(reports) > 1:
        clicks = " ".join(f"{np.mean([own.noc[target] for own in reports]):7.2f}" for target in ("85", "90"))
        ious = " ".join(f"{np.mean([own.miou_at[k] for own in reports]):7.3f}" for k in ("1", "3", "5"))
        failed = sum(own.nof["90"] for own in reports)
        print(f"{'mean over the sets':24} {sum(own.samples for own in reports):7d} {clicks} {failed:6d} {ious}")


if __name__ == "__main__":
    main()
