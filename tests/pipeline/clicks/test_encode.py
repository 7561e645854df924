import torch

from pipeline.clicks.encode import clicks_to_points, disks
from schemas.clicks import Click


def brute_force(points: torch.Tensor, size: tuple[int, int], radius: int) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    maps = torch.zeros(points.shape[0], 2, *size)
    for item, own in enumerate(points):
        for index, (y, x, _) in enumerate(own.tolist()):
            if max(y, x) >= 0:
                near = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
                maps[item, int(index >= len(own) // 2)][near] = 1
    return maps


def test_disk_of_radius_five_has_diameter_eleven() -> None:
    maps = disks(clicks_to_points([[Click(10, 8, True)]]), (20, 24))
    assert maps.shape == (1, 2, 20, 24)
    assert maps[0, 0, 8].tolist() == [0.0] * 5 + [1.0] * 11 + [0.0] * 8
    assert maps[0, 0, :, 10].sum() == 11
    assert maps[0, 1].sum() == 0


def test_disks_equal_the_definition_for_fractional_and_outlying_clicks() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(3, 10, 3, generator=generator) * 60 - 12
    points[0, 3] = -1
    assert torch.equal(disks(points, (40, 33)), brute_force(points, (40, 33), 5))


def test_click_beyond_both_edges_is_padding_but_beyond_one_is_drawn() -> None:
    clicks = [Click(-2, -2, True), Click(12, -2, False)]
    maps = disks(clicks_to_points([clicks]), (20, 20))
    assert maps[0, 0].sum() == 0
    assert maps[0, 1, 0].sum() > 0


def test_points_keep_order_and_pad_both_signs_to_the_longest() -> None:
    points = clicks_to_points([[Click(1, 2, False), Click(3, 4, True), Click(5, 6, False)], []])
    assert points.tolist() == [
        [[4, 3, 1], [-1, -1, -1], [2, 1, 0], [6, 5, 2]],
        [[-1, -1, -1]] * 4,
    ]


def test_no_click_at_all_still_gives_one_row_per_sign() -> None:
    points = clicks_to_points([[]])
    assert points.shape == (1, 2, 3)
    assert disks(points, (8, 8)).sum() == 0
