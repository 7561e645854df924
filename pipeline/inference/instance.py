"""The live path: the edits of one instance as pure functions from state to state, and the mask of a state.

Used by the refiner, by replay and by the evaluation of recorded clicks, so that all three give the same bits. Flip is
off. Between predictions the state keeps the float16 crop probability and its ROI, nothing at image size, and what the
network sees next is made from those rounded values. Knows nothing about sessions, undo (a shorter list of edits) or
storage.
"""

# K candidates, h/w crop px, H/W image px

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.inference.hold import SETTLED_CLICKS, hold_confirmed, hold_distant
from pipeline.inference.preprocess import check_image
from pipeline.inference.step import CropPrediction, check_click, predict, zoom_and_carry
from pipeline.inference.zoom import Roi, expand
from pipeline.masks.rle import rle_to_mask
from pipeline.models._base import Encoding, InteractiveModel
from schemas.clicks import Click
from schemas.errors import BadInputError
from schemas.events import BoxPayload, BrushPayload, CandidatePayload, ClickPayload, MaskEditPayload, parse_payload
from schemas.masks import Rle
from schemas.predictions import Edit

BOX_MARGIN = 0.1
"""A box prompt's prediction is cut off this share of the box's sides outside the box."""
_HALF = 32767
_UNIT = 65534


@dataclass(frozen=True, eq=False)
class Stroke:
    """Painted and erased pixels inside a box of the image.

    Attributes:
        box: (x0, y0, x1, y1), half-open, in pixels.
        added: bool, of the box's size, or None.
        erased: bool, of the box's size, or None.
    """

    box: tuple[int, int, int, int]
    added: NDArray[np.bool_] | None
    erased: NDArray[np.bool_] | None


@dataclass(frozen=True, eq=False)
class InstanceState:
    """One instance after a prefix of its edits. Immutable; states of one instance share what did not change.

    Attributes:
        initial: bool (H, W) mask that the instance was opened with; None if empty or once there is a prediction.
        clicks: The person's clicks, in order, in image pixels.
        prompts: What the model is shown: the clicks and the centres of boxes, in order.
        prediction: The last prediction, None before one.
        candidate: Index of the chosen candidate.
        strokes: Brush strokes and tool edits, in order.
    """

    initial: NDArray[np.bool_] | None = None
    clicks: tuple[Click, ...] = ()
    prompts: tuple[Click, ...] = ()
    prediction: CropPrediction | None = None
    candidate: int = 0
    strokes: tuple[Stroke, ...] = ()

    @property
    def roi(self) -> Roi | None:
        """(y0, x0, y1, x1), half-open, in image pixels: where the last prediction looked."""
        return self.prediction.roi if self.prediction else None

    @property
    def scores(self) -> tuple[float, ...]:
        """Estimated quality of each candidate in [0, 1]."""
        return self.prediction.scores if self.prediction else ()

    @property
    def size_bytes(self) -> int:
        """Memory of the arrays, counted as if they were not shared."""
        masks = [self.initial, *(mask for stroke in self.strokes for mask in (stroke.added, stroke.erased))]
        total = 500 + 200 * len(self.prompts) + sum(mask.nbytes for mask in masks if mask is not None)
        return total + (self.prediction.size_bytes if self.prediction else 0)


def start(image: NDArray[np.uint8], initial_mask: NDArray[np.bool_] | None = None) -> InstanceState:
    """The state of an instance that was just opened.

    Args:
        image: HWC uint8 RGB.
        initial_mask: bool (H, W), when it is opened from a stored mask; it is kept, so don't change it later.

    Raises:
        BadInputError: The mask has another size than the image.
    """
    check_image(image)
    if initial_mask is not None and initial_mask.shape != image.shape[:2]:
        raise BadInputError(
            f"The initial mask has size {initial_mask.shape}, the image {image.shape[:2]} (height, width). "
            "Masks have exactly the size of their image."
        )
    return InstanceState(initial=initial_mask)


def apply_edit(
    model: InteractiveModel,
    image: NDArray[np.uint8],
    encoding: Encoding | None,
    state: InstanceState,
    edit: Edit,
) -> InstanceState:
    """The state after one more edit. Deterministic; costs one prediction for `click` and `box`, none otherwise.

    - click: the model predicts in the ZoomIn ROI from all clicks and the chosen candidate; what the click confirmed
      does not turn over, and late clicks change the mask where they are alone (`hold`).
    - box: the ROI is the box times 1.4 (at least ZoomIn's smallest crop); the model is shown a positive click at the
      box's centre; its prediction is zeroed outside the box grown by 10 % on each side. Later clicks may leave it.
    - candidate: chooses what is shown, what ZoomIn looks at and what the next prediction starts from.
    - brush, mask_edit: pixels that stay as painted under later clicks.
    - open: nothing (the initial mask is given to `start`).

    Args:
        model: In eval mode.
        image: HWC uint8 RGB.
        encoding: The image's encoding for cut "image", None for cut "crop"; not looked at by edits without prediction.
        state: Before.
        edit: With its payload as stored.

    Raises:
        ClickOutsideImageError: A click is outside the image.
        BadInputError: The payload is malformed, a box or stroke does not fit, or there is no such candidate.
        EmbeddingMissingError: The model needs an encoding and there is none.
    """
    payload = parse_payload(edit.kind, edit.payload)
    size = (image.shape[0], image.shape[1])
    if isinstance(payload, ClickPayload):
        click = Click(x=payload.x, y=payload.y, is_positive=payload.is_positive)
        check_click(click, size)
        prompts = (*state.prompts, click)
        roi, previous = zoom_and_carry(model, size, state.prediction, state.candidate, state.initial, prompts)
        prediction = predict(model, image, encoding, prompts, roi, previous, before=state.prediction)
        prediction = hold_confirmed(prediction, previous, click)
        if len(prompts) >= SETTLED_CLICKS:
            prediction = hold_distant(prediction, previous, click)
        clicks = (*state.clicks, click)
        return replace(state, initial=None, clicks=clicks, prompts=prompts, prediction=prediction, candidate=0)
    if isinstance(payload, BoxPayload):
        return _apply_box(model, image, encoding, state, payload)
    if isinstance(payload, CandidatePayload):
        if payload.index >= len(state.scores):
            raise BadInputError(f"There is no candidate {payload.index}: the last prediction has {len(state.scores)}.")
        return replace(state, candidate=payload.index)
    if isinstance(payload, BrushPayload):
        pixels = _stroke_pixels(payload.box, payload.rle, size)
        added, erased = (pixels, None) if payload.is_positive else (None, pixels)
        return replace(state, strokes=(*state.strokes, Stroke(payload.box, added, erased)))
    if isinstance(payload, MaskEditPayload):
        added, erased = (_stroke_pixels(payload.box, rle, size) for rle in (payload.added, payload.erased))
        return replace(state, strokes=(*state.strokes, Stroke(payload.box, added, erased)))
    return state


