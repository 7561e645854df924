"""Tiny data sets in the layouts in which the published ones are distributed."""

import pickle
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat

SIZE = (40, 60)


def photograph(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def labels(*boxes: tuple[int, int, int, int, int]) -> np.ndarray:
    """(value, y0, x0, y1, x1) boxes on zeros."""
    plane = np.zeros(SIZE, np.uint8)
    for value, y0, x0, y1, x1 in boxes:
        plane[y0:y1, x0:x1] = value
    return plane


def plane_file(path: Path, plane: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(plane)
    if palette:
        image.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    image.save(path)


def write_grabcut(root: Path, images: str = "data_GT", masks: str = "boundary_GT", suffix: str = ".bmp") -> Path:
    for name in ("a", "b"):
        photograph(root / images / f"{name}.jpg")
        plane_file(root / masks / f"{name}{suffix}", labels((128, 5, 5, 35, 55), (255, 10, 10, 30, 50)))
    return root


def write_davis(root: Path) -> Path:
    photograph(root / "img" / "f.jpg")
    colours = np.stack([labels((90, 0, 0, 10, 10)), labels((200, 20, 20, 30, 30)), labels()], 2)
    plane_file(root / "gt" / "f.png", colours)
    return root


def write_sbd(root: Path) -> Path:
    for stem in ("x", "y"):
        photograph(root / "img" / f"{stem}.jpg")
        plane = labels((1, 2, 2, 20, 25), (2, 22, 30, 38, 58))
        (root / "inst").mkdir(exist_ok=True)
        entry = np.zeros((1, 1), dtype=[("Segmentation", object), ("Categories", object)])
        entry[0, 0] = (plane, np.array([[3], [5]]))
        savemat(root / "inst" / f"{stem}.mat", {"GTinst": entry})
    (root / "train.txt").write_text("x\n")
    (root / "val.txt").write_text("y\n")
    return root


def write_voc(root: Path) -> Path:
    photograph(root / "JPEGImages" / "p.jpg")
    plane_file(
        root / "SegmentationObject" / "p.png", labels((255, 4, 4, 22, 22), (1, 5, 5, 20, 20), (2, 25, 30, 35, 50)), True
    )
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("p\n")
    return root


def write_coco_lvis(root: Path) -> Path:
    folder = root / "train"
    photograph(folder / "images" / "17.jpg")
    (folder / "masks").mkdir()
    layer = cv2.imencode(".png", labels((1, 2, 2, 20, 25), (2, 22, 30, 38, 58), (3, 0, 40, 10, 60)))[1]
    places = {0: (0, 1), 1: (0, 2), 2: (0, 3)}
    (folder / "masks" / "17.pickle").write_bytes(pickle.dumps(([layer], [places[i] for i in range(3)])))
    (folder / "hannotation.pickle").write_bytes(pickle.dumps({"17": {"num_instance_masks": 2, "hierarchy": {0: None}}}))
    return root
