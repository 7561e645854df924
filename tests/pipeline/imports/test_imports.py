"""Every format gives the masks that were put into it, names what it leaves out, and stores each mask once."""

import json
import math
import os
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from sqlalchemy.event import listen, remove

from pipeline.imports import Dropped, Found, Names, coco_json, import_masks, read_source
from pipeline.imports.found import NO_OBJECT
from pipeline.imports.label_studio import decode_brush
from pipeline.imports.names import CONTESTED, NO_IMAGE
from pipeline.imports.source import Source
from pipeline.imports.store import COUNTING, HELD, TWICE
from pipeline.masks.rle import mask_to_rle, rle_to_mask
from pipeline.storage.campaigns import get_campaign, list_categories
from pipeline.storage.click_log import Effects, InstanceChange
from pipeline.storage.database import Database
from pipeline.storage.images import images_of
from pipeline.storage.imported import revise_instances
from pipeline.storage.masks import count_imported, count_proposals, current_masks, proposed_masks
from pipeline.storage.tallies import recount, tallies
from pipeline.storage.tasks import claim_task
from schemas.arrow import UNLABELLED
from schemas.campaigns import ImageRecord
from schemas.errors import BadAnnotationsError, BadInputError
from schemas.requests import ImportFormat
from tests.pipeline.storage.catalogues import Catalogue, event, new_uuid

HEIGHT, WIDTH = 40, 60
Mask = NDArray[np.bool_]


def image(number: int, name: str) -> ImageRecord:
    return ImageRecord(
        id=str(number), campaign_id="c", number=number, uri=name, file_name=name, sha256="0" * 64, width=WIDTH,
        height=HEIGHT, holdout=False,
    )  # fmt: skip


NAMES = Names([image(1, "a/one.jpg"), image(2, "b/two, 'odd'.jpg"), image(3, "a/same.jpg"), image(4, "b/same.jpg")])


def disc(x: int, y: int, radius: int) -> Mask:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.asarray((rows - y) ** 2 + (columns - x) ** 2 <= radius**2)


MASKS = {"cat": disc(20, 20, 9), "a 'dog', <b>": disc(40, 15, 7)}


def found(url: Path, **options: Any) -> tuple[list[Found], list[Dropped]]:
    items = list(read_source(str(url), NAMES, **options))
    return [item for item in items if isinstance(item, Found)], [item for item in items if isinstance(item, Dropped)]


def agree(masks: list[Found], least: float) -> None:
    """The two masks, each under its category, on the first image."""
    assert [item.category for item in masks] == list(MASKS)
    for item in masks:
        mask, truth = rle_to_mask(item.rle), MASKS[item.category]
        assert item.image.number == 1
        assert (mask & truth).sum() / (mask | truth).sum() >= least


def outline(mask: Mask) -> list[list[float]]:
    contour, *_ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    return [[float(x) + 0.5, float(y) + 0.5] for x, y in contour.reshape(-1, 2)]


def coco_document(**changes: Any) -> dict[str, Any]:
    rles = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in MASKS.values()]
    annotations = [
        {"id": n, "image_id": 7, "category_id": n, "iscrowd": 0,
         "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}}
        for n, rle in enumerate(rles, 1)
    ]  # fmt: skip
    return {
        "images": [{"id": 7, "file_name": "a/one.jpg", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": n, "name": name} for n, name in enumerate(MASKS, 1)],
        "annotations": annotations,
        **changes,
    }


def test_coco_gives_its_masks_bit_for_bit_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    document = coco_document()
    rle, first = document["annotations"][0]["segmentation"], document["annotations"][0]
    runs = coco.decode({"size": rle["size"], "counts": rle["counts"].encode()}).flatten(order="F")
    changes = np.flatnonzero(np.diff(runs)) + 1
    plain = np.diff(np.concatenate([[0], changes, [runs.size]])).tolist()
    document["images"].append({"id": 8, "file_name": "elsewhere.jpg", "width": WIDTH, "height": HEIGHT})
    document["images"].append({"id": 9, "file_name": "b/same.jpg", "width": 2 * WIDTH, "height": HEIGHT})
    document["annotations"][0] = {**first, "segmentation": {"size": rle["size"], "counts": plain}}
    document["annotations"] += [
        {**first, "id": 3, "iscrowd": 1},
        {**first, "id": 4, "image_id": 8},
        {**first, "id": 5, "image_id": 9},
        {**first, "id": 6, "segmentation": {"size": rle["size"], "counts": [10**10]}},
        {**first, "id": 7, "segmentation": [[1, 2, 3]]},
        {**first, "id": 8, "segmentation": [[1e9, 0, 0, 1e9, 5, 5]]},
        {**first, "id": 9, "segmentation": []},
        {**first, "id": 10, "segmentation": None},
        {"id": 11, "image_id": 7, "category_id": 1, "bbox": [1, 1, 9, 9]},
    ]
    path = tmp_path / "any name.json"
    path.write_text(json.dumps(document))
    masks, dropped = found(path)
    agree(masks, 1.0)
    assert Counter(item.reason for item in dropped) == {
        "it is a crowd region, no single object": 1,
        NO_IMAGE: 1,
        "it is for an image of another size": 1,
        "the segmentation is malformed": 3,
        "it has no mask, a box at most": 3,
    }


@pytest.mark.parametrize("given", ["coco", "yolo-seg"])
def test_images_without_objects_are_named(tmp_path: Path, given: ImportFormat) -> None:
    """They would be missing in the next export without a word. Those that the campaign lacks are none of its."""
    document = coco_document()
    for number, name in ((8, "b/same.jpg"), (9, "elsewhere.jpg")):
        document["images"].append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(document))
    if given == "yolo-seg":
        path = tmp_path / "labels"
        (path / "b").mkdir(parents=True)
        (path / "b" / "same.txt").write_text("\n")
    dropped = found(path, given=given)[1]
    assert [item.reason for item in dropped] == [NO_OBJECT] and "b/same" in dropped[0].where


def test_the_text_of_a_coco_file_is_let_go_once_it_is_read() -> None:
    data = json.dumps(coco_document()).encode()
    items = coco_json.read(data, NAMES)
    held = sys.getrefcount(data)
    next(items)
    assert sys.getrefcount(data) == held - 1


def test_masks_of_cvats_coco_are_objects_though_it_calls_them_crowds(tmp_path: Path) -> None:
    """As Datumaro writes it: `iscrowd` for every mask that is no polygon, lists of runs, and `attributes`."""
    document = coco_document()
    for annotation in document["annotations"]:
        annotation |= {"iscrowd": 1, "attributes": {"occluded": False}}
    path = tmp_path / "instances_default.json"
    path.write_text(json.dumps(document))
    masks, dropped = found(path)
    agree(masks, 1.0)
    assert not dropped


@pytest.mark.parametrize("folder", ["/home/ann/project/a/", "../label-studio/upload/../a/", "C:\\ann\\a\\"])
def test_coco_may_name_its_images_by_any_path(tmp_path: Path, folder: str) -> None:
    document = coco_document()
    document["images"][0]["file_name"] = f"{folder}one.jpg"
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(document))
    agree(found(path)[0], 1.0)


def test_the_masks_without_a_category_of_our_own_exports_have_none_again(tmp_path: Path) -> None:
    document = coco_document()
    document["categories"][0] = {"id": 0, "name": UNLABELLED}
    document["annotations"][0]["category_id"] = 0
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(document))
    assert [item.category for item in found(path)[0]] == [None, list(MASKS)[1]]
    document["categories"][0]["id"] = document["annotations"][0]["category_id"] = 5
    path.write_text(json.dumps(document))
    assert [item.category for item in found(path)[0]] == [UNLABELLED, list(MASKS)[1]]