def final_mask(state: InstanceState, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask of a state, as it is shown, stored and hashed.

    The chosen candidate above 0.5 (strictly), then the strokes in order, then the person's clicks in order: a positive
    click's pixel is in, a negative one's out. Probabilities are resized as 16-bit integers, only inside the ROI.

    Args:
        state: Of an image of this size.
        size: (H, W) of the image.

    Returns:
        bool (H, W), C-contiguous, the caller's own.
    """
    if state.prediction is not None:
        mask = _model_mask(state.prediction, state.candidate, size)
    else:
        mask = np.zeros(size, np.bool_) if state.initial is None else state.initial.copy()
    for stroke in state.strokes:
        x0, y0, x1, y1 = stroke.box
        if stroke.added is not None:
            mask[y0:y1, x0:x1] |= stroke.added
        if stroke.erased is not None:
            mask[y0:y1, x0:x1] &= ~stroke.erased
    for click in state.clicks:
        mask[int(click.y), int(click.x)] = click.is_positive
    return mask


def _model_mask(prediction: CropPrediction, candidate: int, size: tuple[int, int]) -> NDArray[np.bool_]:
    y0, x0, y1, x1 = prediction.roi
    crop = (prediction.candidate(candidate) * np.float32(_UNIT)).astype(np.uint16)
    inside = cv2.resize(crop, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
    mask = np.zeros(size, np.bool_)
    np.greater(inside, _HALF, out=mask[y0:y1, x0:x1])
    return mask


def _apply_box(
    model: InteractiveModel,
    image: NDArray[np.uint8],
    encoding: Encoding | None,
    state: InstanceState,
    box: BoxPayload,
) -> InstanceState:
    height, width = image.shape[:2]
    x0, y0 = max(0.0, box.x0), max(0.0, box.y0)
    x1, y1 = min(float(width), box.x1), min(float(height), box.y1)
    if x1 - x0 < 1 or y1 - y0 < 1:
        raise BadInputError(
            f"Box ({box.x0}, {box.y0}, {box.x1}, {box.y1}) covers less than a pixel of the image of size "
            f"{height}x{width} (height x width). Send (x0, y0, x1, y1) with x0 < x1 and y0 < y1 in image pixels."
        )
    roi = expand((int(y0), int(x0), int(np.ceil(y1)), int(np.ceil(x1))), (height, width))
    prompts = (*state.prompts, Click(x=(x0 + x1) / 2, y=(y0 + y1) / 2, is_positive=True))
    _, previous = zoom_and_carry(
        model, (height, width), state.prediction, state.candidate, state.initial, prompts, force_roi=roi
    )
    prediction = predict(model, image, encoding, prompts, roi, previous, before=state.prediction)
    margin_y, margin_x = BOX_MARGIN * (y1 - y0), BOX_MARGIN * (x1 - x0)
    limits = (y0 - margin_y, x0 - margin_x, y1 + margin_y, x1 + margin_x)
    return replace(state, initial=None, prompts=prompts, prediction=_clipped(prediction, limits), candidate=0)


def _clipped(prediction: CropPrediction, limits: tuple[float, float, float, float]) -> CropPrediction:
    """Zero the crop cells whose centre lies outside (y0, x0, y1, x1) in image pixels."""
    y0, x0, y1, x1 = prediction.roi
    h, w = prediction.probabilities.shape[1:]
    rows = y0 + (np.arange(h) + 0.5) * ((y1 - y0) / h)
    columns = x0 + (np.arange(w) + 0.5) * ((x1 - x0) / w)
    keep_rows = (rows >= limits[0]) & (rows < limits[2])
    keep_columns = (columns >= limits[1]) & (columns < limits[3])
    clipped = prediction.probabilities * (keep_rows[:, None] & keep_columns[None, :])
    clipped.setflags(write=False)
    return replace(prediction, probabilities=clipped)


def _stroke_pixels(box: tuple[int, int, int, int], rle: Rle, size: tuple[int, int]) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]):
        raise BadInputError(f"Box {box} (x0, y0, x1, y1) is empty or leaves the image of size {size[0]}x{size[1]}.")
    if rle.size != (y1 - y0, x1 - x0):
        raise BadInputError(f"The RLE has size {rle.size}, its box {(y1 - y0, x1 - x0)} (height, width).")
    return rle_to_mask(rle)
