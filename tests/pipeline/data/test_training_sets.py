"""Only sets that may train are read, and only their train split."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.configs.fdrn_compact import NATURAL_SETS
from pipeline.data.samples import SampleConfig, TrainingBatches
from pipeline.data.training_sets import allowed_sets, read_set
from schemas.errors import BadAnnotationsError, BadImageError


def write_set(root: Path, name: str) -> None:
    folder = root / name
    (folder / "images").mkdir(parents=True)
    mask = np.zeros((40, 50), np.uint8, order="F")
    mask[5:30, 10:40] = 1
    rle = coco_mask.encode(mask)
    rle["counts"] = rle["counts"].decode()
    coco: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": []}
    for number, split in enumerate(("train", "val"), 1):
        file_name = f"{split}.png"
        cv2.imwrite(str(folder / "images" / file_name), np.full((40, 50, 3), 90 * number, np.uint8))
        coco["images"].append({"id": number, "file_name": file_name, "width": 50, "height": 40, "split": split})
        coco["annotations"].append(
            {"id": number, "image_id": number, "iscrowd": 0, "area": 750, "category_id": 1, "segmentation": rle}
        )
    (folder / "annotations.json").write_text(json.dumps(coco))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    uses = {"balloon": "train", "secret": "eval-only", "cells": "special"}
    for name in uses:
        write_set(tmp_path, name)
    sets = [{"name": name, "path": name, "use": use} for name, use in uses.items()]
    (tmp_path / "index.json").write_text(json.dumps({"sets": sets}))
    return tmp_path


def test_only_sets_marked_train_are_read(root: Path) -> None:
    assert allowed_sets(root) == ["balloon"]
    batches = TrainingBatches(root, SampleConfig(natural=NATURAL_SETS), 0, 1)
    assert list(batches.sets) == ["balloon"]
    assert [image.path.name for image in batches.sets["balloon"]] == ["train.png"]


def test_without_an_index_every_set_counts(root: Path) -> None:
    (root / "index.json").unlink()
    assert allowed_sets(root) == ["balloon", "cells", "secret"]


def test_scene_is_what_was_written(root: Path) -> None:
    scene = read_set(root / "balloon", "val")[0].load()
    assert scene.image.shape == (40, 50, 3) and scene.image[0, 0, 0] == 180
    assert scene.masks.shape == (1, 40, 50) and scene.masks.sum() == 750


def change_annotations(folder: Path, **entry: object) -> None:
    path = folder / "annotations.json"
    coco = json.loads(path.read_text())
    for item in coco["annotations"]:
        item.update(entry)
        if entry.get("area", 0) is None:
            del item["area"]
    path.write_text(json.dumps(coco))


@pytest.mark.parametrize(
    ("entry", "pixels"),
    [
        ({"segmentation": [[10, 5, 40, 5, 40, 30, 10, 30]]}, 750),
        ({"segmentation": [[10, 5, 40, 5, 40, 30, 10, 30], [0, 0, 4, 0, 4, 4, 0, 4]], "area": None}, 766),
        ({"segmentation": {"size": [40, 50], "counts": [400, 200, 1400]}}, 200),
    ],
)
def test_polygons_and_plain_run_lengths_train_too(root: Path, entry: dict[str, object], pixels: int) -> None:
    change_annotations(root / "balloon", **entry)
    assert read_set(root / "balloon", "train")[0].load().masks.sum() == pixels


def test_boxes_without_a_mask_do_not_train(root: Path) -> None:
    change_annotations(root / "balloon", segmentation=[])
    with pytest.raises(BadAnnotationsError, match="usable mask"):
        TrainingBatches(root, SampleConfig(natural=NATURAL_SETS), 0, 1)
    change_annotations(root / "balloon", segmentation=[[1, 2, 3]])
    with pytest.raises(BadAnnotationsError, match=r"train\.png is malformed"):
        read_set(root / "balloon", "train")[0].load()


def test_images_that_are_not_there_are_named_before_the_training(root: Path) -> None:
    (root / "balloon" / "images" / "train.png").unlink()
    with pytest.raises(BadAnnotationsError, match=r"1 images .* such as .*train\.png"):
        read_set(root / "balloon", "train")


def test_photographs_make_batches(root: Path) -> None:
    config = SampleConfig(
        natural=NATURAL_SETS, mix=(1, 0, 0, 0), image_size=64, crop_size=32, num_images=1, rois_per_image=1
    )
    assert TrainingBatches(root, config, 0, 1)[0].crops.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": 3, "annotations": []}', '{"sets": 1}'])
def test_malformed_files_are_named(root: Path, content: str) -> None:
    (root / "balloon" / "annotations.json").write_text(content)
    with pytest.raises(BadAnnotationsError, match="balloon"):
        read_set(root / "balloon", "train")
    (root / "index.json").write_text(content)
    with pytest.raises(BadAnnotationsError, match="index"):
        allowed_sets(root)


def test_empty_folder_and_missing_image_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(BadAnnotationsError, match="No image set"):
        allowed_sets(tmp_path / "balloon" / "images")
    image = read_set(root / "balloon", "train")[0]
    image.path.unlink()
    with pytest.raises(BadImageError, match=r"train\.png"):
        image.load()


def test_no_set_with_another_use_trains_the_shipped_weights(shared_dir: Path) -> None:
    index = json.loads((shared_dir / "data" / "index.json").read_text())
    barred = {item["path"] for item in index["sets"] if item["use"] != "train"}
    batches = TrainingBatches(shared_dir / "data", SampleConfig(natural=NATURAL_SETS), 0, 1)
    assert barred and not barred & set(batches.sets)
    assert set(NATURAL_SETS) <= set(batches.sets)
    for name, images in batches.sets.items():
        val = {image.path for image in read_set(shared_dir / "data" / name, "val")}
        assert not val & {image.path for image in images}