def test_lvis_names_its_images_by_url(tmp_path: Path) -> None:
    document = coco_document()
    del document["images"][0]["file_name"]
    document["images"][0]["coco_url"] = "http://images.cocodataset.org/train2017/one.jpg"
    (tmp_path / "lvis.json").write_text(json.dumps(document))
    agree(found(tmp_path / "lvis.json")[0], 1.0)


def test_yolo_lines_become_masks(tmp_path: Path) -> None:
    labels = tmp_path / "labels" / "train"
    labels.mkdir(parents=True)
    (tmp_path / "data.yaml").write_text("names:\n" + "".join(f"  {n}: {json.dumps(c)}\n" for n, c in enumerate(MASKS)))
    lines = [
        " ".join([str(n), *(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in outline(mask))])
        for n, mask in enumerate(MASKS.values())
    ]
    (labels / "one.txt").write_text("\ufeff" + "\n".join([*lines, "0 0.5 0.5 0.1 0.1", "0 nan 1 2 3 4 5", "x"]))
    (labels / "same.txt").write_text(lines[0])  # two images have this name
    masks, dropped = found(tmp_path)
    agree(masks, 0.85)  # polygons through the middles of the border's pixels
    assert sorted(item.reason for item in dropped) == [
        "it is a box, no mask",
        NO_IMAGE,
        "the line is malformed",
        "the line is malformed",
    ]


def test_a_folder_is_looked_through_as_at_ingest(tmp_path: Path) -> None:
    """Through links, each folder once, and no pipe is read: that would wait for ever."""
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    source.mkdir()
    elsewhere.mkdir()
    (source / "data.yaml").write_text("names: [a]")
    (elsewhere / "one.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5")
    (source / "labels").symlink_to(elsewhere)
    (elsewhere / "again").symlink_to(source)
    os.mkfifo(source / "two.txt")
    assert Source(str(source)).files == ["data.yaml", "labels/one.txt"]
    assert len(found(source)[0]) == 1


def test_label_studios_yolo_names_its_classes_in_a_list_and_uploads_by_a_prefix(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "classes.txt").write_text("\n".join(MASKS))
    (tmp_path / "notes.json").write_text('{"categories": [], "info": {}}')
    lines = [
        " ".join([str(n), *(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in outline(mask))])
        for n, mask in enumerate(MASKS.values())
    ]
    (tmp_path / "labels" / "0a1b2c3d-one.txt").write_text("\n".join(lines))
    for name in ("README.dataset.txt", "README.roboflow.txt"):  # beside Roboflow's labels
        (tmp_path / name).write_text("text")
    masks, dropped = found(tmp_path, given="yolo-seg")
    agree(masks, 0.85)
    assert not dropped


