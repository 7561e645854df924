"""COCO+LVIS in the combined form that RITM distributes: per split images/, masks/*.pickle, hannotation.pickle.

A mask file holds PNG layers and, per object, (layer, value). The pickles are read by an unpickler that knows plain
containers and numpy arrays, and runs nothing.
"""

import io
import pickle
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from pipeline.data.files import bgr_to_rgb, require
from pipeline.data.training_sets import Scene
from schemas.errors import BadAnnotationsError

_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
}
_RENAMED = {"numpy.core.multiarray": "numpy._core.multiarray"}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(_RENAMED.get(module, module), name)


class CocoLvisInstances:
    """A split of the combined set, as scenes to train on.

    Args:
        root: Folder of train/ and val/.
        split: Which.
        stuff_prob: How often COCO's stuff segments count as objects, too.

    Raises:
        BadInputError: The folder is not laid out so.
        BadAnnotationsError: A pickle is malformed, or holds something else than plain data.
    """

    def __init__(self, root: Path, split: Literal["train", "val"], stuff_prob: float = 0.0) -> None:
        require(root / split, ("images", "masks", "hannotation.pickle"), "COCO+LVIS split in RITM's form")
        self.folder, self.stuff_prob = root / split, stuff_prob
        samples = _read(self.folder / "hannotation.pickle")
        if not isinstance(samples, dict):
            raise BadAnnotationsError(f"{self.folder / 'hannotation.pickle'} holds no images.")
        self.images = sorted(samples.items())

    def __len__(self) -> int:
        return len(self.images)

    def scene(self, index: int, rng: np.random.Generator) -> Scene:
        """One photograph with its instances and, now and then, its stuff segments."""
        name, sample = self.images[index]
        path = self.folder / "masks" / f"{name}.pickle"
        try:
            encoded, places = _read(path)
            layers = [cv2.imdecode(np.asarray(layer), cv2.IMREAD_UNCHANGED) for layer in encoded]
            count = len(places) if rng.random() < self.stuff_prob else int(sample["num_instance_masks"])
            masks = [layers[layer] == value for layer, value in list(places)[:count]]
        except (ValueError, TypeError, KeyError, IndexError, cv2.error) as error:
            raise BadAnnotationsError(f"{path} is no mask file of COCO+LVIS: {error!r}.") from error
        image = bgr_to_rgb(self.folder / "images" / f"{name}.jpg")
        return Scene(image, np.stack(masks) if masks else np.zeros((0, *image.shape[:2]), np.bool_))


def _read(path: Path) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # whatever a damaged or hostile pickle makes the reader raise
        raise BadAnnotationsError(f"{path} can't be read: {error}.") from error
