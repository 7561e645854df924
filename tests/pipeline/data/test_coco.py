import copy
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.coco import parse_coco, read_coco
from pipeline.evaluation.run import evaluate
from pipeline.masks.rle import mask_to_rle, rle_area
from pipeline.models import create_model
from schemas.errors import BadAnnotationsError, BadImageError
from tests.pipeline.scenes import ellipse_scene

IMAGE, MASK = ellipse_scene(0, 60, 80)


def rle_of(mask: np.ndarray) -> dict[str, Any]:
    return mask_to_rle(mask).model_dump(mode="json")


DOCUMENT: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 80, "height": 60, "split": "train"},
        {"id": 7, "file_name": "sub/b.png", "width": 80, "height": 60, "split": "val"},
    ],
    "categories": [{"id": 3, "name": "ellipse"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "segmentation": rle_of(MASK), "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 3, "segmentation": [[1, 1, 9, 1, 9, 5, 1, 5]], "iscrowd": "0"},
        {"id": 3, "image_id": 1, "category_id": 3, "iscrowd": 1,
         "segmentation": {"size": [60, 80], "counts": [60, 120, 60 * 77]}},
        {"id": 4, "image_id": 7, "category_id": 3, "segmentation": rle_of(MASK),
         "ignore_segmentation": rle_of(np.eye(60, 80, dtype=np.bool_))},
    ],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.fromarray(IMAGE).save(tmp_path / "images" / name)
    write(tmp_path, DOCUMENT)
    return tmp_path


def write(folder: Path, document: Any) -> None:
    (folder / "annotations.json").write_text(json.dumps(document))


def read(folder: Path, split: str | None = None) -> Any:
    return read_coco(folder / "annotations.json", folder / "images", split)


def test_instances_come_image_by_image_without_crowds(folder: Path) -> None:
    data = read(folder)
    assert [sample.annotation_id for sample in data] == [2, 1, 4]
    assert len(data) == 3 and len(data.samples) == 4 and len(data.images) == 2
    assert {sample.category for sample in data} == {"ellipse"}
    assert [sample.annotation_id for sample in read(folder, "val")] == [1, 4]
    assert list(read(folder, "nope")) == []


def test_all_three_ways_to_write_a_mask(folder: Path) -> None:
    one, polygon, crowd, _ = sorted(read(folder).samples, key=lambda sample: sample.annotation_id)
    assert np.array_equal(one.read_gt() == 1, MASK)
    assert (polygon.read_gt() == 1).sum() == 8 * 4
    assert crowd.is_crowd and rle_area(crowd.rle()) == 120
    assert (crowd.read_gt()[:, 1:3] == 1).all()


def test_ignored_pixels_are_minus_one(folder: Path) -> None:
    gt = next(sample for sample in read(folder) if sample.annotation_id == 4).read_gt()
    eye = np.eye(60, 80, dtype=np.bool_)
    assert (gt[eye] == -1).all()
    assert np.array_equal(gt[~eye] == 1, MASK[~eye])


def test_images_are_decoded_once_for_consecutive_instances(folder: Path) -> None:
    samples = [sample for sample in read(folder) if sample.image.image_id == 7]
    assert np.array_equal(samples[0].read_image(), IMAGE)
    assert samples[0].read_image() is samples[1].read_image()


def test_a_model_is_evaluated_on_it(folder: Path) -> None:
    report = evaluate(create_model("toy-color"), read(folder, "val"), flip=False, max_clicks=3)
    assert report.samples == 2


def break_document(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    *parents, last = path.split(".")
    node: Any = document
    for key in parents:
        node = node[int(key)] if key.isdigit() else node[key]
    if value is None:
        del node[last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("images", None, "'images'"),
        ("annotations", {"a": 1}, "'annotations'"),
        ("annotations.0", 5, "'annotations'"),
        ("categories.0.id", "3", r"categories\[0\]: id is '3'"),
        ("categories.0.name", 5, r"categories\[0\]"),
        ("images.0.width", None, r"images\[0\]: width"),
        ("images.0.width", -5, r"images\[0\].*at least 1"),
        ("images.0.width", 10**9, r"images\[0\].*more than"),
        ("images.0.width", 80.5, r"images\[0\]: width"),
        ("images.1.id", 1, r"images\[1\]: id 1 occurs twice"),
        ("images.0.file_name", "../../etc/passwd", r"images\[0\]: file_name"),
        ("images.0.file_name", "/etc/passwd", r"images\[0\]: file_name"),
        ("annotations.1.id", 1, r"annotations\[1\]: id 1 occurs twice"),
        ("annotations.0.image_id", 99, r"annotations\[0\]: there is no image"),
        ("annotations.0.category_id", 99, r"annotations\[0\]: there is no category"),
        ("annotations.0.segmentation", None, r"annotations\[0\]: segmentation"),
        ("annotations.0.segmentation", "abc", r"annotations\[0\]: segmentation"),
        ("annotations.3.ignore_segmentation", 5, r"annotations\[3\]: ignore_segmentation"),
    ],
)
def test_malformed_files_are_refused_with_the_place(folder: Path, path: str, value: Any, message: str) -> None:
    write(folder, break_document(path, value))
    with pytest.raises(BadAnnotationsError, match=message):
        read(folder)


@pytest.mark.parametrize(
    "segmentation",
    [
        [],
        [[1, 2, 3]],
        [["a", 2, 3, 4, 5, 6]],
        [5],
        {"size": [60, 81], "counts": "0"},
        {"size": 5, "counts": "0"},
        {"counts": "0"},
        {"size": [60, 80]},
        {"size": [60, 80], "counts": 7},
        {"size": [60, 80], "counts": "zz\u20ac"},
        {"size": [60, 80], "counts": [1, "x"]},
        {"size": [60, 80], "counts": [10, 20]},
    ],
)
def test_malformed_segmentations_name_their_annotation(folder: Path, segmentation: Any) -> None:
    write(folder, break_document("annotations.0.segmentation", segmentation))
    sample = next(sample for sample in read(folder) if sample.annotation_id == 1)
    with pytest.raises(BadAnnotationsError, match="annotation 1, segmentation"):
        sample.read_gt()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_files_that_are_no_coco_are_refused(folder: Path, text: str) -> None:
    (folder / "annotations.json").write_text(text)
    with pytest.raises(BadAnnotationsError, match=r"annotations\.json"):
        read(folder)
    with pytest.raises(BadAnnotationsError, match="can't be read"):
        read_coco(folder / "missing.json", folder)


def test_missing_broken_and_resized_images_are_refused(folder: Path) -> None:
    (folder / "images" / "a.png").unlink()
    (folder / "images" / "sub" / "b.png").write_bytes(b"no image")
    first, second, _ = read(folder)
    with pytest.raises(BadImageError, match=r"a\.png can't be read"):
        first.read_image()
    with pytest.raises(BadImageError, match=r"b\.png"):
        second.read_image()
    Image.fromarray(IMAGE[:50]).save(folder / "images" / "a.png")
    with pytest.raises(BadAnnotationsError, match="50x80"):
        first.read_image()


def test_polygons_take_little_memory_and_what_tools_add_none() -> None:
    polygon = [10 + number / 64 for number in range(1000)]
    annotations = [
        {"id": n, "image_id": 1, "category_id": 1, "segmentation": [polygon], "lineage": {"by": [[n] * 2] * 1000}}
        for n in range(100)
    ]
    document = {"images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 40}],
                "categories": [{"id": 1, "name": "cat"}], "annotations": annotations}  # fmt: skip
    data = json.dumps(document).encode()
    tracemalloc.start()
    dataset = parse_coco(data, Path("The file"), None)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(dataset.samples) == 100 and held < 12 * 1000 * 100  # 32 bytes a number as Python has them
    assert most < len(data) + 30 * 1000 * 100
