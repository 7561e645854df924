"""SBD as it is distributed (`dataset/` of benchmark_RELEASE): img/*.jpg, inst/*.mat, train.txt, val.txt."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from pipeline.data.coco import read_image
from pipeline.data.files import bgr_to_rgb, require, require_size, split_labels
from pipeline.data.training_sets import Scene
from schemas.errors import BadAnnotationsError

_MIN_FILL = 0.08
"""Share of its box that an object fills; less is taken for a flaw of the labels (MODELS 1.11)."""


@dataclass(frozen=True)
class SbdSample:
    """One instance."""

    root: Path
    stem: str
    value: int
    category: str | None = None

    @property
    def sample_id(self) -> str:
        """Unique in the data set."""
        return f"{self.stem}_{self.value}"

    @property
    def image(self) -> Path:
        """Path of the photograph."""
        return self.root / "img" / f"{self.stem}.jpg"

    def read_image(self) -> NDArray[np.uint8]:
        """HWC uint8 RGB."""
        return read_image(self.image)

    def read_gt(self) -> NDArray[np.int8]:
        """int8 (H, W): 1 object, 0 background.

        Raises:
            BadAnnotationsError: The instances are unreadable, or of another size than the image.
        """
        labels = read_instances(self.root, self.stem)
        require_size(self.root / "inst" / f"{self.stem}.mat", labels.shape, self.read_image().shape[:2])
        gt: NDArray[np.int8] = (labels == self.value).astype(np.int8)
        return gt


class SbdInstances:
    """A split of SBD: scenes to train on, or every instance to evaluate.

    Args:
        root: The folder.
        split: Which.

    Raises:
        BadInputError: The folder is not laid out as SBD is.
    """

    def __init__(self, root: Path, split: Literal["train", "val"]) -> None:
        require(root, ("img", "inst", f"{split}.txt"), "SBD folder (benchmark_RELEASE/dataset)")
        self.root = root
        self.stems = (root / f"{split}.txt").read_text().split()

    def __len__(self) -> int:
        return len(self.stems)

    def scene(self, index: int, rng: np.random.Generator) -> Scene:
        """One photograph with its instances, flawed labels left out."""
        stem = self.stems[index]
        masks = split_labels(read_instances(self.root, stem))
        kept = [mask for mask in masks if _fill(mask) >= _MIN_FILL]
        stacked = np.stack(kept) if kept else np.zeros((0, *masks.shape[1:]), np.bool_)
        return Scene(bgr_to_rgb(self.root / "img" / f"{stem}.jpg"), stacked)

    def samples(self) -> Iterator[SbdSample]:
        """Every instance, image by image."""
        for stem in self.stems:
            for value in np.unique(read_instances(self.root, stem)):
                if value:
                    yield SbdSample(self.root, stem, int(value))


def read_instances(root: Path, stem: str) -> NDArray[np.uint8]:
    """(H, W) label map: 0 background, then one value per instance.

    Raises:
        BadAnnotationsError: The file is missing or no MATLAB file of SBD.
    """
    path = root / "inst" / f"{stem}.mat"
    try:
        return np.asarray(loadmat(path)["GTinst"][0]["Segmentation"][0], np.uint8)
    except Exception as error:  # scipy raises whatever it met in a file that is no MATLAB file
        raise BadAnnotationsError(f"{path} is no instance file of SBD: {error}.") from error


def _fill(mask: NDArray[np.bool_]) -> float:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return float(mask.sum() / box)
