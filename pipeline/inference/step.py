"""One prediction of one instance: crop, encode if the model wants the crop, refine, average the mirrored view.

Pure; the state between predictions is kept by `instance` (serving) and `predictor` (evaluation, notebooks).
"""

# K candidates, h/w crop px, H/W image px

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.inference.preprocess import check_image, image_to_input
from pipeline.inference.sampling import CornerAligned, PixelEdges, Probability, Sampling, as_input
from pipeline.inference.zoom import MASK_THRESHOLD, Roi, click_to_crop, mirror_click, next_roi, roi_fractions
from pipeline.masks.boxes import mask_box_xyxy
from pipeline.models._base import Encoding, InteractiveModel, Prediction
from schemas.clicks import Click
from schemas.errors import ClickOutsideImageError, EmbeddingMissingError

MAX_WHOLE_SIDE = 1024
"""Longest side in pixels of an image that a model sees unscaled, so that a huge one does not take all memory."""
MAX_CANDIDATES = 4
"""Shown for one prediction, the model's single output included."""
_SAME_MASK_IOU = 0.9


@dataclass(frozen=True, eq=False)
class CropPrediction:
    """What a prediction leaves: the probability of each candidate in its ROI.

    Attributes:
        probabilities: (K, h, w) float16 (float32 where a predictor was told so), read-only.
        roi: Where in the image.
        scores: K estimated qualities in [0, 1].
        crop: (1, 3, h, w) pixels that the model saw, uint8 or float32; used again while the ROI stays.
        query_ids: K ids, stable for a model: which of its queries each candidate is.
    """

    probabilities: NDArray[np.floating]
    roi: Roi
    scores: tuple[float, ...]
    crop: Tensor | None = None
    query_ids: tuple[int, ...] = (0,)

    @property
    def size_bytes(self) -> int:
        """Memory of the arrays."""
        return self.probabilities.nbytes + (self.crop.nbytes if self.crop is not None else 0)

    def candidate(self, index: int) -> Probability:
        """The crop probability (h, w) of one candidate."""
        return np.asarray(self.probabilities[index], np.float32)


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """How predictions are made; the defaults are those of serving."""

    flip: bool = False
    """Average with the mirrored view (twice the cost)."""
    target_size: tuple[int, int] | None = None
    """(h, w) of the network input; None is the model's own."""
    full_precision: bool = False
    """Keep probabilities as float32 between clicks instead of the float16 that serving keeps."""


SERVING = StepOptions()


def sampling_of(model: InteractiveModel) -> Sampling:
    """The resampling convention of a model's cut."""
    return PixelEdges() if model.cut == "image" else CornerAligned()


def encode_image(model: InteractiveModel, image: NDArray[np.uint8], flip: bool = False) -> Encoding | None:
    """Encode a whole image for `predict`: one row, or two with the mirrored image; None for cut "crop".

    Args:
        model: The model.
        image: HWC uint8 RGB.
        flip: Encode the mirrored image, too: the features of F1 are not flip-equivariant.
    """
    check_image(image)
    if model.cut != "image":
        return None
    inputs = image_to_input(model, image).to(_device(model))
    with torch.inference_mode():
        return model.encode(torch.cat([inputs, inputs.flip(-1)]) if flip else inputs)


def check_click(click: Click, size: tuple[int, int]) -> None:
    """Refuse a click outside the image.

    Raises:
        ClickOutsideImageError: It is outside.
    """
    if not (0 <= click.y < size[0] and 0 <= click.x < size[1]):
        raise ClickOutsideImageError(
            f"Click at (x={click.x}, y={click.y}) is outside the image of size {size[0]}x{size[1]} (height x width). "
            "Send coordinates in image pixels, not screen pixels.",
            x=click.x, y=click.y, height=size[0], width=size[1],
        )  # fmt: skip


def predict(
    model: InteractiveModel,
    image: NDArray[np.uint8],
    encoding: Encoding | None,
    clicks: Sequence[Click],
    roi: Roi,
    previous: Probability,
    options: StepOptions = SERVING,
    before: CropPrediction | None = None,
) -> CropPrediction:
    """Predict the mask of the clicked instance in a ROI.

    Args:
        model: In eval mode.
        image: HWC uint8 RGB.
        encoding: Of `encode_image` (any float type), None for cut "crop".
        clicks: All clicks in image pixels, in the order made.
        roi: Where to look.
        previous: (h, w) crop probability of the previous step in this ROI, zeros at first; its size is the crop's.
        options: How.
        before: The previous prediction on this image with these options; spares cutting the same crop again.

    Raises:
        EmbeddingMissingError: The model has cut "image" and no encoding is given.
    """
    size = (previous.shape[0], previous.shape[1])
    device = _device(model)
    views = [False, True] if options.flip else [False]
    reused = before.crop if before is not None and before.roi == roi else None
    reused = reused if reused is not None and reused.shape[2:] == size else None
    crop = reused if reused is not None else sampling_of(model).crop_pixels(image, roi, size)
    plain = as_input(crop.to(device))
    crops = torch.cat([plain, plain.flip(-1)]) if options.flip else plain
    own = torch.from_numpy(np.require(previous, requirements=["C", "W"]))[None, None].to(device)
    previous_views = torch.cat([own, own.flip(-1)]) if options.flip else own
    in_crop = [click_to_crop(click, roi, size) for click in clicks]
    click_views = [[mirror_click(c, size[1]) for c in in_crop] if mirrored else in_crop for mirrored in views]
    with torch.inference_mode():
        if model.cut == "image":
            if encoding is None:
                raise EmbeddingMissingError(f"Model {model.model_id!r} needs the image's encoding. Encode it first.")
            y0, x0, y1, x1 = roi_fractions(roi, (image.shape[0], image.shape[1]))
            rois = torch.tensor([(y0, 1 - x1, y1, 1 - x0) if m else (y0, x0, y1, x1) for m in views], device=device)
            prediction = model.refine(encoding.to(device, torch.float32), click_views, previous_views, crops, rois)
        else:
            prediction = model.refine(model.encode(crops), click_views, previous_views)
        probabilities, scores = _merge_views(prediction)
        query_ids = prediction.query_ids
        if not prediction.is_ranked:
            chosen = distinct_candidates(probabilities, scores)
            probabilities, scores = probabilities[chosen], scores[chosen]
            query_ids = tuple(query_ids[index] for index in chosen)
        probabilities = probabilities if options.full_precision else probabilities.half()
    array = probabilities.cpu().numpy()
    array.setflags(write=False)
    return CropPrediction(array, roi, tuple(round(float(score), 6) for score in scores), crop, query_ids)