def test_label_maps_give_a_mask_per_class_or_per_instance(tmp_path: Path) -> None:
    first, second = MASKS.values()
    classes = np.where(first, 1, np.where(second, 2, 0)).astype(np.uint8)
    classes[0] = 255
    picture = Image.fromarray(classes, mode="P")
    picture.putpalette([255 - n // 3 for n in range(768)])
    picture.save(tmp_path / "one.png")
    (tmp_path / "classes.txt").write_text("background\n" + "\n".join(MASKS))
    (tmp_path / "notes.md").write_text("nothing")
    Image.fromarray(np.ones((3, 3), np.uint8)).save(tmp_path / "two, 'odd'.png")
    masks, dropped = found(tmp_path, given="label-map")
    agree(masks, 1.0)
    assert [item.reason for item in dropped] == ["it is for an image of another size"]
    deep = tmp_path / "deep"
    deep.mkdir()
    Image.fromarray(np.where(first, 700, np.where(second, 40_000, 0)).astype(np.uint16)).save(deep / "one.png")
    instances, _ = found(deep, given="instance-map", category="cell")
    assert [(item.category, int(rle_to_mask(item.rle).sum())) for item in instances] == [
        ("cell", first.sum()),
        ("cell", second.sum()),
    ]
    (deep / "one.png").write_bytes(b"no png")
    with pytest.raises(BadAnnotationsError, match=r"one\.png"):
        found(deep, given="instance-map")


def test_label_maps_of_few_bits_keep_their_values(tmp_path: Path) -> None:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[2:5, 2:6], labels[7:9, 2:6] = 1, 3
    for bits in (2, 4):
        folder = tmp_path / str(bits)
        folder.mkdir()
        shares = 8 // bits
        padded = np.pad(labels, ((0, 0), (0, -WIDTH % shares))).reshape(HEIGHT, -1, shares)
        packed = (padded << np.arange(8 - bits, -1, -bits, np.uint8)).sum(2).astype(np.uint8)
        rows = b"".join(b"\0" + row.tobytes() for row in packed)
        header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, 0, 0, 0, 0)
        parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        chunks = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts]
        (folder / "one.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
        masks, _ = found(folder, given="label-map")
        assert [(item.category, int(rle_to_mask(item.rle).sum())) for item in masks] == [
            ("class 1", 12),
            ("class 3", 8),
        ]


def cvat_document(shapes: str) -> str:
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    return f'<annotations><version>1.1</version><image id="0" name="a/one.jpg" {size}>{shapes}</image></annotations>'


def test_cvat_gives_masks_in_its_own_code_and_polygons(tmp_path: Path) -> None:
    (first, mask), (second, other) = MASKS.items()
    rows, columns = np.nonzero(mask)
    top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    flat = mask[top:bottom, left:right].ravel()
    bounds = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    runs = ", ".join(str(run) for run in ([0] if flat[0] else []) + np.diff(bounds).tolist())
    box = f'left="{left}" top="{top}" width="{right - left}" height="{bottom - top}"'
    points = ";".join(f"{x},{y}" for x, y in outline(other))
    shapes = (
        f'<mask label={quoteattr(first)} rle="{runs}" {box}/>'
        f'<polygon label={quoteattr(second)} points="{points}"/>'
        f'<box label="cat" xtl="1" ytl="1" xbr="5" ybr="5"/><mask label="cat" rle="7" {box}/>'
        f'<polygon label="cat" points="1,2;x"/>'
    )
    path = tmp_path / "annotations.xml"
    path.write_text(cvat_document(shapes))
    masks, dropped = found(path)
    agree(masks, 0.85)  # polygons through the middles of the border's pixels
    assert np.array_equal(rle_to_mask(masks[0].rle), mask)
    assert [item.reason for item in dropped] == ["a box is no mask", *["the mask is malformed"] * 2]
    path.write_text('<!DOCTYPE x [<!ENTITY a "aaaa">]>' + cvat_document("&a;"))
    with pytest.raises(BadAnnotationsError, match="entities"):
        found(path)


def test_shapes_of_a_group_in_cvat_are_parts_of_one_object(tmp_path: Path) -> None:
    one, other, bad = ("1,1;5,1;5,4;1,4", "7,1;9,1;9,4;7,4", "1,2;x")
    near = '<mask label="cat" group_id="1" rle="0,4" left="7" top="5" width="2" height="2"/>'
    shapes = f'<polygon label="dog" group_id="1" points="{one}"/><polygon label="dog" points="{other}"/>' + "".join(
        f'<polygon label="cat" group_id="{group}" points="{points}"/>'
        for group, points in ((1, one), (2, other), (1, other), (3, one), (3, bad))
    )
    path = tmp_path / "annotations.xml"
    path.write_text(cvat_document(shapes + near))
    masks, dropped = found(path)
    got = {mask.key[-1]: rle_to_mask(mask.rle) for mask in masks}
    assert [(mask.category, mask.key[-1]) for mask in masks] == [("dog", "0"), ("dog", "1"), ("cat", "2"), ("cat", "3")]
    square = np.zeros((HEIGHT, WIDTH), np.bool_)
    square[5:7, 7:9] = True
    assert np.array_equal(got["2"], got["0"] | got["1"] | square)
    assert [item.reason for item in dropped] == ["the mask is malformed"]


def encode_brush(values: NDArray[np.uint8]) -> list[int]:
    """Label Studio's code with counts of 3, 4, 8 and 16 bits, runs where it pays."""
    lengths = [3, 4, 8, 16]
    bits = f"{values.size:032b}{7:05b}" + "".join(f"{length - 1:04b}" for length in lengths)
    at = 0
    while at < values.size:
        same = 1
        while at + same < values.size and same < 2**16 and values[at + same] == values[at]:
            same += 1
        repeated = same > 2
        count = same if repeated else min(2, values.size - at)
        choice = next(n for n, length in enumerate(lengths) if count <= 2**length)
        bits += f"{int(repeated)}{choice:02b}{count - 1:0{lengths[choice]}b}"
        bits += "".join(f"{value:08b}" for value in (values[at : at + 1] if repeated else values[at : at + count]))
        at += count
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


@given(st.lists(st.integers(0, 255), min_size=1, max_size=300), st.integers(1, 40))
def test_brush_code_is_read_back(values: list[int], times: int) -> None:
    pixels = np.repeat(np.array(values, np.uint8), times)
    code = encode_brush(pixels)
    assert np.array_equal(decode_brush(code, pixels.size), pixels)
    with pytest.raises(BadInputError):
        decode_brush(code, pixels.size + 1)
    with pytest.raises(BadInputError):
        decode_brush(code[:-2], pixels.size)


def test_coco_results_are_taken_by_the_ids_of_the_campaign(tmp_path: Path) -> None:
    masks = [annotation["segmentation"] for annotation in coco_document()["annotations"]]
    good = {"image_id": 1, "category_id": 2, "segmentation": masks[0], "score": 0.9}
    results = [
        good,
        {**good, "image_id": "b/same", "category_id": 0, "segmentation": masks[1], "score": 0.5},
        {**good, "score": 0.4},
        {**good, "image_id": 9},
        {**good, "image_id": "elsewhere"},
        {**good, "category_id": 7},
        {**good, "segmentation": None, "bbox": [1, 2, 3, 4]},
        {**good, "segmentation": {**masks[0], "size": [WIDTH, HEIGHT]}},
        {**good, "score": "high"},
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    taken, dropped = found(path, given="coco-results", categories={2: "cat"}, min_score=0.5)
    assert [(mask.image.number, mask.category, mask.score) for mask in taken] == [(1, "cat", 0.9), (4, None, 0.5)]
    assert [bool((rle_to_mask(mask.rle) == truth).all()) for mask, truth in zip(taken, MASKS.values(), strict=True)]
    assert Counter(one.reason for one in dropped) == {
        "its score is below 0.5": 1,
        "the campaign has no image of this number": 1,
        NO_IMAGE: 1,
        "the campaign has no category of this number": 1,
        "it has no mask, a box at most": 1,
        "the segmentation is malformed, or of another image's size": 1,
        "its score is no number from 0 to 1": 1,
    }
    with pytest.raises(BadAnnotationsError, match="--format coco-results"):
        found(path)
    path.write_text(json.dumps(coco_document()))
    with pytest.raises(BadAnnotationsError, match="no list of COCO results"):
        found(path, given="coco-results")
    with pytest.raises(BadInputError, match="Masks of coco have no score"):
        found(path, min_score=0.5)


def test_label_studio_gives_brush_masks_and_polygons(tmp_path: Path) -> None:
    (first, mask), (second, other) = MASKS.items()
    rgba = np.repeat((mask * 255).astype(np.uint8)[:, :, None], 4, axis=2)
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    points = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in outline(other)]
    results = [
        {"id": "r1", "type": "brushlabels", **size,
         "value": {"format": "rle", "rle": encode_brush(rgba.ravel()), "brushlabels": [first]}},
        {"id": "r2", "type": "polygonlabels", **size, "value": {"points": points, "polygonlabels": [second]}},
        {"id": "r3", "type": "rectanglelabels", **size, "value": {}},
        {"id": "r4", "type": "brushlabels", **size, "value": {"rle": [0, 0, 0, 9], "brushlabels": ["cat"]}},
    ]  # fmt: skip
    tasks = [
        {"id": 1, "data": {"image": "/data/upload/3/0a1b2c3d-one.jpg"}, "annotations": [{"result": results}]},
        {"id": 2, "data": {"image": "/data/local-files/?d=nowhere.jpg"}, "annotations": [{"result": results}]},
        {"id": 3, "data": {"image": "a/one.jpg"}, "annotations": [{"was_cancelled": True, "result": results}]},
        {"id": 4, "data": {"image": "a/one.jpg"}, "predictions": [{"result": results}]},
    ]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks))
    masks, dropped = found(path)
    agree(masks, 0.85)  # polygons through the middles of the border's pixels
    assert np.array_equal(rle_to_mask(masks[0].rle), mask)
    assert [item.reason for item in dropped] == [
        "a rectanglelabels is no mask",
        "the mask is malformed",
        NO_IMAGE,
        "its annotation was cancelled",
        "it has predictions only, no annotation",
    ]


