"""Training states: one object clicked step by step under the rules of the live path, each step with its gradient.

ROI, crop, previous mask and rounding are those of serving (`pipeline.inference.step`), so that what is trained is what
will be served; on top, ROIs are jittered. Clicks are the recorded ones of people or simulated into the model's errors.
"""

# h/w crop px

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.adapters.scenes import Scene
from pipeline.clicks.simulate import next_training_click
from pipeline.inference.sampling import Probability
from pipeline.inference.step import CropPrediction, sampling_of, zoom_and_carry
from pipeline.inference.zoom import Roi, click_to_crop, roi_fractions
from pipeline.models._base import InteractiveModel, Prediction
from schemas.clicks import Click


@dataclass(frozen=True, eq=False)
class Step:
    """One click of a trajectory.

    Attributes:
        clicks: So far, this one last, in scene pixels.
        roi: Where the model looked.
        previous: (h, w) crop probability that it saw.
        prediction: What it gave, with gradient where it is enabled.
    """

    clicks: tuple[Click, ...]
    roi: Roi
    previous: Probability
    prediction: Prediction


def refine_scene(
    model: InteractiveModel, scene: Scene, clicks: Sequence[Click], roi: Roi, previous: Probability
) -> Prediction:
    """One prediction as `pipeline.inference.step.predict` makes it, but open to gradients.

    Args:
        model: In eval mode, so that batch norms stay frozen.
        scene: The image.
        clicks: In scene pixels.
        roi: Where to look.
        previous: (h, w) crop probability in that ROI.
    """
    device = next(model.parameters()).device
    size = (previous.shape[0], previous.shape[1])
    crops = sampling_of(model).crop_image(scene.image, roi, size).to(device)
    own = torch.from_numpy(np.ascontiguousarray(previous))[None, None].to(device)
    in_crop = [[click_to_crop(click, roi, size) for click in clicks]]
    if model.cut != "image" or scene.encoding is None:
        return model.refine(model.encode(crops), in_crop, own)
    rois = torch.tensor([roi_fractions(roi, scene.size)], device=device)
    return model.refine(scene.encoding.to(device, torch.float32), in_crop, own, crops, rois)


def trajectory(
    model: InteractiveModel,
    scene: Scene,
    target: NDArray[np.bool_],
    rng: np.random.Generator,
    num_clicks: int,
    recorded: Sequence[Click] = (),
    jitter: float = 0.1,
    skip: int = 0,
) -> Iterator[Step]:
    """Click an object up to `skip + num_clicks` times.

    Args:
        model: Predicts each step; its own (detached, float16) mask is the next step's previous mask.
        scene: The image.
        target: bool (H, W), not empty.
        rng: Draws clicks and jitter.
        num_clicks: At most so many steps are given; fewer when nothing is wrong any more.
        recorded: Clicks of a person in scene pixels, taken in order instead of simulated ones while they last.
        jitter: Spread of ROI sides and centres as a share of the side; 0 leaves ZoomIn's ROIs.
        skip: Clicks before those, made without gradient and not given.
    """
    before: CropPrediction | None = None
    clicks: tuple[Click, ...] = ()
    for index in range(skip + num_clicks):
        if index < len(recorded):
            click: Click | None = recorded[index]
        elif recorded:
            return
        else:
            click = _error_click(model, scene, target, before, rng)
        if click is None:
            return
        clicks = (*clicks, click)
        roi, previous = zoom_and_carry(model, scene.size, before, 0, None, clicks)
        if jitter and before is not None:
            moved = _jittered(roi, clicks, scene.size, rng, jitter)
            roi, previous = zoom_and_carry(model, scene.size, before, 0, None, clicks, force_roi=moved)
        with torch.set_grad_enabled(index >= skip and torch.is_grad_enabled()):
            prediction = refine_scene(model, scene, clicks, roi, previous)
        if index >= skip:
            yield Step(clicks, roi, previous, prediction)
        probabilities = prediction.logits[0].detach().float().sigmoid().half().cpu().numpy()
        before = CropPrediction(probabilities, roi, ())


def crop_target(
    model: InteractiveModel,
    scene: Scene,
    target: NDArray[np.bool_],
    roi: Roi,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """The object under a ROI as float (1, 1, h, w) of 0 and 1; (h, w) is `size`, by default the model's input size."""
    soft = sampling_of(model).crop_mask(target, roi, size or model.input_size)
    return torch.from_numpy((soft > 0.5).astype(np.float32))[None, None]


def _error_click(
    model: InteractiveModel,
    scene: Scene,
    target: NDArray[np.bool_],
    before: CropPrediction | None,
    rng: np.random.Generator,
) -> Click | None:
    """A click deep in the largest error; only the window that holds object and prediction is looked at."""
    if before is None:
        window = _box(target)
        predicted = np.zeros_like(target[_slices(window)])
    else:
        window = _hull(_box(target), before.roi)
        sampling = sampling_of(model)
        y0, x0, y1, x1 = window
        shifted = (before.roi[0] - y0, before.roi[1] - x0, before.roi[2] - y0, before.roi[3] - x0)
        predicted = sampling.paste(before.candidate(0), shifted, (y1 - y0, x1 - x0)) > 0.5
    click = next_training_click(target[_slices(window)], predicted, rng)
    if click is None:
        return None
    return Click(x=click.x + window[1], y=click.y + window[0], is_positive=click.is_positive)


def _jittered(roi: Roi, clicks: Sequence[Click], size: tuple[int, int], rng: np.random.Generator, spread: float) -> Roi:
    """The ROI with its sides and centre moved a little; positive clicks stay inside, and so does the ROI."""
    bounds = []
    for axis in (0, 1):
        low, high = roi[axis], roi[axis + 2]
        side = (high - low) * np.exp(rng.normal(0, spread))
        centre = 0.5 * (low + high) + rng.normal(0, 0.5 * spread) * (high - low)
        inside = [int(c.y if axis == 0 else c.x) for c in clicks if c.is_positive]
        start = min([round(centre - side / 2), *inside])
        end = max([round(centre + side / 2), *(place + 1 for place in inside)])
        bounds.append((max(0, start), min(size[axis], max(end, start + 8))))
    (y0, y1), (x0, x1) = bounds
    return y0, x0, y1, x1


def _box(mask: NDArray[np.bool_]) -> Roi:
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return y, x, y + height, x + width


def _hull(a: Roi, b: Roi) -> Roi:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _slices(roi: Roi) -> tuple[slice, slice]:
    return slice(roi[0], roi[2]), slice(roi[1], roi[3])
