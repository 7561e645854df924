"""ClickAdapter: it starts as its host, learns without touching it, and has the size that the paper states."""

import pytest
import torch
from torchvision.ops import deform_conv2d

from pipeline.models import create_model
from pipeline.models.clickadapter import ClickAdapter, ScaleFusion
from pipeline.models.layers.deformable_conv import deformable_conv
from pipeline.models.simpleclick import SimpleClick
from schemas.clicks import Click
from schemas.errors import BadInputError
from tests.pipeline.models.small import SMALL_VIT

CLICKS = [[Click(20.0, 30.0, True)], [Click(5.0, 8.0, True), Click(50.0, 8.0, False)]]


def make(**options: bool) -> ClickAdapter:
    torch.manual_seed(3)
    return ClickAdapter(SimpleClick(SMALL_VIT), **options).eval()


@pytest.mark.parametrize(("host", "millions"), [("base", 32.2), ("large", 56.1)])
def test_learnable_parameters_are_within_five_percent_of_the_paper(host: str, millions: float) -> None:
    """Table IV's 32.95 and 57.12 M less the host's head (0.755 and 1.001 M), which is frozen by default."""
    with torch.device("meta"):
        model = create_model(f"clickadapter-simpleclick-{host}-448")
    learnable = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    assert learnable == pytest.approx(millions, rel=0.05)


@pytest.mark.parametrize(("host", "millions"), [("b0", 7.06), ("b3", 58.77)])
def test_totals_on_segformer_are_within_six_percent_of_the_paper(host: str, millions: float) -> None:
    """Table III."""
    with torch.device("meta"):
        model = create_model(f"clickadapter-segformer-{host}-448")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.06)


def test_untrained_output_is_the_hosts_bit_for_bit() -> None:
    model, images, previous = make(), torch.rand(2, 3, 64, 64), torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        own = model.refine(model.encode(images), CLICKS, previous).logits
        host = model.host.refine(model.host.encode(images), CLICKS, previous).logits
    assert torch.equal(own, host)


def test_training_moves_the_branch_and_leaves_the_host_as_it_is() -> None:
    model, images, previous = make().train(), torch.rand(2, 3, 64, 64), torch.rand(2, 1, 64, 64)
    assert not model.host.training
    before = {name: value.clone() for name, value in model.host.state_dict().items()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    outputs = []
    for _ in range(3):
        logits = model.refine(model.encode(images), CLICKS, previous).logits
        outputs.append(logits.detach())
        optimizer.zero_grad()
        logits.square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert all(p.grad is None for p in model.host.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.host.state_dict().items())
    assert not torch.equal(outputs[0], outputs[2])
    assert model.injector.gamma.abs().max() > 0  # gated at first, opened by learning


def test_the_hosts_head_learns_when_asked() -> None:
    model, images, previous = make(train_host_head=True).train(), torch.rand(2, 3, 64, 64), torch.rand(2, 1, 64, 64)
    model.refine(model.encode(images), CLICKS, previous).logits.mean().backward()  # type: ignore[no-untyped-call]
    touched = {name.split(".")[0] for name, p in model.host.named_parameters() if p.grad is not None}
    assert touched == {"head"}


def test_scale_fusion_is_deconvolutions_concatenation_and_a_linear_layer() -> None:
    torch.manual_seed(0)
    fusion = ScaleFusion((8, 16, 24, 32), 32)
    maps = [torch.randn(2, channels, 16 >> i, 16 >> i) for i, channels in enumerate((8, 16, 24, 32))]
    each = [last(before(own)) for last, before, own in zip(fusion.last, fusion.before, maps, strict=True)]
    wanted = fusion.merge(torch.cat(each, 1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.allclose(fusion(maps, (16, 16)), wanted, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_deformable_convolution_equals_torchvisions(kernel: int, stride: int) -> None:
    generator = torch.Generator().manual_seed(kernel + stride)
    x = torch.randn(2, 5, 12, 17, generator=generator, requires_grad=True)
    weight = torch.randn(7, 5, kernel, kernel, generator=generator, requires_grad=True)
    bias = torch.randn(7, generator=generator)
    grid = ((12 + stride - 1) // stride, (17 + stride - 1) // stride)
    offset = 3 * torch.randn(2, 2 * kernel * kernel, *grid, generator=generator)
    offset.requires_grad_()
    leaves = (x, weight, offset)
    own = deformable_conv(x, offset, weight, bias, stride)
    theirs = deform_conv2d(x, offset, weight, bias, stride=stride, padding=kernel // 2)
    assert torch.allclose(own, theirs, atol=1e-4)
    gradients = [torch.autograd.grad(out.square().sum(), leaves) for out in (own, theirs)]
    for mine, other in zip(*gradients, strict=True):
        assert torch.allclose(mine, other, rtol=1e-3, atol=1e-2)


def test_a_model_that_gives_no_features_is_refused() -> None:
    with pytest.raises(BadInputError, match="hosts no adapter"):
        create_model("clickadapter-toy-color")
