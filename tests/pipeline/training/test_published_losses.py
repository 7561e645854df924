"""The papers' losses: values worked out by hand, gradients by finite differences, and inputs that tempt them."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.training.losses import afl, bce, boundary_nfl, dice, nfl, poly, soft_iou, trimap
from pipeline.training.set_loss import match, set_loss, split_target

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nfl": nfl, "bce": bce, "poly": poly, "dice": dice, "soft_iou": soft_iou, "afl": afl, "boundary_nfl": boundary_nfl,
}  # fmt: skip
DETACHED = {"nfl", "afl", "boundary_nfl"}
"""Their normalising factors carry no gradient, so finite differences of the value are not their gradient."""


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def two_pixels(first: float, second: float) -> Tensor:
    """(1, 1, 1, 2) logits of two probabilities."""
    return torch.tensor([[[[logit(first), logit(second)]]]])


TARGET = torch.tensor([[[[1.0, 0.0]]]])


def test_values_of_two_pixels() -> None:
    logits = two_pixels(0.8, 0.4)  # pt 0.8 and 0.6
    cross = -(math.log(0.8) + math.log(0.6)) / 2
    assert bce(logits, TARGET).item() == pytest.approx(cross, abs=1e-6)
    assert poly(logits, TARGET).item() == pytest.approx(cross + (0.2 + 0.4) / 2, abs=1e-6)
    assert dice(logits, TARGET).item() == pytest.approx(1 - (2 * 0.8 + 1) / (1.2 + 1 + 1), abs=1e-6)
    assert soft_iou(logits, TARGET).item() == pytest.approx(1 - 0.8 / (1 + 0.4), abs=1e-6)
    beta = (0.2**2, 0.4**2)
    factor = 2 / sum(beta)
    wanted = -0.5 * factor * (beta[0] * math.log(0.8) + beta[1] * math.log(0.6)) / 2
    assert nfl(logits, TARGET).item() == pytest.approx(wanted, abs=1e-6)


def test_adaptive_focal_loss_of_two_pixels() -> None:
    focus = 2 + 1 - 0.8
    beta = (0.2**focus, 0.4**focus)
    mu = 2 / ((1 + 0.4 * focus) * sum(beta))
    each = [0.5 * (mu * b * -math.log(pt) + (1 - pt) ** (focus + 1)) for b, pt in zip(beta, (0.8, 0.6), strict=True)]
    assert afl(two_pixels(0.8, 0.4), TARGET).item() == pytest.approx(sum(each) / 2, abs=1e-6)


def test_focus_of_an_empty_object_is_gamma_plus_one() -> None:
    probability, beta = 0.3, 0.3**3.0
    mu = 1 / ((1 + 0.4 * 3) * beta)
    wanted = 0.5 * (mu * beta * -math.log(0.7) + 0.3**4)
    value = afl(torch.full((1, 1, 1, 1), logit(probability)), torch.zeros(1, 1, 1, 1))
    assert value.item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - DETACHED))
def test_gradients_are_those_of_the_value(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 1, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(-1, 2, (2, 1, 3, 4), generator=generator).double()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, target), logits)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_pixels_that_do_not_count_change_nothing(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 1, 16, 16, generator=generator)
    target = torch.zeros(1, 1, 16, 16)
    target[..., 4:10, 4:10] = 1.0
    target[..., 12:, :] = -1.0
    other = logits.clone()
    other[..., 12:, :] += 5.0
    assert torch.allclose(LOSSES[name](logits, target), LOSSES[name](other, target), atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("size", [0.0, 80.0, -80.0])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_and_gradients_stay_finite(name: str, size: float, value: float) -> None:
    logits = torch.full((2, 1, 8, 8), size, requires_grad=True)
    loss = LOSSES[name](logits, torch.full((2, 1, 8, 8), value))
    assert loss.shape == (2,) and torch.isfinite(loss).all()
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_better_mask_costs_less(name: str) -> None:
    target = torch.zeros(1, 1, 32, 32)
    target[..., 8:24, 8:24] = 1.0
    good, bad = 4 * (2 * target - 1), 4 * (2 * target.roll(6, 3) - 1)
    assert LOSSES[name](good, target).item() < LOSSES[name](bad, target).item()


def test_trimap_lies_where_shrinking_loses_the_edge() -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:48] = 1.0
    mask[..., 30:33, 48:60] = 1.0  # too thin to survive
    edge = trimap(mask)
    assert edge[0, 0, 31, 55] == 1.0 and edge[0, 0, 32, 32] == 0.0 and edge[0, 0, 5, 5] == 0.0


def test_boundary_loss_of_a_mask_without_an_edge_is_nfl() -> None:
    logits = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    target = torch.ones(1, 1, 16, 16)
    assert torch.allclose(boundary_nfl(logits, target), nfl(logits, target), atol=1e-6)


def test_soft_edges_make_the_official_codes_further_targets() -> None:
    target = torch.zeros(1, 16, 16)
    target[:, 4:12, 4:14] = 1.0  # one edge falls inside a cell of the small map
    masks, labels = split_target(target, (4, 4))
    assert labels.tolist() == [0, 1]  # a fraction, and the object
    assert masks[1].sum() == 4 and torch.equal(masks[0], 1 - masks[1])
    assert split_target(torch.zeros(1, 16, 16), (4, 4))[1].tolist() == []


def test_queries_are_matched_to_what_they_show() -> None:
    masks = torch.full((3, 4, 4), -6.0)
    masks[1, :2] = 6.0
    masks[2, 2:] = 6.0
    targets = torch.stack([(masks[2] > 0).float(), (masks[1] > 0).float()])
    rows, columns = match(torch.zeros(3, 2), masks, targets, torch.tensor([1, 1]))
    assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == {1: 1, 2: 0}


def test_set_loss_falls_as_the_right_query_is_sure() -> None:
    target = torch.zeros(1, 1, 16, 16)
    target[..., 4:12, 4:12] = 1.0
    masks = torch.full((1, 5, 4, 4), -6.0)
    masks[0, 2, 1:3, 1:3] = 6.0
    unsure, sure = torch.zeros(1, 5, 2), torch.zeros(1, 5, 2)
    sure[..., 0] = 4.0
    sure[0, 2] = torch.tensor([0.0, 4.0])
    assert set_loss([(sure, masks)], target) < set_loss([(unsure, masks)], target)
    assert set_loss([(sure, masks)], target) < set_loss([(sure, -masks)], target)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_set_loss_stays_finite_with_gradients_for_every_output(value: float) -> None:
    classes, masks = torch.randn(2, 5, 2, requires_grad=True), torch.randn(2, 5, 4, 4, requires_grad=True)
    loss = set_loss([(classes, masks), (classes * 2, masks)], torch.full((2, 1, 16, 16), value))
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss) and classes.grad is not None and masks.grad is not None
    assert torch.isfinite(classes.grad).all() and torch.isfinite(masks.grad).all()


def test_queries_are_matched_as_the_official_code_does_it() -> None:
    index = torch.arange(144, dtype=torch.float64)
    masks = (3 * torch.sin(1.7 * index + 4) * torch.cos(0.55 * index)).float().view(4, 6, 6)
    classes = (2 * torch.sin(2.3 * torch.arange(8, dtype=torch.float64) + 2)).float().view(4, 2)
    place = torch.arange(24)
    target = (((place[:, None] - 9) ** 2 + (place - 11) ** 2) < 40).float()[None]
    queries, _ = match(classes, masks, *split_target(target, (6, 6)))
    assert queries.tolist() == [1, 2, 3]  # the adaptive focal loss of each pair, pixel by pixel, chooses 0, 1 and 2
    loss = set_loss([(classes[None], masks[None])] * 10, target[None])
    assert loss.item() == pytest.approx(19.485619, abs=1e-4)  # of the official code
