import numpy as np

from pipeline.masks.boundaries import boundary_band, boundary_width


def test_width_is_two_percent_of_the_diagonal_and_at_least_one() -> None:
    assert boundary_width((300, 400)) == 10
    assert boundary_width((8, 8)) == 1


def test_band_is_the_rim_of_a_square() -> None:
    mask = np.zeros((9, 9), np.bool_)
    mask[2:7, 2:7] = True
    band = boundary_band(mask, 1)
    assert band.sum() == 16
    assert not band[3:6, 3:6].any()
    assert np.array_equal(boundary_band(mask, 3), mask)


def test_image_border_is_a_boundary() -> None:
    band = boundary_band(np.ones((7, 7), np.bool_), 2)
    assert band.sum() == 49 - 9
    assert not band[2:5, 2:5].any()
