import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.inference.sampling import CornerAligned, PixelEdges, as_input, shrink


def smooth(height: int, width: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (6, 8, channels), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def blob(size: int = 64) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return (1 / (1 + np.exp((np.hypot(y - 30, x - 35) - 15) / 2))).astype(np.float32)


@pytest.mark.parametrize("size", [(200, 200), (256, 256), (511, 513), (777, 1201), (1080, 1920), (40, 1500)])
def test_shrink_is_near_the_area_filter(size: tuple[int, int]) -> None:
    image = smooth(*size)
    interpolation = cv2.INTER_AREA if min(size) >= 256 else cv2.INTER_LINEAR
    expected = cv2.resize(image, (256, 256), interpolation=interpolation)
    assert np.abs(shrink(image, (256, 256)).astype(int) - expected).mean() < 1.0


def test_shrink_averages_instead_of_picking_pixels() -> None:
    stripes = np.zeros((1024, 1024, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.unique(shrink(stripes, (256, 256))).tolist() == [100]


def test_shrink_places_odd_sizes_without_drift() -> None:
    ramp = np.tile(np.linspace(0, 250, 1021).astype(np.uint8)[:, None, None], (1, 1021, 3))
    rows = shrink(ramp, (256, 256))[:, 0, 0].astype(float)
    expected = (np.arange(256) + 0.5) / 256 * 250
    assert np.abs(rows - expected).max() < 2


def test_carry_to_the_same_roi_changes_no_bit() -> None:
    probability = blob()
    assert np.array_equal(PixelEdges().carry(probability, (3, 4, 90, 95), (3, 4, 90, 95), (100, 100)), probability)


@pytest.mark.parametrize("sampling", [PixelEdges(), CornerAligned()])
def test_carry_equals_pasting_and_cropping(sampling: PixelEdges | CornerAligned) -> None:
    old, new, size = (10, 20, 150, 170), (20, 40, 130, 150), (180, 190)
    carried = sampling.carry(blob(), old, new, size)
    pasted = sampling.paste(blob(), old, size)[20:130, 40:150]
    expected = cv2.resize(pasted, (64, 64), interpolation=cv2.INTER_LINEAR)
    assert np.abs(carried - expected).max() < 0.06
    assert np.abs(carried - expected).mean() < 0.01


@pytest.mark.parametrize("sampling", [PixelEdges(), CornerAligned()])
def test_outside_the_old_roi_nothing_is_known(sampling: PixelEdges | CornerAligned) -> None:
    carried = sampling.carry(np.ones((64, 64), np.float32), (50, 50, 100, 100), (0, 0, 100, 100), (100, 100))
    assert not carried[:31].any() and not carried[:, :31].any()
    assert carried[33:, 33:].min() > 0.9
    pasted = sampling.paste(np.ones((64, 64), np.float32), (50, 50, 100, 100), (100, 120))
    assert pasted.sum() == 2500 and pasted.shape == (100, 120)


@pytest.mark.parametrize("sampling", [PixelEdges(), CornerAligned()])
def test_mask_box_in_image_pixels(sampling: PixelEdges | CornerAligned) -> None:
    probability = np.zeros((64, 64), np.float32)
    assert sampling.mask_box(probability, (0, 0, 640, 640)) is None
    probability[16:32, 8:24] = 1
    box = sampling.mask_box(probability, (100, 0, 740, 640))
    assert box is not None
    assert np.abs(np.array(box) - (260, 80, 420, 240)).max() <= 10


@given(st.integers(0, 2**32 - 1))
def test_pixel_edge_box_holds_the_pasted_mask_up_to_half_a_crop_pixel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probability = (rng.random((16, 16)) > 0.97).astype(np.float32)
    roi = (int(rng.integers(0, 50)), int(rng.integers(0, 50)), int(rng.integers(60, 300)), int(rng.integers(60, 300)))
    box, pasted = PixelEdges().mask_box(probability, roi), PixelEdges().paste(probability, roi, (300, 300)) > 0.5
    if box is None:
        assert not pasted.any()
        return
    rows, columns = np.nonzero(pasted)
    slack = max(roi[2] - roi[0], roi[3] - roi[1]) / 16 / 2 + 1
    if rows.size:
        assert box[0] - slack <= rows.min() and rows.max() <= box[2] + slack
        assert box[1] - slack <= columns.min() and columns.max() <= box[3] + slack


def test_crops_are_network_input() -> None:
    image = smooth(120, 160)
    for sampling in (PixelEdges(), CornerAligned()):
        crop = sampling.crop_image(image, (10, 20, 110, 150), (64, 64))
        assert crop.shape == (1, 3, 64, 64) and crop.dtype == torch.float32
        assert crop.min() >= 0 and crop.max() <= 1
        assert torch.equal(as_input(sampling.crop_pixels(image, (10, 20, 110, 150), (64, 64))), crop)


def test_mask_crops_are_soft() -> None:
    mask = np.zeros((100, 100), np.bool_)
    mask[:, :25] = True
    for sampling in (PixelEdges(), CornerAligned()):
        crop = sampling.crop_mask(mask, (0, 0, 100, 50), (10, 10))
        assert crop[:, :4].min() == 1 and crop[:, 6:].max() == 0
