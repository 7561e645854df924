"""Whether retraining on the clicks that annotators made helps, beside clicks simulated at the accepted masks.

A simulated annotator with human faults clicks N masks of the train split on the shipped model: off the middle of the
error, sometimes a second time close by, and with the wrong sign in one click of ten; who is not done after `PATIENCE`
clicks takes the brush. Two adapters are trained on the accepted masks (the truth) with the same draws: one on
simulated clicks alone, one that follows the recorded clicks and strokes where it can (`--share` of the trajectories).
Both and the live model then meet the same annotator on held-out objects, whose faults are drawn by object and click, so
that all three get the same ones; and the careful robot of the papers.

    python benchmarks/real_clicks.py --data DIR [--masks 100] [--seeds 3] [--steps 300] [--out FILE]

Prints NoC@90 of each seed, then the change from simulated to recorded clicks with its 95 % interval (paired bootstrap
over images, objects averaged over seeds). `--out` lets a stopped run go on.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from adapter_gain import read_split
from learning_curve import MASKS_PER_IMAGE, draw
from numpy.typing import NDArray

from pipeline.adapters.evaluate import choose_objects
from pipeline.adapters.gate import GateConfig, paired_bootstrap
from pipeline.adapters.kinds import adapted
from pipeline.adapters.scenes import AdapterImage, AdapterTarget
from pipeline.adapters.source import CachedSource
from pipeline.adapters.steps import AdapterConfig
from pipeline.adapters.train import train_adapter
from pipeline.clicks.simulate import next_click
from pipeline.data.coco import read_image
from pipeline.evaluation.metrics import clicks_to_reach, iou
from pipeline.inference.predictor import Predictor
from pipeline.masks.rle import rle_to_mask
from pipeline.models import load_model
from pipeline.models._base import InteractiveModel
from schemas.clicks import Click
from schemas.predictions import Edit

CLICKS = 20
TARGET = 0.9
AIM = 0.15
"""Standard deviation of the place of a click, as a share of the square root of the object's area."""
HESITATES = 0.1
WRONG = 0.1
PATIENCE = 8
"""Clicks after which a person paints."""
MAX_STROKES = 4
ROBOT, PERSON = "robot", "person"
RECORDED = "recorded"


class Person:
    """An annotator with faults; the same ones for the same seed, whatever the model shows."""

    def __init__(self, seed: Sequence[int], truth: NDArray[np.bool_]) -> None:
        self._rng = np.random.default_rng(seed)
        self._truth = truth
        self._spread = AIM * float(np.sqrt(truth.sum()))
        self._last: Click | None = None

    def next_click(self, mask: NDArray[np.bool_], clicked: NDArray[np.bool_]) -> Click | None:
        """Where the robot would click, as a person does it."""
        dx, dy = self._rng.normal(0, self._spread, 2)
        hesitates, wrong = self._rng.random(2)
        aimed = next_click(self._truth, mask, clicked)
        if aimed is None:
            return None
        at = self._last if self._last is not None and hesitates < HESITATES else aimed
        height, width = self._truth.shape
        x, y = float(np.clip(at.x + dx, 0, width - 1)), float(np.clip(at.y + dy, 0, height - 1))
        is_inside = bool(self._truth[int(y), int(x)])  # people see on which side of the edge they are
        self._last = Click(x=x, y=y, is_positive=is_inside != bool(wrong < WRONG))
        return self._last


class Robot:
    """The papers' robot user."""

    def __init__(self, truth: NDArray[np.bool_]) -> None:
        self._truth = truth

    def next_click(self, mask: NDArray[np.bool_], clicked: NDArray[np.bool_]) -> Click | None:
        """In the middle of the largest error."""
        return next_click(self._truth, mask, clicked)


def label(
    predictor: Predictor, truth: NDArray[np.bool_], who: Person | Robot, most: int = CLICKS
) -> Iterator[tuple[Click, NDArray[np.bool_]]]:
    """Click an object until its IoU is reached; each click with the mask after it."""
    predictor.reset()
    mask, clicked = np.zeros(truth.shape, np.bool_), np.zeros(truth.shape, np.bool_)
    for _ in range(most):
        click = who.next_click(mask, clicked)
        if click is None:
            return
        clicked[int(click.y), int(click.x)] = True
        mask = predictor.click(click) > predictor.threshold
        yield click, mask
        if iou(truth, mask) >= TARGET:
            return


