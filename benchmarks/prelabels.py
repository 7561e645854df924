"""What prelabels are worth: how many true objects have a proposal, and how many clicks starting from it saves.

    python benchmarks/prelabels.py --data DIR [--split val] [--limit IMAGES] [--grid N] [--min-score S] [--objects N]

DIR holds annotations.json (COCO) and images/. For each image the model clicks a grid by itself, as `clickloop prelabel`
does. Of each true object the best proposal is looked up: the share with IoU of 0.5 and 0.75 at least. Then the robot
user corrects that proposal up to IoU 0.9, and makes the object from nothing: the mean of clicks of both (at most 20,
which also stands for never; a proposal that is good enough costs none). The annotator's look at a proposal is no click
here. `as is` starts each object from its best proposal, however poor; `at 0.5` only where that has IoU 0.5, and from
nothing otherwise, as a person would.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.clicks.simulate import PREDICTION_THRESHOLD, next_click
from pipeline.data.coco import CocoSample, read_coco
from pipeline.evaluation.metrics import MAX_CLICKS, Truth, clicks_to_reach, iou
from pipeline.evaluation.robot import evaluate_sample
from pipeline.inference.predictor import Predictor
from pipeline.inference.step import encode_image
from pipeline.masks.rle import rle_to_mask
from pipeline.models import load_model
from pipeline.prelabels import find_prelabels
from schemas.requests import DEFAULT_MIN_SCORE

TARGET = 0.9


def clicks_from(predictor: Predictor, gt: Truth, mask: NDArray[np.bool_]) -> int:
    """Clicks of the robot user who begins with a mask of the image that is set."""
    if iou(gt, mask) >= TARGET:
        return 0
    predictor.reset()
    predictor.set_mask(mask)
    clicked = np.zeros(gt.shape, np.bool_)
    for count in range(1, MAX_CLICKS + 1):
        click = next_click(gt, mask, clicked)
        if click is None:
            break
        clicked[int(click.y), int(click.x)] = True
        mask = predictor.click(click) > PREDICTION_THRESHOLD
        if iou(gt, mask) >= TARGET:
            return count
    return MAX_CLICKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of a COCO set")
    parser.add_argument("--split")
    parser.add_argument("--model", default="default")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--grid", type=int, default=8)
    parser.add_argument("--min-score", type=float, default=DEFAULT_MIN_SCORE)
    parser.add_argument("--limit", type=int, help="images, spread evenly")
    parser.add_argument("--objects", type=int, default=10, help="of an image that are clicked at most, spread evenly")
    args = parser.parse_args()
    if args.data is None:
        print("prelabels: skipped, it needs --data DIR")
        return
    torch.set_num_threads(1)
    model = load_model(args.model, checkpoint=args.checkpoint)
    predictor = Predictor(model)
    by_image: dict[int, list[CocoSample]] = defaultdict(list)
    for sample in read_coco(args.data / "annotations.json", args.data / "images", args.split):
        by_image[sample.image.image_id].append(sample)
    groups = list(by_image.values())
    if args.limit and len(groups) > args.limit:
        groups = [groups[i] for i in np.linspace(0, len(groups) - 1, args.limit).astype(int)]
    best: list[float] = []
    proposals, seconds, useful = 0, 0.0, 0
    rows: list[tuple[int, int, int]] = []
    for samples in groups:
        image = samples[0].read_image()
        began = time.perf_counter()
        found = find_prelabels(model, image, encode_image(model, image), args.grid)
        seconds += time.perf_counter() - began
        masks = [rle_to_mask(own.rle) for own in found.masks if own.score >= args.min_score]
        proposals += len(masks)
        truths = [truth for truth in (sample.read_gt() for sample in samples) if (truth == 1).any()]
        fits = np.array([[iou(gt, mask) for mask in masks] or [0.0] for gt in truths])
        best += fits.max(1).tolist()
        useful += int((fits.max(0) >= 0.5).sum()) if masks else 0
        for index in np.unique(np.linspace(0, len(truths) - 1, min(args.objects, len(truths))).astype(int)):
            gt, start = truths[index], int(fits[index].argmax())
            plain = clicks_to_reach(evaluate_sample(predictor, image, gt, TARGET).ious, TARGET)
            helped = clicks_from(predictor, gt, masks[start]) if masks else plain
            rows.append((plain, helped, helped if fits[index].max() >= 0.5 else plain))
    covered = [float(np.mean([value >= at for value in best])) for at in (0.5, 0.75)]
    noc = np.mean(rows, axis=0)
    print(
        f"{args.data.name}: {model.model_id}, {args.grid}x{args.grid} clicks, score >= {args.min_score:g}: "
        f"{len(groups)} images, {len(best)} objects, {proposals} proposals, "
        f"{useful} of them with IoU >= 0.5 with an object, {seconds / len(groups):.1f} s an image\n"
        f"objects with a proposal of IoU >= 0.5: {covered[0]:.1%}, >= 0.75: {covered[1]:.1%}\n"
        f"NoC@90 of {len(rows)} objects: from nothing {noc[0]:.2f}, from the best proposal as is {noc[1]:.2f}, "
        f"at 0.5 {noc[2]:.2f}: {1 - noc[2] / noc[0]:.1%} of the clicks saved"
    )


if __name__ == "__main__":
    main()
