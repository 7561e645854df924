"""Maps made from clicks, on grids whose answers can be seen."""

import math

import torch
import torch.nn.functional as F

from pipeline.models.layers import guidance
from pipeline.models.layers.guidance import click_disks, clicks_to_sequence, colour_likeness, geodesic_nearness
from schemas.clicks import Click


def test_sequence_keeps_order_and_pads_in_front() -> None:
    points = clicks_to_sequence([[Click(1, 2, True), Click(3, 4, False)], [Click(5, 6, True)], []])
    assert points[0].tolist() == [[2, 1, 1], [4, 3, 0]]
    assert points[1].tolist() == [[-1, -1, -1], [6, 5, 1]]
    assert points[2].tolist() == [[-1, -1, -1], [-1, -1, -1]]


def test_disks_include_the_radius_and_ignore_padding() -> None:
    maps = click_disks(torch.tensor([[[8.0, 8.0, 1.0], [-1.0, -1.0, -1.0]]]), (17, 17))
    assert maps[0, 0].nonzero().amax(0).tolist() == [13, 13]
    assert maps[0, 0, 8, 13] == 1 and maps[0, 0, 8, 14] == 0 and maps[0, 0, 12, 12] == 0
    assert maps[0, 1].sum() == 0


def test_disks_agree_with_the_shared_encoding() -> None:
    from pipeline.clicks import encode

    points = torch.tensor([[[8.25, 3.5, 1.0], [2.0, 14.0, 0.0]]])
    theirs = encode.disks(torch.tensor([[[8.25, 3.5, 0.0], [2.0, 14.0, 1.0]]]), (17, 19))
    assert torch.equal(click_disks(points, (17, 19)), theirs.float())


def two_halves() -> torch.Tensor:
    crop = torch.zeros(1, 3, 64, 64)
    crop[:, 0, :, 32:] = 1
    return crop


def test_likeness_is_one_at_the_clicked_colour_and_small_elsewhere() -> None:
    like = colour_likeness(two_halves(), torch.tensor([[[20.0, 10.0, 1.0], [20.0, 50.0, 0.0]]]))
    assert like[0, 0, :, :15].min() > 0.99 and like[0, 0, :, 17:].max() < 0.01
    assert like[0, 1, :, 17:].min() > 0.99 and like[0, 1, :, :15].max() < 0.01


def test_no_click_of_a_sign_gives_zeros() -> None:
    points = torch.tensor([[[20.0, 10.0, 1.0]]])
    assert colour_likeness(two_halves(), points)[0, 1].max() == 0
    assert geodesic_nearness(two_halves(), points)[0, 1].max() == 0


def test_nearness_falls_across_an_edge_more_than_along_a_plain() -> None:
    near = geodesic_nearness(two_halves(), torch.tensor([[[32.0, 28.0, 1.0]]]))[0, 0]
    assert near[16, 14] == 1
    assert near[16, 4] > 2 * near[16, 17]  # ten cells away on the same side beats three beyond the edge


def test_means_are_those_of_pooling_bit_for_bit() -> None:
    maps = torch.rand(2, 3, 12, 16)
    assert torch.equal(guidance._halved(maps), F.avg_pool2d(maps, 2))
    assert torch.equal(guidance._smoothed(maps), F.avg_pool2d(maps, 3, 1, 1))


def test_nearness_is_that_of_shortest_paths_over_the_cells() -> None:
    grid, contrast = 4, 40.0
    crops = torch.rand(1, 3, grid, grid)
    found = geodesic_nearness(crops, torch.tensor([[[0.5, 0.5, 1.0]]]), grid, steps=16, contrast=contrast, decay=1.0)
    colours = guidance.opponent_colours(crops)[0]
    cells = [(y, x) for y in range(grid) for x in range(grid)]
    steps = {
        (a, b): math.dist(a, b) / grid * (1 + contrast * (colours[:, *a] - colours[:, *b]).norm().item())
        for a in cells for b in cells if a != b and max(abs(a[0] - b[0]), abs(a[1] - b[1])) == 1
    }  # fmt: skip
    distance = dict.fromkeys(cells, math.inf) | {(0, 0): 0.0}
    for _ in cells:
        for (a, b), cost in steps.items():
            distance[b] = min(distance[b], distance[a] + cost)
    wanted = torch.tensor([math.exp(-distance[cell]) for cell in cells]).view(grid, grid)
    torch.testing.assert_close(found[0, 0], wanted, rtol=1e-4, atol=1e-6)
