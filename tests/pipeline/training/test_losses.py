import pytest
import torch

from pipeline.training.losses import nfl


def by_hand(logits: torch.Tensor, target: torch.Tensor) -> float:
    """The definition, pixel by pixel, for one sample without ignored pixels."""
    pt = torch.where(target == 1, logits.sigmoid(), 1 - logits.sigmoid()).double()
    beta = (1 - pt) ** 2
    return float(-(0.5 * pt.numel() / beta.sum()) * (beta * pt.log()).sum() / pt.numel())


def test_value_equals_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 7, 9, generator=generator)
    target = (torch.rand(3, 1, 7, 9, generator=generator) > 0.6).float()
    loss = nfl(logits, target)
    assert loss.shape == (3,)
    assert loss.tolist() == pytest.approx([by_hand(x, y) for x, y in zip(logits, target, strict=True)], rel=1e-5)


def test_ignored_pixels_change_nothing_and_get_no_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 1, 6, 8, generator=generator)
    target = (torch.rand(1, 1, 6, 8, generator=generator) > 0.5).float()
    padded = torch.cat([logits, torch.full((1, 1, 6, 4), 9.0)], 3).requires_grad_()
    ignored = torch.cat([target, torch.full((1, 1, 6, 4), -1.0)], 3)
    loss = nfl(padded, ignored)
    assert loss.item() == pytest.approx(nfl(logits, target).item(), rel=1e-6)
    loss.sum().backward()
    assert padded.grad is not None
    assert not padded.grad[..., 8:].any()
    assert padded.grad[..., :8].abs().min() > 0


def test_normalising_factor_has_no_gradient() -> None:
    """Else the gradient of a single pixel's sample would differ from that of plain cross-entropy times alpha."""
    logits = torch.tensor([[[[0.7]]]], requires_grad=True)
    nfl(logits, torch.ones(1, 1, 1, 1)).sum().backward()
    pt = torch.tensor(0.7).sigmoid()
    focal = -0.5 / (1 - pt) ** 2 * ((1 - pt) ** 2 / pt - 2 * (1 - pt) * pt.log()) * pt * (1 - pt)
    assert logits.grad is not None
    assert logits.grad.item() == pytest.approx(focal.item(), rel=1e-5)


def test_wholly_ignored_and_perfect_samples_are_finite() -> None:
    logits = torch.full((2, 1, 4, 4), 50.0, requires_grad=True)
    target = torch.stack([torch.full((1, 4, 4), -1.0), torch.ones(1, 4, 4)])
    loss = nfl(logits, target)
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.0]
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_weights_multiply_the_pixels() -> None:
    logits, target = torch.randn(2, 1, 5, 5), torch.ones(2, 1, 5, 5)
    assert torch.allclose(nfl(logits, target, weight=torch.full_like(logits, 2.0)), 2 * nfl(logits, target))
    assert not nfl(logits, target, weight=torch.zeros_like(logits)).any()
