"""Generated damage to annotation files: a refusal in words or dropped entries, never anything else."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.imports import Dropped, Found, import_masks, read_source
from pipeline.masks.rle import mask_to_rle, rle_to_mask
from pipeline.storage.campaigns import get_campaign
from pipeline.storage.database import Database
from pipeline.storage.images import images_of
from schemas.errors import BadAnnotationsError, BadInputError, TooLargeError
from schemas.requests import ImportFormat
from tests.hostile_json import ODD_TEXT, json_values, mutated
from tests.peaks import at_most
from tests.pipeline.imports.test_imports import HEIGHT, MASKS, NAMES, WIDTH, coco_document, cvat_document, encode_brush
from tests.pipeline.storage.catalogues import Catalogue

REFUSALS = (BadAnnotationsError, TooLargeError)
SHAPES = '<polygon label="a" points="1,1;20,1;20,20"/><mask label="b" rle="1,3" left="0" top="0" width="2" height="2"/>'


def read_all(place: Path, given: ImportFormat | None = None) -> tuple[int, int]:
    """How many masks were found and entries dropped until a refusal, if any. Anything else that is raised fails."""
    found = dropped = 0
    with contextlib.suppress(BadAnnotationsError, TooLargeError):
        for item in read_source(str(place), NAMES, given):
            if isinstance(item, Dropped):
                dropped += 1
                continue
            found += 1
            with contextlib.suppress(BadInputError):  # counted as malformed when it is stored
                assert rle_to_mask(item.rle).shape == (HEIGHT, WIDTH)
    return found, dropped


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def label_studio_document() -> list[dict[str, Any]]:
    rgba = np.repeat((MASKS["cat"] * 255).astype(np.uint8)[:, :, None], 4, axis=2)
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    results = [
        {"id": "r", "type": "brushlabels", **size, "value": {"rle": encode_brush(rgba.ravel()), "brushlabels": ["a"]}},
        {"id": "s", "type": "polygonlabels", **size, "value": {"points": [[1, 1], [9, 1], [5, 9]]}},
    ]
    return [{"id": 1, "data": {"image": "/data/upload/3/0a1b2c3d-one.jpg"}, "annotations": [{"result": results}]}]


def rich_coco_document() -> dict[str, Any]:
    """With every form of segmentation."""
    document = coco_document()
    first = document["annotations"][0]
    plain = {"size": [HEIGHT, WIDTH], "counts": [0, 5, HEIGHT * WIDTH - 5]}
    more = [{**first, "id": 9, "segmentation": [[1, 1, 20, 1, 20, 20]]}, {**first, "id": 10, "segmentation": plain}]
    return {**document, "annotations": [*document["annotations"], *more]}


def coco_results() -> list[dict[str, Any]]:
    document = rich_coco_document()
    masks = [mask["segmentation"] for mask in document["annotations"]]
    return [{"image_id": 1, "category_id": 0, "segmentation": mask, "score": 0.5} for mask in masks]


def test_without_damage_everything_is_read(folder: Path) -> None:
    for name, text, expected in (
        ("a.json", json.dumps(rich_coco_document()), (4, 0)),
        ("b.json", json.dumps(label_studio_document()), (2, 0)),
        ("c.xml", cvat_document(SHAPES), (2, 0)),
    ):
        (folder / name).write_text(text)
        assert read_all(folder / name) == expected, name
    (folder / "d.json").write_text(json.dumps(coco_results()))
    assert read_all(folder / "d.json", "coco-results") == (4, 0)


@pytest.mark.parametrize("format_", ["coco", "coco-results", "label-studio"])
@settings(max_examples=200)
@given(data=st.data())
def test_changed_json_documents(folder: Path, format_: ImportFormat, data: st.DataObject) -> None:
    made = {"coco": rich_coco_document, "coco-results": coco_results, "label-studio": label_studio_document}
    document = made[format_]()
    path = folder / "any.json"
    path.write_text(json.dumps(mutated(data.draw, document)))
    read_all(path, data.draw(st.sampled_from([format_, None])))


@pytest.mark.parametrize("format_", ["coco", "label-studio", "cvat"])
@settings(max_examples=100)
@given(noise=st.binary(max_size=8), part=st.floats(0, 1), cut=st.booleans())
def test_damaged_bytes(folder: Path, format_: ImportFormat, noise: bytes, part: float, cut: bool) -> None:
    text = {
        "coco": json.dumps(rich_coco_document()),
        "label-studio": json.dumps(label_studio_document()),
        "cvat": cvat_document(SHAPES),
    }[format_]
    whole = text.encode()
    at = round(part * len(whole))
    path = folder / "damaged"
    path.write_bytes(whole[:at] + noise + (b"" if cut else whole[at + len(noise) :]))
    read_all(path, format_)


HOSTILE_NUMBERS = st.sampled_from(["", "-1", "0", "nan", "inf", "-inf", "1e400", "9" * 30, "9" * 5000, "1_0", "٣", "x"])
NUMBERS = st.integers(-3, 200).map(str) | st.floats().map(str) | HOSTILE_NUMBERS


@settings(max_examples=300)
@given(
    runs=st.lists(NUMBERS, max_size=6),
    sides=st.lists(NUMBERS, min_size=4, max_size=4),
    points=st.lists(st.tuples(NUMBERS, NUMBERS), max_size=5),
    declared=st.sampled_from(["", "<?xml version='1.0' encoding='utf-16'?>", "<?xml version='1.0' encoding='foo'?>"]),
)
def test_cvat_with_any_numbers(
    folder: Path, runs: list[str], sides: list[str], points: list[tuple[str, str]], declared: str
) -> None:
    box = " ".join(f'{n}="{v}"' for n, v in zip(("left", "top", "width", "height"), sides, strict=True))
    polygon = ";".join(",".join(point) for point in points)
    text = cvat_document(f'<mask rle="{",".join(runs)}" {box}/><polygon points="{polygon}"/>')
    path = folder / "any.xml"
    path.write_text(declared + text)
    read_all(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
def test_xml_with_entities_is_refused_in_every_encoding(folder: Path, encoding: str) -> None:
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    text = f'<!DOCTYPE x [<!ENTITY e0 "ha">{levels}]>' + cvat_document('<polygon label="&e9;" points="1,1;9,1;9,9"/>')
    path = folder / "bomb.xml"
    path.write_bytes((f'<?xml version="1.0" encoding="{encoding[:6]}"?>' + text).encode(encoding))
    with pytest.raises(BadAnnotationsError, match=r"entities|not XML"):
        list(read_source(str(path), NAMES))


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("format_", ["coco", "coco-results", "label-studio", None])
def test_towers_of_brackets_are_refused(folder: Path, opening: str, format_: ImportFormat | None) -> None:
    path = folder / "deep.json"
    path.write_text(opening * 200_000)
    with pytest.raises(BadAnnotationsError):
        list(read_source(str(path), NAMES, format_))


def yolo(folder: Path, names: str, lines: str) -> Path:
    (folder / "yolo").mkdir(exist_ok=True)
    (folder / "yolo" / "data.yaml").write_text(names, errors="surrogatepass")
    (folder / "yolo" / "one.txt").write_text(lines)
    return folder / "yolo"


@settings(max_examples=200)
@given(words=st.lists(st.lists(NUMBERS, max_size=9).map(" ".join), max_size=4))
def test_yolo_lines_with_any_numbers(folder: Path, words: list[str]) -> None:
    read_all(yolo(folder, "names: [a]", "\n".join(words)))


@settings(max_examples=150)
@given(value=json_values | st.dictionaries(st.integers(-3, 300) | ODD_TEXT, json_values, max_size=3))
def test_yolo_names_of_any_shape(folder: Path, value: Any) -> None:
    place = yolo(folder, "", "0 0.1 0.1 0.5 0.1 0.5 0.5")
    (place / "data.yaml").write_bytes(yaml.safe_dump({"names": value}).encode("utf-8", "surrogatepass"))
    read_all(place)


@pytest.mark.parametrize(
    "tagged",
    ["2026-13-45", "!!int x", "!!float y", "!!timestamp z", "!!python/object/apply:os.system [touch canary]"],
)
def test_tags_in_yaml_are_not_followed(folder: Path, tagged: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    read_all(yolo(folder, f"names: [{tagged}]", "0 0.1 0.1 0.5 0.1 0.5 0.5"))
    assert not (folder / "canary").exists()


@pytest.mark.parametrize(
    "text",
    [
        "names: {x: a}",
        "names: 3",
        "x" * 2_000_000,
        "? [a]\n: b",
        "names: " + "[" * 5000,
        "a: &a a\n" * 3 + "names: *b",
        "\x00",
        "names: {1: a, [2]: b}",
    ],
)
def test_odd_yaml_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(REFUSALS):
        list(read_source(str(yolo(folder, text, "0 0.1 0.1 0.5 0.1 0.5 0.5")), NAMES))


def test_names_that_refer_to_each_other_do_not_blow_up(folder: Path) -> None:
    levels = "".join(f"e{n}: &e{n} [{', '.join([f'*e{n - 1}'] * 10)}]\n" for n in range(1, 10))
    text = "e0: &e0 [ha]\n" + levels + "names: [*e9]\n"
    with at_most(150), pytest.raises(BadAnnotationsError):
        list(read_source(str(yolo(folder, text, "0 0.1 0.1 0.5 0.1 0.5 0.5")), NAMES))


def png(name: str, mode: str, folder: Path) -> bytes:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[5:9, 5:9] = 1
    picture = Image.fromarray(labels)
    picture = picture.point(lambda value: value, mode) if mode == "1" else picture.convert(mode)
    picture.save(folder / name, "PNG")
    return (folder / name).read_bytes()


def test_a_length_in_a_damaged_label_map_takes_no_memory(folder: Path) -> None:
    (folder / "lying").mkdir()
    whole = png("one.png", "RGB", folder / "lying")
    (folder / "lying" / "one.png").write_bytes(whole[:33] + b"\x7f\xff\xff\xf0" + whole[37:])
    with at_most(150), pytest.raises(BadAnnotationsError):
        list(read_source(str(folder / "lying"), NAMES, "label-map"))


def test_a_bilevel_label_map_has_one_class_that_is_named(folder: Path) -> None:
    (folder / "bits").mkdir()
    png("one.png", "1", folder / "bits")
    (folder / "bits" / "classes.txt").write_text("nothing\ncell\n")
    [only] = read_source(str(folder / "bits"), NAMES, "label-map")
    assert isinstance(only, Found) and only.category == "cell"


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16", "RGB"])
@settings(max_examples=60)
@given(noise=st.binary(max_size=12), part=st.floats(0, 1), cut=st.booleans())
def test_damaged_label_maps(folder: Path, mode: str, noise: bytes, part: float, cut: bool) -> None:
    place = folder / f"maps-{mode[0]}"
    place.mkdir(exist_ok=True)
    whole = png("one.png", mode, place)
    at = round(part * len(whole))
    (place / "one.png").write_bytes(whole[:at] + noise + (b"" if cut else whole[at + len(noise) :]))
    read_all(place, "instance-map")
    read_all(place, "label-map")


def test_names_and_keys_that_no_database_keeps_are_dropped_or_written_out(database: Database) -> None:
    catalogue = Catalogue(database, images=1)
    with database.connect() as conn:
        campaign, image = get_campaign(conn, catalogue.campaign_id), images_of(conn, catalogue.campaign_id)[0]
    mask = mask_to_rle(np.ones((image.height, image.width), np.bool_))
    bad = ["", " ", "\ud800", "a\0b", "a\nb", "x" * 201]
    items: list[Found | Dropped] = [Found(image, name, f"bad {number}", mask) for number, name in enumerate(bad)]
    items += [Found(image, "fine", "k\ud800\0", mask), Dropped("odd", "\udfff\0")]
    report = import_masks(database, campaign, iter(items), is_trusted=False)
    assert report.stored == 1 and report.masks == {"fine": 1}
    assert report.dropped == {"the name of its category cannot be used": len(bad), "odd": 1}
    assert b"\\u0000" not in report.model_dump_json().encode()
