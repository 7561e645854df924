"""CPU time of everything around the model in a click: crop, carry, clicks, paste, digest, pack; reply bytes.

Runs the live path (`pipeline.inference.instance`) with a model whose refine costs nothing, on one thread, for twenty
clicks of a robot user, at 480p, 1080p and 12 MP. "first" looks at the whole image, the others at ZoomIn's ROI.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.inference.instance import InstanceState, apply_edit, final_mask, start
from pipeline.masks.boxes import mask_box_xyxy
from pipeline.masks.digest import box_digest
from pipeline.masks.packed import pack_box
from pipeline.models._base import Encoding, InteractiveModel, Prediction
from schemas.clicks import Click
from schemas.events import normalise_payload
from schemas.predictions import Edit

SIZES = {"480p": (480, 640), "1080p": (1080, 1920), "12MP": (3000, 4000)}
STAGES = ("apply_edit", "final_mask", "box", "digest", "pack")
_T = TypeVar("_T")
LIMIT_MS, LIMIT_BYTES = 4.0, 10_000


class FreeModel(InteractiveModel):
    """Answers with a prepared blob, so that what remains is the work around a model."""

    cut = "image"
    input_size = (256, 256)

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.seconds = 0.0
        self.logits = torch.zeros(1, 1, *self.input_size)

    def refine(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> Prediction:
        return Prediction(self.logits, torch.ones(1, 1))


def blob(size: tuple[int, int]) -> NDArray[np.bool_]:
    """A ragged object of about a sixth of the image."""
    height, width = size
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    radius = 0.26 * height * (1 + 0.18 * np.sin(5 * angles) + 0.06 * np.sin(23 * angles) + 0.03 * np.sin(61 * angles))
    points = np.stack([0.45 * width + 1.2 * radius * np.cos(angles), 0.5 * height + radius * np.sin(angles)], 1)
    return cv2.fillPoly(np.zeros(size, np.uint8), [points.round().astype(np.int32)], 1).astype(np.bool_)


def edit(click: Click) -> Edit:
    payload, digest = normalise_payload("click", {"x": click.x, "y": click.y, "is_positive": click.is_positive})
    return Edit(kind="click", payload=payload, payload_sha256=digest)


def measure(size: tuple[int, int], num_clicks: int) -> tuple[list[dict[str, float]], list[int]]:
    """CPU milliseconds by stage and reply bytes, click by click."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8), (size[1], size[0]))
    truth = blob(size)
    rows, columns = np.nonzero(truth)
    model, state = FreeModel().eval(), start(image)
    encoding = Encoding({"low": torch.zeros(1, 32, 96, 128, dtype=torch.float16)})
    stages: list[dict[str, float]] = []
    sizes: list[int] = []
    for index in range(num_clicks):
        pick = int(rng.integers(rows.size))
        click = Click(x=float(columns[pick]), y=float(rows[pick]), is_positive=True)
        prepare(model, truth, state, size)
        spent: dict[str, float] = {}
        state = timed(spent, "apply_edit", apply_edit, model, image, encoding, state, edit(click))
        mask = timed(spent, "final_mask", final_mask, state, size)
        box = timed(spent, "box", mask_box_xyxy, mask)
        timed(spent, "digest", box_digest, mask, box)
        packed = timed(spent, "pack", pack_box, mask, box)
        stages.append(spent)
        sizes.append(len(packed.bits))
        assert index or mask.any()
    return stages, sizes


def prepare(model: FreeModel, truth: NDArray[np.bool_], state: InstanceState, size: tuple[int, int]) -> None:
    """Give the model the truth in the ROI that comes next (the whole image, then the box times 1.4)."""
    x, y, width, height = cv2.boundingRect(truth.view(np.uint8))
    if state.roi is None:
        y0, x0, y1, x1 = 0, 0, *size
    else:
        y0, x0 = max(0, int(y - 0.2 * height)), max(0, int(x - 0.2 * width))
        y1, x1 = min(size[0], int(y + 1.2 * height)), min(size[1], int(x + 1.2 * width))
    crop = cv2.resize(truth[y0:y1, x0:x1].astype(np.float32), (256, 256), interpolation=cv2.INTER_AREA)
    model.logits = torch.from_numpy(16 * crop - 8)[None, None]


def timed(spent: dict[str, float], stage: str, work: Callable[..., _T], *args: Any) -> _T:
    began = time.process_time_ns()
    result = work(*args)
    spent[stage] = (time.process_time_ns() - began) / 1e6
    return result


def summary(size: tuple[int, int], num_clicks: int = 20) -> dict[str, float]:
    """CPU milliseconds of the median later click by stage and in total, of the first click, and the largest reply."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    measure(size, 3)  # warm
    stages, sizes = measure(size, num_clicks)
    totals = [sum(spent.values()) for spent in stages]
    medians = {stage: statistics.median(spent[stage] for spent in stages[1:]) for stage in STAGES}
    totals_ms = {"total": statistics.median(totals[1:]), "first_total": totals[0]}
    return medians | totals_ms | {"reply_bytes": float(max(sizes))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clicks", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report = {name: summary(size, args.clicks) for name, size in SIZES.items()}
    if args.json:
        print(json.dumps(report, indent=2))
        return
    columns = (*STAGES, "total", "first_total")
    print(f"{'CPU ms per click':<18}" + "".join(f"{column:>13}" for column in columns) + f"{'reply bytes':>13}")
    for name, row in report.items():
        print(f"{name:<18}" + "".join(f"{row[c]:>13.2f}" for c in columns) + f"{row['reply_bytes']:>13.0f}")
    budget = report["1080p"]
    for label, share in (
        ("CPU time, median click", budget["total"] / LIMIT_MS),
        ("CPU time, first click", budget["first_total"] / LIMIT_MS),
        ("bytes per reply", budget["reply_bytes"] / LIMIT_BYTES),
    ):
        print(f"1080p, {label}: {share:.2f} of the budget of {LIMIT_MS:g} ms and {LIMIT_BYTES} bytes")


if __name__ == "__main__":
    main()
