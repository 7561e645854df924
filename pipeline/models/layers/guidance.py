"""What clicks say, as maps: binary disks, likeness of colour to the clicked places, and geodesic nearness to them.

Knows clicks only as a tensor of points in crop pixels. The likeness and geodesic maps are ours: they give a network
that saw few samples the prior that graph cuts have, have no parameters, and are deterministic.
"""

# B batch, N clicks, h/w crop px, g side of the coarse grid

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.clicks import Click

_PAD = -1.0
_STEP_LENGTHS = ((2**0.5, 1.0, 2**0.5), (1.0, 0.0, 1.0), (2**0.5, 1.0, 2**0.5))
"""Of a step to each of the 3 x 3 cells around, in cells."""


def clicks_to_sequence(clicks: Sequence[Sequence[Click]], device: torch.device | None = None) -> Tensor:
    """Clicks in the order made as (B, N, 3) rows (y, x, sign), sign 1 positive, 0 negative, -1 padding.

    Padding comes first, so that the current click is always the last row.
    """
    length = max(1, *(len(item) for item in clicks))
    rows = [
        [(_PAD, _PAD, _PAD)] * (length - len(item)) + [(c.y, c.x, float(c.is_positive)) for c in item]
        for item in clicks
    ]
    return torch.tensor(rows, dtype=torch.float32, device=device)


def click_disks(points: Tensor, size: tuple[int, int], radius: float = 5.0) -> Tensor:
    """Binary disks around the positive and the negative points.

    Args:
        points: (B, N, 3) rows (y, x, sign) in pixels of the map; centres stay floats.
        size: (h, w) of the maps.
        radius: In pixels; a pixel is in when its squared distance is at most radius².

    Returns:
        (B, 2, h, w) float: positive, negative. The distance is to integer pixel indices (MODELS 1.2).
    """
    h, w = size
    reach = int(radius) + 1
    around = torch.arange(-reach, reach + 1, device=points.device, dtype=points.dtype)
    rows = points[..., 0:1].floor() + around  # (B, N, 2 reach + 1)
    cols = points[..., 1:2].floor() + around
    dy2, dx2 = (rows - points[..., 0:1]).square(), (cols - points[..., 1:2]).square()
    inside = dy2[..., :, None] + dx2[..., None, :] <= radius * radius
    inside &= ((rows >= 0) & (rows < h))[..., :, None] & ((cols >= 0) & (cols < w))[..., None, :]
    place = rows.clamp(0, h - 1)[..., :, None] * w + cols.clamp(0, w - 1)[..., None, :]
    sign = points[..., 2, None, None]
    place = (place + torch.where(sign == 1, 0, h * w)).long().flatten(1)  # positive map first
    drawn = (inside & (sign >= 0)).to(points.dtype).flatten(1)
    maps = points.new_zeros(points.shape[0], 2 * h * w).scatter_reduce_(1, place, drawn, "amax")
    return maps.view(-1, 2, h, w)


def opponent_colours(images: Tensor) -> Tensor:
    """RGB in [0, 1] to lightness and two opponent axes, weighted so that hue counts more than brightness."""
    red, green, blue = images.unbind(1)
    light = (red + green + blue) / 3
    return torch.stack([0.6 * light, red - green, 0.5 * (red + green) - blue], 1)


def _mean(maps: Sequence[Tensor]) -> Tensor:
    """Of shifted maps: adds and rounds as `avg_pool2d` does, which takes four times as long on a CPU."""
    total = maps[0] + maps[1]
    for shifted in maps[2:]:
        total += shifted
    return total.div_(len(maps))


def _halved(maps: Tensor) -> Tensor:
    """Means of 2 x 2 pixels."""
    return _mean([maps[..., dy::2, dx::2] for dy in range(2) for dx in range(2)])


def _smoothed(maps: Tensor) -> Tensor:
    """Means of the 3 x 3 pixels around each, zeros beyond the border."""
    around = _windows(F.pad(maps, (1, 1, 1, 1)))
    return _mean([around[:, :, dy, dx] for dy in range(3) for dx in range(3)])


def _windows(maps: Tensor) -> Tensor:
    """The 3 x 3 cells around each inner cell, as a view: (B, C, g + 2, g + 2) -> (B, C, 3, 3, g, g)."""
    return maps.unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 1, 4, 5, 2, 3)


