from pathlib import Path

import cv2
import numpy as np

from pipeline.masks.png import write_mask


def test_png_holds_255_inside_and_0_outside(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((20, 31)) > 0.5
    assert write_mask(tmp_path / "mask.png", mask) == mask.sum()
    assert np.array_equal(cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED), mask * np.uint8(255))
