import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from pipeline.masks import rle
from pipeline.masks.boxes import mask_box_xywh, mask_box_xyxy
from pipeline.masks.digest import inside_digest, mask_digest
from pipeline.masks.rle import mask_to_rle, rle_area, rle_to_mask
from schemas.errors import BadInputError, TooLargeError
from schemas.masks import Rle

SHAPES = array_shapes(min_dims=2, max_dims=2, max_side=40)
masks = arrays(np.bool_, SHAPES)


def big_mask(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.kron(rng.random((12, 15)) > 0.5, np.ones((41, 37), np.bool_)).astype(np.bool_)


@given(masks)
def test_round_trip(mask: np.ndarray) -> None:
    assert np.array_equal(rle_to_mask(mask_to_rle(mask)), mask)


@given(masks)
def test_same_bytes_area_and_box_as_pycocotools(mask: np.ndarray) -> None:
    ours = mask_to_rle(mask)
    theirs = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
    assert ours.counts.encode() == theirs["counts"]
    assert rle_area(ours) == int(coco_mask.area(theirs)) == int(mask.sum())
    assert mask_box_xywh(mask) == tuple(int(v) for v in coco_mask.toBbox(theirs))


@given(masks, st.data())
def test_pixels_in_the_box_and_runs_without_filling_the_image(mask: np.ndarray, data: st.DataObject) -> None:
    runs = split = rle.mask_to_runs(mask)
    for at in data.draw(st.lists(st.integers(0, runs.size - 1), max_size=3)):  # runs of no pixels may split others
        part = data.draw(st.integers(0, int(split[at])))
        split = np.concatenate([split[:at], [part, 0, split[at] - part], split[at + 1 :]])
    inside, (x0, y0, x1, y1), usual = rle.runs_to_box(split, mask.shape)
    assert (x0, y0, x1, y1) == mask_box_xyxy(mask)
    assert np.array_equal(inside, mask[y0:y1, x0:x1])
    assert usual.tolist() == runs.tolist()
    assert inside_digest(inside, (x0, y0, x1, y1), mask.shape) == mask_digest(mask)


@pytest.mark.parametrize("seed", range(3))
def test_large_masks_with_long_runs_agree_with_pycocotools(seed: int) -> None:
    mask = big_mask(seed)
    theirs = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
    assert mask_to_rle(mask).counts.encode() == theirs["counts"]
    decoded = rle_to_mask(Rle(size=mask.shape, counts=theirs["counts"].decode()))
    assert np.array_equal(decoded, mask)
    assert decoded.flags.c_contiguous


@given(
    st.sampled_from([np.uint8, np.uint16, np.int32]).flatmap(
        lambda kind: arrays(kind, SHAPES, elements=st.integers(0, 5))
    )
)
def test_each_value_of_a_map_has_its_mask(labels: np.ndarray) -> None:
    masks = [(int(value), mask_to_rle(labels == value)) for value in np.unique(labels)]
    assert list(rle.labels_to_rles(labels)) == masks


def test_hand_made_mask_reads_column_by_column() -> None:
    mask = np.array([[0, 1, 1], [0, 1, 0]], np.bool_)
    assert rle.mask_to_runs(mask).tolist() == [2, 3, 1]
    assert rle.mask_to_runs(~mask).tolist() == [0, 2, 3, 1]
    assert rle.mask_to_runs(mask[:, ::2].copy()).tolist() == [2, 1, 1]


def test_views_and_transposed_arrays_encode_as_their_contents() -> None:
    mask = big_mask(5)
    assert mask_to_rle(mask.T) == mask_to_rle(mask.T.copy())
    assert mask_to_rle(mask[3:50, 7:90]) == mask_to_rle(mask[3:50, 7:90].copy())


@given(st.text(max_size=40), st.integers(1, 50), st.integers(1, 50))
def test_any_text_is_decoded_or_refused(counts: str, height: int, width: int) -> None:
    with contextlib.suppress(BadInputError):
        assert rle_to_mask(Rle(size=(height, width), counts=counts)).shape == (height, width)


@given(st.lists(st.integers(0, 63), max_size=60), st.integers(1, 50))
def test_any_groups_are_decoded_or_refused(groups: list[int], side: int) -> None:
    counts = "".join(chr(48 + group) for group in groups)
    with contextlib.suppress(BadInputError):
        rle_to_mask(Rle(size=(side, side), counts=counts))


@pytest.mark.parametrize(
    ("size", "counts", "message"),
    [
        ((4, 4), "", "compressed form"),
        ((4, 4), "04\x7f", "compressed form"),
        ((4, 4), "é04", "compressed form"),
        ((4, 4), "04P", "middle of a number"),
        ((4, 4), "05", "do not fill"),
        ((4, 4), "0@", "do not fill"),
        ((4, 4), "o" * 7 + "0", "no image"),
        ((0, 4), "0", "at least 1"),
        ((-3, 4), "0", "at least 1"),
    ],
)
def test_malformed_rle_is_refused_with_the_reason(size: tuple[int, int], counts: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        rle_to_mask(Rle(size=size, counts=counts))


def test_huge_size_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(TooLargeError):
        rle_to_mask(Rle(size=(1_000_000, 1_000_000), counts="0"))


def test_box_of_an_empty_mask_is_zero_and_boxes_are_half_open() -> None:
    mask = np.zeros((5, 6), np.bool_)
    assert mask_box_xywh(mask) == mask_box_xyxy(mask) == (0, 0, 0, 0)
    mask[1:3, 2:6] = True
    assert mask_box_xywh(mask) == (2, 1, 4, 2)
    assert mask_box_xyxy(mask) == (2, 1, 6, 3)
