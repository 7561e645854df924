"""Whether the IoU that a model states is the one it has: reliability of the score over the robot user's clicks.

    python benchmarks/score_reliability.py --data DIR ... [--split val] [--limit N] [--plot FILE]

DIR holds images/ and annotations.json; objects below 1,500 px are left out. Ten clicks an object, fewer if it reaches
an IoU of 0.95.
"""

import argparse
from pathlib import Path

import numpy as np
from noc import data_sets, objects

from pipeline.evaluation.plot import check_plot_path, plot_curves
from pipeline.evaluation.reliability import calibration_error, reliability
from pipeline.evaluation.run import evaluate_one
from pipeline.inference.predictor import Predictor
from pipeline.models import load_model

CLICKS = 10
MIN_AREA = 1500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--split")
    parser.add_argument("--limit", type=int, default=10, help="objects per data set, spread evenly")
    parser.add_argument("--plot", type=Path, help="a picture of the reliability")
    options = parser.parse_args()
    if options.plot:
        check_plot_path(options.plot)
    predictor = Predictor(load_model(options.model, checkpoint=options.checkpoint))
    stated, real = list[float](), list[float]()
    for _, annotations, images in data_sets(options.data):
        for sample in objects(annotations, images, options.split, MIN_AREA, options.limit):
            result = evaluate_one(predictor, sample, 0.95, CLICKS)
            if result is not None:
                stated += result.scores
                real += result.ious
    off = np.subtract(stated, real)
    print(
        f"{len(off)} predictions: mean |stated - real| {np.abs(off).mean():.3f}, bias {off.mean():+.3f}, expected ",
        end="",
    )
    print(f"calibration error {calibration_error(stated, real):.3f}, correlation {np.corrcoef(stated, real)[0, 1]:.2f}")
    print(f"{'stated':>10} {'count':>6} {'mean':>6} {'real':>6}")
    points = reliability(stated, real)
    for point in points:
        print(f"{point.low:3.1f} to {point.high:3.1f} {point.count:6d} {point.stated:6.3f} {point.real:6.3f}")
    if options.plot:
        curve = {f"{point.stated:.4f}": point.real for point in points}
        ideal = {"0": 0.0, "1": 1.0}
        plot_curves({"measured": curve}, {"ideal": ideal}, "IoU that the model states", "IoU that it has", options.plot)


if __name__ == "__main__":
    main()