def strokes(truth: NDArray[np.bool_], mask: NDArray[np.bool_]) -> Iterator[dict[str, Any]]:
    """Payloads of the strokes that mend a mask: each along the largest error, as thick as that, until all is well."""
    mask = mask.copy()
    for _ in range(MAX_STROKES):
        if iou(truth, mask) >= TARGET:
            return
        _, labels, stats, _ = cv2.connectedComponentsWithStats((truth != mask).view(np.uint8))
        error = labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])
        depth = cv2.distanceTransform(np.pad(error, 1).view(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        radius = float(depth.max())
        points = np.argwhere(depth >= 0.5 * radius)[:, ::-1]  # x, y
        along = (points - points.mean(0)) @ np.linalg.svd(points - points.mean(0), full_matrices=False)[2][0]
        parts = np.array_split(points[np.argsort(along)], min(5, len(points)))
        polyline = np.array([part.mean(0) for part in parts])
        is_positive = bool(truth[error][0])
        painted = np.zeros(mask.shape, np.uint8)
        cv2.polylines(painted, [polyline.round().astype(np.int32)], False, 1, max(1, round(2 * radius)))
        mask[painted > 0] = is_positive
        yield {"v": 1, "polyline": polyline.tolist(), "radius": radius, "is_positive": is_positive}


def with_clicks(predictor: Predictor, image: AdapterImage, seed: int) -> AdapterImage:
    """An image whose masks were labelled by a person on this model."""
    predictor.set_image(read_image(Path(image.ref.uri)))
    targets = []
    for target in image.targets:
        truth = rle_to_mask(target.rle)
        made = list(label(predictor, truth, Person((seed, int(target.mask_id)), truth), PATIENCE))
        payloads = [("click", {"v": 1, "x": c.x, "y": c.y, "is_positive": c.is_positive}) for c, _ in made]
        payloads += [("brush", payload) for payload in strokes(truth, made[-1][1])]
        edits = tuple(Edit(kind=kind, payload=payload, payload_sha256="") for kind, payload in payloads)
        targets.append(replace(target, edits=edits))
    return replace(image, targets=tuple(targets))


def clicks_needed(
    model: InteractiveModel, objects: Sequence[tuple[AdapterImage, AdapterTarget]]
) -> dict[str, list[int]]:
    """NoC@90 by object, for both annotators."""
    predictor = Predictor(model)
    found: dict[str, list[int]] = {ROBOT: [], PERSON: []}
    shown = ""
    for image, target in objects:
        if image.ref.uri != shown:
            shown = image.ref.uri
            predictor.set_image(read_image(Path(shown)))
        truth = rle_to_mask(target.rle)
        for name, who in ((ROBOT, Robot(truth)), (PERSON, Person((0, int(target.mask_id)), truth))):
            curve = [iou(truth, mask) for _, mask in label(predictor, truth, who)]
            found[name].append(clicks_to_reach(curve, TARGET, CLICKS))
    return found


def run(name: str, share: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One training (share below 0: none) and what it needs on held-out objects."""
    model = load_model(options.model, checkpoint=options.checkpoint)
    limits = (MASKS_PER_IMAGE, options.min_area)
    objects = choose_objects(read_split(options.data, "val", 10_000, *limits), options.objects)
    objects.sort(key=lambda pair: pair[0].ref.uri)
    row: dict[str, Any] = {"name": name, "seed": seed, "groups": [image.group for image, _ in objects]}
    candidate = model
    if share >= 0:
        predictor = Predictor(model)
        chosen = draw(read_split(options.data, "train", 10_000, *limits), options.masks, seed)
        chosen = [with_clicks(predictor, image, 1 + seed) for image in chosen]
        source = CachedSource(model, lambda image: read_image(Path(image.ref.uri)), max_bytes=2_000_000_000)
        config = AdapterConfig(
            kind=options.kind or model.default_adapter(options.masks),
            seed=seed,
            max_steps=options.steps,
            max_minutes=options.minutes,
            recorded_share=share,
        )
        with tempfile.TemporaryDirectory() as folder:
            result = train_adapter(model, chosen, source, config, Path(folder) / "checkpoint")
        edits = [edit.kind for image in chosen for target in image.targets for edit in target.edits]
        row |= {"steps": result.steps, "clicks": edits.count("click"), "strokes": edits.count("brush")}
        candidate = adapted(model, result.tensors)
    return row | clicks_needed(candidate, objects)


def describe(row: dict[str, Any]) -> str:
    """One run as a line."""
    means = "  ".join(f"NoC@90 {who} {np.mean(row[who]):6.2f}" for who in (ROBOT, PERSON))
    text = f"{row['name']:10} seed {row['seed']}  {means}"
    if "steps" in row:
        text += f"  {row['steps']} steps, {row['clicks']} clicks and {row['strokes']} strokes recorded"
    return text


def change(rows: Sequence[dict[str, Any]], who: str) -> str:
    """From simulated to recorded clicks."""
    without, followed = (
        np.mean([row[who] for row in rows if row["name"] == name], axis=0) for name in ("simulated", RECORDED)
    )
    interval = paired_bootstrap(followed - without, rows[0]["groups"], GateConfig(), np.random.default_rng(0))
    mean = float(np.mean(followed - without))
    return f"{who}: {mean:+.2f} clicks with recorded ones, 95 % interval {interval.low:+.2f} to {interval.high:+.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of a COCO set with train and val splits")
    parser.add_argument("--model", default="default")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--masks", type=int, default=100)
    parser.add_argument("--objects", type=int, default=150, help="held-out objects")
    parser.add_argument("--min-area", type=int, default=400, help="smaller objects are left out, in pixels")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=10.0, help="of training at most")
    parser.add_argument("--kind", help="of adapter; default: what retraining makes of so many masks")
    parser.add_argument("--share", type=float, default=0.5, help="of trajectories that follow recorded clicks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON lines; runs found there are not repeated")
    options = parser.parse_args()
    if options.data is None:
        print("real clicks: skipped, it needs --data DIR")
        return
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    if options.out is not None and options.out.exists():
        rows = [json.loads(line) for line in options.out.read_text().splitlines()]
    done = {(row["name"], row["seed"]) for row in rows}
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    asked = [("live", -1.0, 0)]
    asked += [(name, share, seed) for seed in seeds for name, share in (("simulated", 0.0), (RECORDED, options.share))]
    for row in rows:
        print(describe(row))
    for name, share, seed in asked:
        if (name, seed) not in done:
            rows.append(run(name, share, seed, options))
            print(describe(rows[-1]), flush=True)
            if options.out is not None:
                with options.out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    for who in (ROBOT, PERSON):
        print(change(rows, who))


if __name__ == "__main__":
    main()