def _at_points(maps: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear samples (B, C, N) of maps at points given in pixels of a grid of `size`."""
    h, w = size
    grid = torch.stack([(points[..., 1] + 0.5) / w * 2 - 1, (points[..., 0] + 0.5) / h * 2 - 1], -1)
    return F.grid_sample(maps, grid[:, :, None], padding_mode="border", align_corners=False)[..., 0]


def colour_likeness(crops: Tensor, points: Tensor, sigma: float = 0.12) -> Tensor:
    """How like the colour at each place is to the nearest of the clicked colours, by sign.

    Args:
        crops: (B, 3, h, w) RGB in [0, 1], h and w even.
        points: (B, N, 3) rows (y, x, sign) in crop pixels.
        sigma: Width of the Gaussian in units of opponent colour.

    Returns:
        (B, 2, h/2, w/2) in [0, 1]: positive, negative; zeros where there is no click of that sign.
    """
    size = (crops.shape[2], crops.shape[3])
    colours = opponent_colours(_halved(crops))
    clicked = _at_points(_smoothed(colours), points, size)  # (B, 3, N)
    flat = colours.flatten(2)
    towards = -2 * clicked.transpose(1, 2)
    clicked2, sign = clicked.square().sum(1)[..., None], points[..., 2, None]
    nearest = []
    for value in (1.0, 0.0):  # |c|² - 2 c p, the rest of the squared distance added below; other clicks infinitely far
        offset = clicked2.masked_fill(sign != value, torch.inf)
        nearest.append(torch.baddbmm(offset, towards, flat).amin(1))
    distance2 = torch.stack(nearest, 1) + flat.square().sum(1)[:, None]
    likeness = torch.exp(distance2.clamp_min(0) / (-2 * sigma * sigma))
    return likeness.view(crops.shape[0], 2, *colours.shape[2:])


def geodesic_nearness(
    crops: Tensor, points: Tensor, grid: int = 32, steps: int = 24, contrast: float = 40.0, decay: float = 0.5
) -> Tensor:
    """Nearness to the clicks of each sign along paths of slowly changing colour.

    Shortest paths on a coarse grid with 8 neighbours; a step costs its length in crop widths times (1 + contrast x
    change of colour), relaxed `steps` times in parallel (Bellman-Ford), so that it runs as plain tensor operations.

    Args:
        crops: (B, 3, h, w) RGB in [0, 1].
        points: (B, N, 3) rows (y, x, sign) in crop pixels.
        grid: Side of the coarse grid in cells, whatever the crop size.
        steps: Relaxations; longer paths count as far.
        contrast: Cost of a change of colour against that of length.
        decay: Distance at which nearness has fallen to 1/e.

    Returns:
        (B, 2, grid, grid) in [0, 1]: positive, negative; zeros where there is no click of that sign.
    """
    size = (crops.shape[2], crops.shape[3])
    colours = opponent_colours(F.adaptive_avg_pool2d(crops, grid))
    around = _windows(F.pad(colours, (1, 1, 1, 1), mode="replicate"))
    change = (around - colours[:, :, None, None]).square().sum(1, keepdim=True).sqrt()
    length = crops.new_tensor(_STEP_LENGTHS) / grid
    cost = (1 + contrast * change) * length[..., None, None]  # (B, 1, 3, 3, g, g)

    scale = points.new_tensor([grid / size[0], grid / size[1]])
    cells = (points[..., :2] * scale).long().clamp(0, grid - 1)
    index = cells[..., 0] * grid + cells[..., 1]
    sign = points[..., 2]
    far = 1e3
    seeds = torch.stack([torch.where(sign == value, 0.0, far) for value in (1.0, 0.0)], 1)  # (B, 2, N)
    distance = crops.new_full((crops.shape[0], 2, grid * grid), far)
    distance = distance.scatter_reduce(2, index[:, None].expand_as(seeds), seeds.to(crops.dtype), "amin")
    padded = F.pad(distance.view(crops.shape[0], 2, grid, grid), (1, 1, 1, 1), value=far)
    inner, around = padded[:, :, 1:-1, 1:-1], _windows(padded)
    reached = torch.empty_like(around, memory_format=torch.contiguous_format)
    for _ in range(steps):
        torch.add(around, cost, out=reached)
        inner.copy_(reached.amin((2, 3)))
    return torch.exp(-inner / decay)