def test_a_label_that_is_text_is_the_whole_name(tmp_path: Path) -> None:
    value = {"points": [[1, 1], [90, 1], [50, 90]], "polygonlabels": "cat"}
    result = {"type": "polygonlabels", "original_width": WIDTH, "original_height": HEIGHT, "value": value}
    (tmp_path / "x.json").write_text(json.dumps([{"data": {"i": "one.jpg"}, "annotations": [{"result": [result]}]}]))
    assert [mask.category for mask in found(tmp_path)[0]] == ["cat"]


def label_studio_task(data: dict[str, str], *results: dict[str, Any]) -> dict[str, Any]:
    """With a polygon of no label, unless there are other results."""
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    points = [[1, 1], [90, 1], [50, 90]]
    given = results or ({"type": "polygon", "value": {"points": points}},)
    return {"data": data, "annotations": [{"result": [{**size, **result} for result in given]}]}


def test_a_column_of_text_is_not_taken_for_the_image(tmp_path: Path) -> None:
    upload = "/data/upload/1/abcdef12-one.jpg"
    polygon = {"type": "polygon", "to_name": "photo", "value": {"points": [[1, 1], [90, 1], [50, 90]]}}
    other = "b/two, 'odd'.jpg"
    tasks = [
        label_studio_task({"case": "two, 'odd'", "image": upload}),
        label_studio_task({"case": "one", "image": "/data/upload/1/abcdef12-gone.jpg"}),
        label_studio_task({"overview": other, "photo": upload}),
        label_studio_task({"overview": other, "photo": upload}, polygon),
    ]
    (tmp_path / "x.json").write_text(json.dumps(tasks))
    masks, dropped = found(tmp_path)
    assert [mask.image.file_name for mask in masks] == ["a/one.jpg"] * 2
    assert [(item.reason, item.where) for item in dropped] == [
        (NO_IMAGE, "task 1"),
        ("its data names several images of the campaign", "task 2"),
    ]


