import pytest

from pipeline.evaluation.reliability import Bin, calibration_error, reliability


def test_bins_hold_what_is_stated_in_them_and_leave_out_the_empty() -> None:
    points = reliability([0.05, 0.12, 0.18, 1.0], [0.5, 0.1, 0.3, 0.9])
    assert points == [
        Bin(0.0, 0.1, 1, 0.05, 0.5),
        Bin(0.1, 0.2, 2, pytest.approx(0.15), pytest.approx(0.2)),
        Bin(0.9, 1.0, 1, 1.0, 0.9),
    ]


def test_error_is_weighted_by_the_counts() -> None:
    assert calibration_error([0.05, 0.12, 0.18, 1.0], [0.5, 0.1, 0.3, 0.9]) == pytest.approx(
        (0.45 + 2 * 0.05 + 0.1) / 4
    )
    assert calibration_error([0.3, 0.3], [0.2, 0.4]) == pytest.approx(0)
