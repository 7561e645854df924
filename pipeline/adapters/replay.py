"""What an adapter's training replays against forgetting: scenes drawn by rule, which are nobody's data.

The shipped weights learned from such, too.
"""

# H/W scene px

import numpy as np
from numpy.typing import NDArray

from pipeline.adapters.scenes import Scene, Turn
from pipeline.adapters.source import encode_pixels
from pipeline.data.procedural import procedural_scene
from pipeline.models._base import InteractiveModel

NUM_SCENES = 64


class DrawnScenes:
    """The same few scenes for a seed, each drawn and encoded when it is first asked for.

    Args:
        model: Encodes them. Adapters act after the cut, so any of them will do.
        seed: Of the training.
        turn: Entered around each encoding.
    """

    def __init__(self, model: InteractiveModel, seed: int, turn: Turn) -> None:
        self._model, self._seed, self._turn = model, seed, turn
        self._scenes: dict[int, tuple[Scene, NDArray[np.bool_]]] = {}

    def draw(self, rng: np.random.Generator) -> tuple[Scene, NDArray[np.bool_]]:
        """A scene and the mask of one of its objects, bool (H, W)."""
        number = int(rng.integers(NUM_SCENES))
        if number not in self._scenes:
            drawn = procedural_scene(np.random.default_rng((self._seed, number)))
            encoding = encode_pixels(self._model, drawn.image, self._turn) if self._model.cut == "image" else None
            self._scenes[number] = Scene(drawn.image, encoding), drawn.masks
        scene, masks = self._scenes[number]
        return scene, masks[int(rng.integers(len(masks)))]