def test_local_files_are_judged_by_the_path_that_their_url_names(tmp_path: Path) -> None:
    names = Names([image(1, "one.jpg").model_copy(update={"uri": "/x/dir/one.jpg"}), image(2, "odd?d=1.jpg")])
    urls = ["/data/local-files/?d=other/one.jpg", "/data/local-files/?d=dir/one.jpg", "odd?d=1.jpg"]
    (tmp_path / "x.json").write_text(json.dumps([label_studio_task({"image": url}) for url in urls]))
    items = list(read_source(str(tmp_path), names))
    assert [item.image.number if isinstance(item, Found) else item.reason for item in items] == [CONTESTED, 1, 2]


def test_labels_apart_from_their_masks_are_theirs(tmp_path: Path) -> None:
    value = {"points": [[1, 1], [90, 1], [50, 90]]}
    results = [
        {"id": "r1", "type": "polygon", "value": value},
        {"id": "r1", "type": "labels", "value": {**value, "labels": ["Cat"]}},
        {"id": "r2", "type": "labels", "value": {"start": 0, "labels": ["Text"]}},
        {"id": "r3", "type": "polygon", "value": value},
    ]
    (tmp_path / "x.json").write_text(json.dumps([label_studio_task({"image": "a/one.jpg"}, *results)]))
    masks, dropped = found(tmp_path)
    assert [mask.category for mask in masks] == ["Cat", "object"]
    assert [item.reason for item in dropped] == ["a labels is no mask"]


def test_no_format_takes_an_image_for_its_namesake(tmp_path: Path) -> None:
    document = coco_document()
    document["images"].append({**document["images"][0], "id": 8, "file_name": "elsewhere/one.jpg"})
    document["annotations"][1]["image_id"] = 8
    lines = "0 0.1 0.1 0.5 0.1 0.5 0.5"
    shapes = '<polygon label="cat" points="1,1;20,1;20,20"/>'
    (tmp_path / "coco.json").write_text(json.dumps(document))
    (tmp_path / "cvat.xml").write_text(cvat_document(shapes).replace("a/one", "a\\one"))
    (tmp_path / "other.xml").write_text(cvat_document(shapes).replace("a/one", "elsewhere\\one"))
    for folder in ("a", "elsewhere"):
        (tmp_path / "yolo" / folder).mkdir(parents=True)
        (tmp_path / "yolo" / folder / "one.txt").write_text(lines)
        (tmp_path / "maps" / folder).mkdir(parents=True)
        Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)).save(tmp_path / "maps" / folder / "one.png")
    tasks = [label_studio_task({"image": f"{folder}/one.jpg"}) for folder in ("a", "elsewhere")]
    (tmp_path / "studio.json").write_text(json.dumps(tasks))
    for name, format_ in (("coco.json", "coco"), ("yolo", "yolo-seg"), ("maps", "label-map"), ("studio.json", None)):
        masks, dropped = found(tmp_path / name, given=format_)
        assert ([mask.image.number for mask in masks], [item.reason for item in dropped]) == ([1], [NO_IMAGE]), name
    assert [mask.image.number for mask in found(tmp_path / "cvat.xml")[0]] == [1]
    assert [item.reason for item in found(tmp_path / "other.xml")[1]] == [NO_IMAGE]


def test_lines_of_our_own_export_are_outlines_by_pixels(tmp_path: Path) -> None:
    corners = [(2, 3), (8, 3), (8, 9), (2, 9)]
    line = " ".join(["0", *(f"{(x + 0.5) / WIDTH:.6f} {(y + 0.5) / HEIGHT:.6f}" for x, y in corners)])
    (tmp_path / "data.yaml").write_text("names: [cat]")
    (tmp_path / "sources.jsonl").write_text(json.dumps({"labels": "labels/7.txt", "file_name": "a/one.jpg"}) + "\n")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "7.txt").write_text(
        f"{line}\n0 0.5 0.5 1.5 0.5 0.5 0.6\n0 nan 0.5 0.5 0.5 0.5 0.6\n0 1 1 1\n"
    )
    (tmp_path / "labels" / "one.txt").write_text(line)
    masks, dropped = found(tmp_path)
    truth = np.zeros((HEIGHT, WIDTH), np.bool_)
    truth[3:10, 2:9] = True
    assert [mask.image.number for mask in masks] == [1] and np.array_equal(rle_to_mask(masks[0].rle), truth)
    assert [item.reason for item in dropped] == [*["the line is malformed"] * 3, NO_IMAGE]


@pytest.mark.parametrize("line", ["{", "3", "null", '{"labels": 3}', '{"labels": 3, "file_name": "x"}', "[" * 100_000])
def test_a_foreign_list_of_sources_is_refused_in_words(tmp_path: Path, line: str) -> None:
    (tmp_path / "data.yaml").write_text("names: [cat]")
    (tmp_path / "sources.jsonl").write_text('{"labels": "labels/1.txt", "file_name": "a/one.jpg"}\n' + line)
    with pytest.raises(BadAnnotationsError, match=r"sources\.jsonl, line 2"):
        found(tmp_path)


