"""Size, cost and structure of fdrn-compact."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models._base import Encoding
from pipeline.models.fdrn import FdrnCompact, GuidanceCode
from pipeline.models.layers.integration import SemanticIntegration
from pipeline.training.objective import ObjectiveConfig, objective
from schemas.clicks import Click


@pytest.fixture(scope="module")
def model() -> FdrnCompact:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return FdrnCompact().eval()


def test_parameters_are_3_to_4_million_and_dense(model: FdrnCompact) -> None:
    assert 3e6 <= sum(p.numel() for p in model.parameters()) <= 4e6
    assert all(layer.groups == 1 for layer in model.modules() if isinstance(layer, nn.Conv2d))


def test_refine_costs_at_most_2_gmac(model: FdrnCompact) -> None:
    encoding = Encoding({"low": torch.zeros(1, 32, 128, 128), "high": torch.zeros(1, 96, 32, 32)})
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.refine(encoding, [[Click(9, 9, True)]], torch.zeros(1, 1, 256, 256), torch.rand(1, 3, 256, 256))
    assert 0.5e9 < counter.get_total_flops() / 2 <= 2e9


def test_encoding_is_small_enough_to_store(model: FdrnCompact) -> None:
    with torch.no_grad():
        encoding = model.encode(torch.rand(1, 3, 96, 128))
    assert encoding["low"].shape == (1, 32, 24, 32)
    assert encoding["high"].shape == (1, 96, 6, 8)
    assert all(value.half().isfinite().all() for value in encoding.tensors.values())


def test_the_last_click_is_told_from_earlier_ones(model: FdrnCompact) -> None:
    clicks = [Click(10, 10, True), Click(40, 50, True)]
    images, previous = torch.rand(1, 3, 64, 64), torch.zeros(1, 1, 64, 64)
    with torch.no_grad():
        encoding = model.encode(images)
        forth = model.refine(encoding, [clicks], previous).logits
        back = model.refine(encoding, [clicks[::-1]], previous).logits
    assert not torch.allclose(forth, back, atol=1e-4)


def test_without_crops_or_image_it_says_so(model: FdrnCompact) -> None:
    encoding = Encoding({"low": torch.zeros(1, 32, 16, 16), "high": torch.zeros(1, 96, 4, 4)})
    with pytest.raises(ValueError, match="crops"):
        model.refine(encoding, [[Click(1, 1, True)]], torch.zeros(1, 1, 64, 64))


def test_guidance_code_is_its_convolutions_in_turn() -> None:
    code = GuidanceCode(12).to(memory_format=torch.channels_last)
    disks, previous = torch.rand(2, 2, 64, 96), torch.rand(2, 1, 64, 96)
    torch.testing.assert_close(code(disks, previous), code.transform(torch.cat([disks, previous], 1)))


def test_attention_sums_to_one_over_what_is_read() -> None:
    features = torch.randn(2, 96, 4, 5)
    ours = SemanticIntegration(96, 64, 8).attention(features)
    printed = SemanticIntegration(96, 64, 8, printed_form=True).attention(features)
    assert torch.allclose(ours.sum(2), torch.ones(2, 20), atol=1e-5)
    assert torch.allclose(printed.sum(1), torch.ones(2, 20), atol=1e-5)


def test_semantic_integration_reads_every_place_alike_when_all_look_alike() -> None:
    layer = SemanticIntegration(96, 64, 8)
    nn.init.zeros_(layer.to_query.weight)
    assert torch.allclose(layer.attention(torch.randn(1, 96, 3, 3)), torch.full((1, 9, 9), 1 / 9), atol=1e-5)


def test_one_image_can_be_learnt_by_heart() -> None:
    torch.manual_seed(0)
    model = FdrnCompact().train()
    image = torch.rand(1, 3, 64, 64) * 0.2
    target = torch.zeros(1, 64, 64, dtype=torch.int8)
    target[:, 16:44, 20:52] = 1
    image[:, 0, 16:44, 20:52] += 0.3
    points = torch.tensor([[[30.0, 36.0, 1.0]]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    best = 0.0
    for _ in range(60):
        logits, coarse, score = model.refine_points(model.encode(image), points, torch.zeros(1, 1, 64, 64), image, None)
        loss, iou = objective(logits, coarse, score, target, ObjectiveConfig())
        best = float(iou)
        if best > 0.95:
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert best > 0.95