def distinct_candidates(probabilities: Tensor, scores: Tensor) -> list[int]:
    """Which raw candidates are worth showing.

    Args:
        probabilities: (K, h, w); the first is the model's single output and always kept.
        scores: (K,).

    Returns:
        Indices: the first, then others by falling score whose mask is not empty and has an IoU below 0.9 with every
        one kept before; at most `MAX_CANDIDATES` in all.
    """
    masks = (probabilities > MASK_THRESHOLD).flatten(1)
    kept = [0]
    for index in (1 + torch.argsort(scores[1:], descending=True, stable=True)).tolist():
        both = (masks[kept] & masks[index]).sum(1)
        either = (masks[kept] | masks[index]).sum(1)
        if masks[index].any() and bool((both < _SAME_MASK_IOU * either).all()):
            kept.append(index)
        if len(kept) == MAX_CANDIDATES:
            break
    return kept


def zoom_and_carry(
    model: InteractiveModel,
    image_size: tuple[int, int],
    before: CropPrediction | None,
    candidate: int,
    initial: NDArray[np.bool_] | None,
    clicks: Sequence[Click],
    options: StepOptions = SERVING,
    force_roi: Roi | None = None,
) -> tuple[Roi, Probability]:
    """Choose the ROI of the next prediction and bring the previous probability into it.

    Args:
        model: Gives the convention and the crop size.
        image_size: (H, W) of the image.
        before: The previous prediction, None before the first.
        candidate: Which of its candidates was chosen.
        initial: bool (H, W) mask that the instance was opened with, looked at while there is no prediction.
        clicks: All clicks so far, the new one included.
        options: How.
        force_roi: Look here instead of where ZoomIn would.

    Returns:
        The ROI and the previous crop probability (h, w), zeros where there is none.
    """
    sampling = sampling_of(model)
    current: Roi | None = None
    mask_box: Roi | None = None
    if before is None and initial is not None and initial.any():
        # The official demo predicts the first click twice to give ZoomIn a previous map; the mask itself is one.
        x0, y0, x1, y1 = mask_box_xyxy(initial)
        mask_box = (y0, x0, y1, x1)
    elif before is not None:
        mask_box = sampling.mask_box(before.candidate(candidate), before.roi)
        current = None if _saw_whole(model, before, image_size) else before.roi
    whole = force_roi is None and model.skip_clicks >= 0 and (mask_box is None or len(clicks) <= model.skip_clicks)
    roi = force_roi or ((0, 0, *image_size) if whole else next_roi(current, mask_box, clicks, image_size))
    size = crop_size(model, roi, options, whole)
    if before is not None:
        return roi, sampling.carry(before.candidate(candidate), before.roi, roi, image_size, size)
    if initial is not None and initial.any():
        return roi, _rounded(sampling.crop_mask(initial, roi, size), options)
    return roi, np.zeros(size, np.float32)


def crop_size(
    model: InteractiveModel, roi: Roi, options: StepOptions = SERVING, whole: bool = False
) -> tuple[int, int]:
    """(h, w) of the network input for a ROI.

    Args:
        model: Wants a fixed size, or a longer side that the crop's shape is kept for.
        roi: The crop's place.
        options: May ask for another size; of it, models that keep the shape take the longer side.
        whole: The image goes in unscaled, up to `MAX_WHOLE_SIDE` (the official code has no bound).
    """
    if model.input_side is None:
        return options.target_size or model.input_size
    height, width = roi[2] - roi[0], roi[3] - roi[1]
    longest = max(height, width)
    side = max(options.target_size) if options.target_size else model.input_side
    scale = (min(longest, MAX_WHOLE_SIDE) if whole else side) / longest
    return max(1, round(height * scale)), max(1, round(width * scale))


def _saw_whole(model: InteractiveModel, before: CropPrediction, image_size: tuple[int, int]) -> bool:
    """Whether a prediction saw the whole image unscaled: then ZoomIn has no ROI to keep."""
    roi = (0, 0, *image_size)
    size = before.probabilities.shape[1:]
    return model.skip_clicks >= 0 and before.roi == roi and size == crop_size(model, roi, whole=True)


def _rounded(probability: Probability, options: StepOptions) -> Probability:
    return probability if options.full_precision else probability.astype(np.float16).astype(np.float32)


def _merge_views(prediction: Prediction) -> tuple[Tensor, Tensor]:
    """Average the logits of the plain and the mirrored view (candidates by query id), then the sigmoid."""
    logits, scores = prediction.logits.float(), prediction.scores.float()
    if logits.shape[0] == 2:
        logits = torch.stack([logits[0], logits[1].flip(-1)]).mean(0, keepdim=True)
        scores = scores.mean(0, keepdim=True)
    return logits[0].sigmoid(), scores[0]


def _device(model: InteractiveModel) -> torch.device:
    return next(model.parameters()).device