def test_paths_that_were_written_on_windows_are_found() -> None:
    for name in ("C:\\photos\\one.jpg", "images\\one.jpg"):
        assert (image := NAMES.find(name)) is not None and image.file_name.endswith("one.jpg")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.json", b'[{"image_id": 1, "category_id": 1, "segmentation": [], "score": 1}]', "COCO's results"),
        ("x.json", b'[{"id": 1, "image": "/data/one.jpg", "label": []}]', "JSON-MIN"),
        ("x.xml", b'<annotations><track id="0" label="cat"/></annotations>', "CVAT for video"),
    ],
)
def test_related_formats_are_told_apart(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadAnnotationsError, match=says):
        found(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", b"{"),
        ("x.json", b"3"),
        ("x.json", b"[1, 2]"),
        ("x.json", b'{"images": []}'),
        ("x.xml", b"<annotations>"),
        ("x.xml", b"<dataset/>"),
        ("x.bin", b"\0\1"),
        ("data.yaml", b"names: 3"),
        ("data.yaml", b"names: [unclosed"),
    ],
)
def test_what_is_no_annotation_file_is_refused_in_words(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadAnnotationsError):
        found(tmp_path)


def test_what_is_wrong_in_a_coco_file_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"images": [{"id": "9" * 1_000_000}]}))
    with pytest.raises(BadAnnotationsError, match=r"images\[0\]: id is '9+; expected") as caught:
        found(tmp_path)
    assert len(str(caught.value)) < 300


def test_nothing_and_too_much_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadAnnotationsError, match="no annotations"):
        found(tmp_path / "missing.json")
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(BadAnnotationsError, match=r"2 \.json files"):
        found(tmp_path)


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.json").write_text("\ufeff\n " + json.dumps(coco_document()), encoding="utf-8")
    reads, read = list[str](), Source.read

    def counted(source: Source, name: str) -> bytes:
        reads.append(name)
        return read(source, name)

    monkeypatch.setattr(Source, "read", counted)
    agree(found(tmp_path)[0], 1)
    assert reads == ["x.json"]


@pytest.mark.parametrize("format_", ["yolo-seg", "label-map", "instance-map"])
def test_a_folder_without_a_file_of_the_format_is_refused(tmp_path: Path, format_: ImportFormat) -> None:
    (tmp_path / "coco.json").write_text("{}")
    with pytest.raises(BadAnnotationsError, match="--format"):
        found(tmp_path, given=format_)


def of_campaign(catalogue: Catalogue, masks: list[Mask]) -> Callable[[], Any]:
    with catalogue.database.connect() as conn:
        first = images_of(conn, catalogue.campaign_id)[0]
    items = [Found(first, f"class {n}", f"k{n}", mask_to_rle(mask)) for n, mask in enumerate(masks)]
    return lambda: iter([*items, Dropped("no reason", "here")])


def test_masks_are_stored_once_as_proposals_or_as_truth(database: Database) -> None:
    catalogue = Catalogue(database, images=2)
    with database.connect() as conn:
        campaign = get_campaign(conn, catalogue.campaign_id)
    masks = [np.eye(4, dtype=np.bool_), np.ones((4, 4), np.bool_), np.zeros((4, 4), np.bool_)]
    read = of_campaign(catalogue, masks)
    look = import_masks(database, campaign, read(), is_trusted=False, is_look=True)
    assert (look.masks, look.stored, look.images) == ({"class 0": 1, "class 1": 1}, 0, 1)
    assert look.dropped == {"no reason": 1, "the mask is empty": 1} and math.isclose(look.round_trip_iou, 1.0)
    with database.connect() as conn:
        assert count_proposals(conn, campaign.id) == 0
    assert import_masks(database, campaign, read(), is_trusted=False).stored == 2
    assert import_masks(database, campaign, read(), is_trusted=False).stored == 0
    with database.connect() as conn:
        assert count_proposals(conn, campaign.id) == 2 and current_masks(conn, campaign.id) == []
        first = images_of(conn, campaign.id)[0]
        proposed = proposed_masks(conn, campaign.id, first.id)
        assert [np.array_equal(rle_to_mask(m.rle), t) for m, t in zip(proposed, masks, strict=False)] == [True, True]
        assert {"class 0", "class 1"} <= {category.name for category in list_categories(conn, campaign.id)}
    bare = [replace(item, category=None, key="bare") for item in read() if isinstance(item, Found)][:1]
    report = import_masks(database, campaign, iter(bare), is_trusted=False)
    assert (report.masks, report.stored) == ({"(none)": 1}, 1)
    with database.connect() as conn:
        assert "(none)" not in {category.name for category in list_categories(conn, campaign.id)}
        assert proposed_masks(conn, campaign.id, first.id)[-1].category_number is None
    truth = of_campaign(catalogue, [~np.eye(4, dtype=np.bool_)])
    assert import_masks(database, campaign, truth(), is_trusted=True).stored == 1
    with database.connect() as conn:
        assert len(current_masks(conn, campaign.id)) == 1 and count_proposals(conn, campaign.id) == 3


