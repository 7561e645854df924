"""Published data sets as they are distributed, and what is said when they are not there."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.configs.published import open_scenes
from pipeline.data.benchmarks import check_samples, open_samples
from pipeline.data.coco_lvis import CocoLvisInstances
from pipeline.data.sbd import SbdInstances
from schemas.errors import BadAnnotationsError, BadInputError
from tests.pipeline.data.layouts import (
    SIZE,
    labels,
    photograph,
    write_coco_lvis,
    write_davis,
    write_grabcut,
    write_sbd,
    write_voc,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("name", ["grabcut", "berkeley"])
def test_grabcuts_grey_does_not_count(tmp_path: Path, name: str) -> None:
    if name == "grabcut":
        write_grabcut(tmp_path)
    else:
        write_grabcut(tmp_path, "images", "masks", ".png")
    samples = list(open_samples(f"{name}:{tmp_path}", None))
    assert [sample.sample_id for sample in samples] == ["a", "b"]
    gt = samples[0].read_gt()
    assert gt[20, 20] == 1 and gt[6, 6] == -1 and gt[0, 0] == 0
    assert samples[0].read_image().shape == (*SIZE, 3)


@pytest.mark.parametrize("form", ["palette.bmp", "palette.png", "16 bits.png", "colours.png"])
def test_masks_are_read_by_what_they_show(tmp_path: Path, form: str) -> None:
    photograph(tmp_path / "data_GT" / "a.jpg")
    shown = labels((128, 5, 5, 35, 55), (255, 10, 10, 30, 50))
    if form.startswith("palette"):
        mask = Image.fromarray(np.searchsorted([0, 128, 255], shown).astype(np.uint8))
        mask.putpalette([0, 0, 0, 128, 128, 128, 255, 255, 255])
    else:
        mask = Image.fromarray(shown * np.uint16(257) if form.startswith("16") else np.stack([shown] * 3, 2))
    (tmp_path / "boundary_GT").mkdir()
    mask.save(tmp_path / "boundary_GT" / f"a.{form.partition('.')[2]}")
    (sample,) = open_samples(f"grabcut:{tmp_path}", None)
    assert np.array_equal(sample.read_gt(), np.select([shown == 255, shown == 128], [1, -1], 0))


def test_photographs_without_a_mask_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_davis(tmp_path)
    assert len(list(open_samples(f"davis:{root}", None))) == 1 and not caplog.text
    photograph(root / "img" / "g.jpg")
    assert len(list(open_samples(f"davis:{root}", None))) == 1
    assert "1 photographs have no mask, such as g" in caplog.text


def test_what_file_browsers_leave_beside_masks_is_no_mask(tmp_path: Path) -> None:
    root = write_davis(tmp_path)
    for name in ("img/Thumbs.db", "gt/Thumbs.db", "gt/desktop.ini", "gt/.DS_Store"):
        (root / name).write_bytes(b"no image")
    assert [sample.sample_id for sample in open_samples(f"davis:{root}", None)] == ["f"]


@pytest.mark.parametrize("name", ["davis", "coco_mval"])
def test_davis_takes_whatever_is_not_black(tmp_path: Path, name: str) -> None:
    gt = next(iter(open_samples(f"{name}:{write_davis(tmp_path)}", None))).read_gt()
    assert gt[5, 5] == 1 and gt[25, 25] == 1 and gt[15, 15] == 0


def test_every_instance_of_sbds_validation_split_is_a_sample(tmp_path: Path) -> None:
    samples = list(open_samples(f"sbd:{write_sbd(tmp_path)}", None))
    assert [sample.sample_id for sample in samples] == ["y_1", "y_2"]
    assert np.array_equal(samples[1].read_gt(), (labels((1, 22, 30, 38, 58))).astype(np.int8))


def test_pascals_borders_do_not_count(tmp_path: Path) -> None:
    samples = list(open_samples(f"pascal_voc:{write_voc(tmp_path)}", None))
    assert [sample.sample_id for sample in samples] == ["p_1", "p_2"]
    gt = samples[0].read_gt()
    assert gt[10, 10] == 1 and gt[4, 4] == -1 and gt[30, 40] == 0


def test_sbd_trains_on_objects_that_fill_their_box(tmp_path: Path) -> None:
    scenes = SbdInstances(write_sbd(tmp_path), "train")
    scene = scenes.scene(0, RNG)
    assert len(scenes) == 1 and scene.masks.shape == (2, *SIZE) and scene.masks[0, 3, 3]


def test_coco_lvis_gives_instances_and_now_and_then_stuff(tmp_path: Path) -> None:
    root = write_coco_lvis(tmp_path)
    assert CocoLvisInstances(root, "train").scene(0, RNG).masks.shape == (2, *SIZE)
    with_stuff = CocoLvisInstances(root, "train", stuff_prob=1.0).scene(0, RNG)
    assert with_stuff.masks.shape == (3, *SIZE) and with_stuff.masks[2, 5, 50]


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch evil-was-here",))


def test_pickles_of_coco_lvis_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_coco_lvis(tmp_path)
    monkeypatch.chdir(tmp_path)
    (root / "train" / "masks" / "17.pickle").write_bytes(pickle.dumps(([_Evil()], [])))
    with pytest.raises(BadAnnotationsError, match="system"):
        CocoLvisInstances(root, "train").scene(0, RNG)
    (root / "train" / "hannotation.pickle").write_bytes(b"no pickle")
    with pytest.raises(BadAnnotationsError, match="can't be read"):
        CocoLvisInstances(root, "train")
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("grabcut:{}", "data_GT, boundary_GT"),
        ("berkeley:{}", "images, masks"),
        ("davis:{}", "img, gt"),
        ("coco_mval:{}", "no COCO_MVal set: img, gt"),
        ("sbd:{}", "val.txt"),
        ("pascal_voc:{}", "SegmentationObject"),
        ("grabcut:{}/nowhere", "there is no folder"),
        ("nosuch:{}", "neither a COCO file nor"),
    ],
)
def test_absent_data_are_named_with_what_is_expected(tmp_path: Path, spec: str, expected: str) -> None:
    with pytest.raises(BadInputError, match=expected):
        list(open_samples(spec.format(tmp_path), None))


@pytest.mark.parametrize(("data", "expected"), [("sbd", r"train\.txt"), ("cocolvis", r"hannotation\.pickle")])
def test_absent_training_data_are_named(tmp_path: Path, data: str, expected: str) -> None:
    with pytest.raises(BadInputError, match=expected):
        open_scenes(tmp_path, data)  # type: ignore[arg-type]


def test_a_broken_instance_file_is_named(tmp_path: Path) -> None:
    root = write_sbd(tmp_path)
    (root / "inst" / "y.mat").write_bytes(b"no matlab")
    with pytest.raises(BadAnnotationsError, match=r"y\.mat"):
        list(open_samples(f"sbd:{root}", None))


def test_instances_of_another_size_than_their_image_are_named(tmp_path: Path) -> None:
    root = write_sbd(tmp_path)
    Image.new("RGB", (SIZE[1], SIZE[0] + 1)).save(root / "img" / "y.jpg")
    with pytest.raises(BadAnnotationsError, match=r"y\.mat has size \(40, 60\), its image \(41, 60\)"):
        next(iter(open_samples(f"sbd:{root}", None))).read_gt()


def write_coco(root: Path, second: dict[str, object]) -> str:
    """Two photographs with one object each, the second object's entry as given; the path of the file."""
    for name in ("a", "b"):
        photograph(root / f"{name}.png")
    box = [[10, 10, 30, 10, 30, 30, 10, 30]]
    images = [{"id": i, "file_name": f"{n}.png", "height": SIZE[0], "width": SIZE[1]} for i, n in enumerate("ab")]
    objects = [
        {"id": 1, "image_id": 0, "category_id": 1, "segmentation": box},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], **second},
    ]
    document = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "x"}]}
    (root / "coco.json").write_text(json.dumps(document))
    return str(root / "coco.json")


