"""The user's door to a model: set an image once, click many times, get probability maps at image size.

Knows image pixels; the model knows only crops. Serving uses `instance` instead, which makes the same steps.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.inference.sampling import Probability
from pipeline.inference.step import (
    CropPrediction,
    StepOptions,
    check_click,
    encode_image,
    predict,
    sampling_of,
    zoom_and_carry,
)
from pipeline.inference.zoom import MASK_THRESHOLD, Roi
from pipeline.memory import keep_freed_memory
from pipeline.models._base import Encoding, InteractiveModel
from schemas.clicks import Click
from schemas.errors import BadInputError


@dataclass(frozen=True, eq=False)
class _State:
    clicks: tuple[Click, ...] = ()
    initial: NDArray[np.bool_] | None = None
    prediction: CropPrediction | None = None
    candidate: int = 0


class Predictor:
    """Interactive segmentation of one instance at a time.

    Args:
        model: Put into eval mode by this call.
        flip: Average with the mirrored view (the papers' evaluation; twice the cost).
        target_size: (h, w) of the network input; None is the model's own (the papers use 672x672 for DAVIS with ViTs).
        full_precision: Keep float32 probabilities between clicks, to compare with official code; by default they are
            rounded to float16 as in serving.
    """

    threshold = MASK_THRESHOLD
    """Probability above which a pixel is shown as inside (the papers' metrics use 0.49)."""

    def __init__(
        self,
        model: InteractiveModel,
        flip: bool = False,
        target_size: tuple[int, int] | None = None,
        full_precision: bool = False,
    ) -> None:
        keep_freed_memory()
        self.model = model.eval()
        self.options = StepOptions(flip=flip, target_size=target_size, full_precision=full_precision)
        self._image: NDArray[np.uint8] | None = None
        self._encoding: Encoding | None = None
        self._states = [_State()]

    def set_image(self, image: NDArray[np.uint8]) -> None:
        """Take a new image, encode it if the model sees whole images, and forget all clicks.

        Args:
            image: HWC uint8 RGB.
        """
        self._encoding = encode_image(self.model, image, self.options.flip)
        self._image = image
        self.reset()

    def reset(self) -> None:
        """Forget clicks and masks, keep the image and its encoding: begin the next instance."""
        self._states = [_State()]

    def click(self, click: Click) -> Probability:
        """Add a click.

        Args:
            click: In image pixels.

        Returns:
            (H, W) float32 probability at image size, zero outside the ROI.

        Raises:
            ClickOutsideImageError: It is outside the image.
            BadInputError: No image is set.
        """
        image = self._require_image()
        size = (image.shape[0], image.shape[1])
        check_click(click, size)
        state = self._states[-1]
        clicks = (*state.clicks, click)
        roi, previous = zoom_and_carry(
            self.model, size, state.prediction, state.candidate, state.initial, clicks, self.options
        )
        prediction = predict(self.model, image, self._encoding, clicks, roi, previous, self.options, state.prediction)
        self._states.append(replace(state, clicks=clicks, prediction=prediction, candidate=0))
        return self.probability()

    def undo(self) -> Probability:
        """Take back the last click, mask or choice; the state is then exactly what it was before. No-op at the start.

        Returns:
            The map as before that step.
        """
        if len(self._states) > 1:
            self._states.pop()
        return self.probability()

    def set_mask(self, mask: NDArray[np.bool_]) -> None:
        """Start from a mask: forget the clicks and refine this mask with the next ones.

        Differs from the official demo, which predicts the first click twice and keeps feeding the first mask: here
        ZoomIn looks at the mask at once, and every later click refines the newest prediction.

        Args:
            mask: bool (H, W); of whole numbers, what is not zero is inside.

        Raises:
            BadInputError: The mask has another size than the image or holds fractions, or no image is set.
        """
        image = self._require_image()
        if mask.dtype.kind not in "bui":  # of a probability map, each pixel above zero would be inside
            raise BadInputError(
                f"The mask is of type {mask.dtype}, expected bool. Compare a map with a threshold first."
            )
        if mask.shape != image.shape[:2]:
            raise BadInputError(f"The mask has size {mask.shape}, the image {image.shape[:2]} (height, width).")
        self._states.append(_State(initial=mask.astype(np.bool_)))

    def choose(self, candidate: int) -> Probability:
        """Choose another candidate of the last prediction; the next click starts from it.

        Raises:
            BadInputError: There is no such candidate.
        """
        if not 0 <= candidate < len(self.scores):
            raise BadInputError(f"There is no candidate {candidate}: the last prediction has {len(self.scores)}.")
        self._states.append(replace(self._states[-1], candidate=candidate))
        return self.probability()

    def probability(self) -> Probability:
        """The current map: (H, W) float32, zeros before the first click."""
        image = self._require_image()
        size = (image.shape[0], image.shape[1])
        state = self._states[-1]
        if state.prediction is not None:
            crop = state.prediction.candidate(state.candidate)
            return sampling_of(self.model).paste(crop, state.prediction.roi, size)
        return np.zeros(size, np.float32) if state.initial is None else state.initial.astype(np.float32)

    @property
    def image(self) -> NDArray[np.uint8] | None:
        """The image that is set."""
        return self._image

    @property
    def clicks(self) -> tuple[Click, ...]:
        """Clicks so far, in image pixels."""
        return self._states[-1].clicks

    @property
    def roi(self) -> Roi | None:
        """(y0, x0, y1, x1), half-open: where the last prediction looked."""
        prediction = self._states[-1].prediction
        return prediction.roi if prediction else None

    @property
    def scores(self) -> tuple[float, ...]:
        """Estimated quality of each candidate in [0, 1]."""
        prediction = self._states[-1].prediction
        return prediction.scores if prediction else ()

    def _require_image(self) -> NDArray[np.uint8]:
        if self._image is None:
            raise BadInputError("There is no image. Call set_image before clicking.")
        return self._image