def test_a_second_import_lets_proposals_count_and_takes_over_categories(database: Database) -> None:
    catalogue = Catalogue(database, images=2)
    with database.connect() as conn:
        campaign = get_campaign(conn, catalogue.campaign_id)
    read = of_campaign(catalogue, [np.eye(4, dtype=np.bool_), np.ones((4, 4), np.bool_)])

    def again(category: str | None, *, is_trusted: bool) -> tuple[int, int, dict[str, int]]:
        items = (replace(item, category=category) if isinstance(item, Found) else item for item in read())
        report = import_masks(database, campaign, items, is_trusted=is_trusted)
        return report.stored, report.changed, report.kept

    def there() -> tuple[list[str], list[str]]:
        """The categories of what is proposed and of what counts."""
        with database.connect() as conn:
            image = images_of(conn, campaign.id)[0]
            found = proposed_masks(conn, campaign.id, image.id), current_masks(conn, campaign.id)
            names = {record.number: record.name for record in list_categories(conn, campaign.id)}
            assert count_proposals(conn, campaign.id) == len(found[0])
        proposed, current = ([names.get(mask.category_number or 0, "") for mask in masks] for masks in found)
        return proposed, current

    assert again("calf", is_trusted=False) == (2, 0, {})
    assert again("cow", is_trusted=False) == (0, 2, {}) and there() == (["cow"] * 2, [])
    assert again("cow", is_trusted=False) == (0, 0, {}) and there() == (["cow"] * 2, [])
    assert again("cow", is_trusted=True) == (0, 2, {}) and there() == ([], ["cow"] * 2)
    assert again("calf", is_trusted=False) == (0, 0, {COUNTING: 2}) and there() == ([], ["cow"] * 2)
    assert again("calf", is_trusted=True) == (0, 2, {}) and there() == ([], ["calf"] * 2)
    assert again(None, is_trusted=True) == (0, 2, {}) and there() == ([], [""] * 2)
    with database.connect() as conn:
        assert {mask.version for mask in current_masks(conn, campaign.id)} == {4}
    with database.begin() as conn:
        recount(conn)
    assert there() == ([], [""] * 2)


def test_masks_that_the_source_numbers_anew_are_known_again(database: Database) -> None:
    catalogue = Catalogue(database, images=2)
    with database.connect() as conn:
        campaign = get_campaign(conn, catalogue.campaign_id)
        first, second = images_of(conn, campaign.id)
    eye, full = mask_to_rle(np.eye(4, dtype=np.bool_)), mask_to_rle(np.ones((4, 4), np.bool_))
    # Two of the same are two, also on images of the same masks.
    items = [(first, "a", eye), (first, "b", full), (second, "b", full), (first, "b", full), (second, "a", eye)]

    def again(kept: list[int], *, is_trusted: bool = False) -> tuple[int, int]:
        named = [Found(items[at][0], items[at][1], f"k{number}", items[at][2]) for number, at in enumerate(kept)]
        report = import_masks(database, campaign, iter(named), is_trusted=is_trusted)
        return report.stored, report.changed

    assert again([0, 1, 2, 3]) == (4, 0)
    with database.connect() as conn:
        deleted = proposed_masks(conn, campaign.id, first.id)[0]
    claim = catalogue.claim(image_id=first.id)
    instance = new_uuid()
    for seq, (kind, payload, state) in enumerate(
        [("open", {"mask_id": deleted.id}, "open"), ("delete", {}, "deleted")], 1
    ):
        effects = Effects([InstanceChange(instance, state)])
        catalogue.append(claim, event(claim, seq, kind, instance_id=instance, payload=payload), effects=effects)
    catalogue.append(claim, event(claim, 3, "submit"))
    assert again([1, 2, 3]) == again([3, 2, 1, 0]) == (0, 0)  # what somebody deleted does not come back
    assert again([2, 4, 3, 1]) == (1, 0)
    assert again([4, 3, 1, 2], is_trusted=True) == (0, 4)
    with database.connect() as conn:
        assert len(current_masks(conn, campaign.id)) == 4 and count_proposals(conn, campaign.id) == 0


def test_one_mask_twice_by_the_same_name_is_one(database: Database) -> None:
    """Two people accepted the same prediction in Label Studio: their results have its id."""
    catalogue = Catalogue(database, images=1)
    with database.connect() as conn:
        campaign = get_campaign(conn, catalogue.campaign_id)
    read = of_campaign(catalogue, [np.eye(4, dtype=np.bool_)])
    [item] = [item for item in read() if isinstance(item, Found)]
    for stored in (1, 0):
        both = iter([item, replace(item, category="other")])
        report = import_masks(database, campaign, both, is_trusted=True)
        assert (report.masks, report.stored, report.changed) == ({"class 0": 1}, stored, 0)
        assert report.dropped == {TWICE: 1}


def test_a_second_import_leaves_alone_what_people_work_on(database: Database) -> None:
    catalogue = Catalogue(database, images=2)
    with database.connect() as conn:
        campaign = get_campaign(conn, catalogue.campaign_id)
        first = images_of(conn, campaign.id)[0]
    read = of_campaign(catalogue, [np.eye(4, dtype=np.bool_), np.ones((4, 4), np.bool_)])
    assert import_masks(database, campaign, read(), is_trusted=False).stored == 2
    with database.connect() as conn:
        corrected, other = proposed_masks(conn, campaign.id, first.id)
    claim = catalogue.claim(image_id=first.id)
    report = import_masks(database, campaign, read(), is_trusted=True)  # somebody has just claimed the image
    assert (report.stored, report.changed, report.kept) == (0, 0, {HELD: 2})
    made = catalogue.label(claim, opened=corrected.id)
    report = import_masks(database, campaign, read(), is_trusted=True)
    assert (report.stored, report.changed, report.kept) == (0, 1, {HELD: 1})
    with database.connect() as conn:
        assert {mask.id for mask in current_masks(conn, campaign.id)} == {made.mask_id, other.id}
        assert count_proposals(conn, campaign.id) == 0