@pytest.mark.parametrize("second", [{}, {"segmentation": []}, {"segmentation": None}])
def test_boxes_without_a_mask_are_left_out_and_said(
    tmp_path: Path, second: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    samples = list(open_samples(write_coco(tmp_path, second), str(tmp_path)))
    assert [sample.sample_id for sample in samples] == ["1"]
    assert "1 objects have a box and no mask" in caplog.text


def test_what_would_end_an_evaluation_in_its_middle_is_found_before_it(tmp_path: Path) -> None:
    data = write_coco(tmp_path, {"segmentation": [[1, 1, 5, 5]]})
    check_samples(open_samples(data, str(tmp_path)), limit=1)
    with pytest.raises(BadAnnotationsError, match="annotation 2"):
        check_samples(open_samples(data, str(tmp_path)))
    data = write_coco(tmp_path, {"segmentation": [[1, 1, 5, 5, 5, 1]]})
    check_samples(open_samples(data, str(tmp_path)))
    (tmp_path / "b.png").unlink()
    with pytest.raises(BadInputError, match=r"1 images .* such as .*b\.png"):
        check_samples(open_samples(data, str(tmp_path)))
    check_samples(open_samples(f"davis:{write_davis(tmp_path / 'davis')}", None))


@pytest.mark.parametrize(("name", "missing"), [("sbd", "img/y.jpg"), ("pascal_voc", "JPEGImages/p.jpg")])
def test_photographs_of_a_published_set_are_missed_before_it_is_evaluated(
    tmp_path: Path, name: str, missing: str
) -> None:
    root = {"sbd": write_sbd, "pascal_voc": write_voc}[name](tmp_path)
    samples = open_samples(f"{name}:{root}", None)
    check_samples(samples)
    assert len(list(samples)) == 2  # they are there for the evaluation, too
    (root / missing).unlink()
    with pytest.raises(BadInputError, match=rf"1 images of the data set are not there, such as .*{missing}"):
        check_samples(open_samples(f"{name}:{root}", None))


def test_a_dangling_link_is_missed_like_a_missingthat_is_not_there(tmp_path: Path) -> None:
    root = write_davis(tmp_path)
    (root / "img" / "f.jpg").unlink()
    (root / "img" / "f.jpg").symlink_to(root / "nowhere.jpg")
    with pytest.raises(BadInputError, match=r"1 images .* such as .*f\.jpg"):
        check_samples(open_samples(f"davis:{root}", None))


def test_labels_that_are_missing_are_told_before_the_first_click_but_not_beyond_the_limit(tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("p\nq\n")
    check_samples(open_samples(f"pascal_voc:{root}", None), limit=2)
    with pytest.raises(BadAnnotationsError, match=r"q\.png"):
        check_samples(open_samples(f"pascal_voc:{root}", None))
