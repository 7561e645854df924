"""Maps made from clicks, on grids whose answers can be seen."""

import torch

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