def test_a_second_import_and_people_do_not_wait_for_each_other(postgres_database: Database) -> None:
    catalogue = Catalogue(postgres_database, images=3)
    with postgres_database.connect() as conn:
        campaign = get_campaign(conn, catalogue.campaign_id)
    mask = mask_to_rle(np.eye(4, dtype=np.bool_))

    def again(category: str) -> tuple[int, dict[str, int]]:
        items = iter([Found(image, category, "k", mask) for image in catalogue.images])
        report = import_masks(postgres_database, campaign, items, is_trusted=False)
        return report.changed, report.kept

    again("calf")
    held = catalogue.claim()
    with postgres_database.begin() as conn:
        claim_task(conn, campaign.id, catalogue.other_id, claim_id=new_uuid(), lease_s=60.0)
        assert again("cow") == (1, {HELD: 2})
    with postgres_database.begin() as conn:
        proposed = [found for image in catalogue.images for found in proposed_masks(conn, campaign.id, image.id)]
        categories = dict.fromkeys((found.instance_id for found in proposed), 1)
        assert revise_instances(conn, campaign.id, categories, is_trusted=False) == 1
        assert not catalogue.append(held, event(held, 1)).duplicate


def test_a_correction_of_an_older_version_replaces_the_mask_that_counts(database: Database) -> None:
    catalogue = Catalogue(database, images=1)
    with database.connect() as conn:
        campaign = get_campaign(conn, catalogue.campaign_id)
    read = of_campaign(catalogue, [np.eye(4, dtype=np.bool_)])

    def again(category: str) -> int:
        items = (replace(item, category=category) for item in read() if isinstance(item, Found))
        return import_masks(database, campaign, items, is_trusted=True).changed

    again("calf")
    with database.connect() as conn:
        [first] = current_masks(conn, campaign.id)
    lost = catalogue.claim()
    catalogue.append(lost, event(lost, 1, "open", payload={"mask_id": first.id}))
    catalogue.expire(lost)
    other = catalogue.claim(catalogue.other_id)
    catalogue.append(other, event(other, 1, "release"), catalogue.other_id)
    assert again("cow") == 1
    with database.connect() as conn:
        [second] = current_masks(conn, campaign.id)
    made = catalogue.label(catalogue.claim(), opened=first.id)  # the lost work is put back
    with database.connect() as conn:
        [current] = current_masks(conn, campaign.id)
        assert (current.id, current.parent_id) == (made.mask_id, second.id)
    assert again("calf") == 0

    def counts() -> tuple[int, dict[str, int]]:
        with database.connect() as conn:
            return count_imported(conn, campaign.id), tallies(conn, campaign.id, "mask")

    before = counts()
    with database.begin() as conn:
        recount(conn)
    assert before == counts() == (0, {"1": 1})


def test_many_masks_take_few_statements_and_no_pass_over_all_that_are_there(sqlite_database: Database) -> None:
    catalogue = Catalogue(sqlite_database, images=1)
    with sqlite_database.connect() as conn:
        campaign = get_campaign(conn, catalogue.campaign_id)
    masks = [np.array([int(bit) for bit in f"{number:016b}"], np.bool_).reshape(4, 4) for number in range(1, 151)]
    statements: list[tuple[str, Any]] = []

    def collect(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        statements.append((statement, parameters))

    listen(sqlite_database.engine, "before_cursor_execute", collect)
    items = (replace(item, category="x") for item in of_campaign(catalogue, masks)() if isinstance(item, Found))
    report = import_masks(sqlite_database, campaign, items, is_trusted=True)
    assert report.stored == len(masks) and len(statements) < len(masks)
    others = (replace(item, category="y") for item in of_campaign(catalogue, masks[:10])() if isinstance(item, Found))
    assert import_masks(sqlite_database, campaign, others, is_trusted=True).changed == 10
    remove(sqlite_database.engine, "before_cursor_execute", collect)
    with sqlite_database.connect() as conn:
        plans = {
            str(row[3])
            for statement, parameters in statements
            if statement.startswith("SELECT") and "mask_sha256 IN" in statement
            for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        }
        assert any("ix_instances_campaign_image (campaign_id=? AND image_id=?)" in plan for plan in plans)
        known = [entry for entry in statements if "instances.id IN" in entry[0] and entry[0].startswith("SELECT")]
        for statement, parameters in known:
            plan = conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            used = [row[3].rpartition(" (")[2] for row in plan if row[3].startswith("SEARCH instances ")]
            assert used in (["id=?)"], ["image_id=?)"]), statement
    assert len(known) > 3


def test_source_that_breaks_leaves_nothing_behind(database: Database) -> None:
    catalogue = Catalogue(database, images=1)
    with database.connect() as conn:
        campaign = get_campaign(conn, catalogue.campaign_id)
    good = of_campaign(catalogue, [np.ones((4, 4), np.bool_)])

    def broken() -> Any:
        yield from good()
        raise BadAnnotationsError("the rest is gone")

    with pytest.raises(BadAnnotationsError):
        import_masks(database, campaign, broken(), is_trusted=True)
    with database.connect() as conn:
        assert current_masks(conn, campaign.id) == []
        assert "class 0" not in {category.name for category in list_categories(conn, campaign.id)}
