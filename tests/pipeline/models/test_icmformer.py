"""iCMFormer: sizes of the official checkpoints, and its layers against independent implementations."""

from pathlib import Path

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerStage
from torch import Tensor

from pipeline.models import convert_checkpoint, create_model, load_model
from pipeline.models._official import OfficialCheckpoint, identify
from pipeline.models.layers.cross_modality import CrossModalityBlock
from pipeline.models.layers.swin import PatchMerging, SwinStage

BASE_UNUSED = 768 + 768 + 2 * 768 + 768 * 1000 + 1000 + 148224 + 37248
"""Class token, its position, fc_norm, the 1000-way head, the two upsampling convolutions of the head."""


@pytest.mark.parametrize(
    ("model_id", "unused", "official"),
    [
        ("icmformer-base-448", BASE_UNUSED, 126_380_841),
        ("icmformer-swin-base-384", 6272 + 256 + 148224 + 37248, 121_459_833),
        ("icmformer-swin-small-224", 4704 + 192 + 83520 + 21024, 68_407_387),
    ],
)
def test_parameters_are_those_of_the_official_checkpoint(model_id: str, unused: int, official: int) -> None:
    """MODELS 3: 126,380,841 for Base; 121.46 and 68.41 M for Swin."""
    with torch.device("meta"):
        model = create_model(model_id)
    assert sum(p.numel() for p in model.parameters()) + unused == official


def test_cross_block_computes_the_parts_that_the_fused_projection_would() -> None:
    torch.manual_seed(1)
    block, clicks, image = CrossModalityBlock(16, 4), torch.randn(2, 6, 16), torch.randn(2, 6, 16)

    def heads(x: Tensor) -> Tensor:
        return x.view(2, 6, 4, 4).transpose(1, 2)

    own = clicks + block.attn1(block.norm1(clicks))
    query = block.attn2.qkv(block.norm2(own))[..., :16]
    key, value = block.attn2.qkv(block.norm2(image))[..., 16:].chunk(2, -1)
    weights = torch.softmax(heads(query) @ heads(key).transpose(2, 3) / 2, -1)
    read = block.attn2.proj((weights @ heads(value)).transpose(1, 2).reshape(2, 6, 16))
    own = own + read
    own = own + block.mlp(block.norm3(own))
    assert torch.allclose(block(clicks, image), own, atol=1e-5)


@pytest.mark.parametrize("grid", [(12, 8), (8, 8)])
def test_swin_stage_equals_timms(grid: tuple[int, int]) -> None:
    torch.manual_seed(2)
    stage = SwinStage(32, 2, 4, 4, [0.0, 0.0], merges=False).eval()
    theirs = SwinTransformerStage(
        32, 32, input_resolution=grid, depth=2, downsample=False, num_heads=4, window_size=4
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.normal_(std=0.3)
    missing = theirs.load_state_dict(stage.state_dict(), strict=False)
    assert not missing.unexpected_keys and all(
        "relative_position_index" in k or "mask" in k for k in missing.missing_keys
    )
    x = torch.randn(2, *grid, 32)
    with torch.no_grad():
        assert torch.allclose(stage(x)[0], theirs(x), atol=1e-4)


def test_swin_takes_grids_that_are_no_multiple_of_the_window() -> None:
    stage = SwinStage(16, 2, 4, 4, [0.0, 0.0], merges=True).eval()
    own, following = stage(torch.randn(1, 7, 9, 16))
    assert own.shape == (1, 7, 9, 16) and following.shape == (1, 4, 5, 32)


def test_patch_merging_takes_neighbours_in_the_official_order() -> None:
    merging = PatchMerging(1)
    merging.norm, merging.reduction = torch.nn.Identity(), torch.nn.Identity()  # type: ignore[assignment]
    x = torch.arange(4.0).view(1, 2, 2, 1)
    assert merging(x).flatten().tolist() == [0.0, 2.0, 1.0, 3.0]  # down the first column, then the second


def test_a_swin_checkpoint_says_its_window() -> None:
    with torch.device("meta"):
        model = create_model("icmformer-swin-small-224", window=7)
    state = dict(model.state_dict())
    state["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    checkpoint = OfficialCheckpoint(Path("m.pth"), model.official_class, state)
    assert identify(checkpoint) == ("icmformer-swin-small-224", {"window": 7})


def test_options_survive_the_conversion(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("icmformer-swin-small-224", window=7)
    torch.save({"state_dict": model.state_dict(), "config": {"class": model.official_class}}, tmp_path / "m.pth")
    assert convert_checkpoint(tmp_path / "m.pth", tmp_path / "m.safetensors") == "icmformer-swin-small-224"
    again = load_model("icmformer-swin-small-224", tmp_path / "m.safetensors")
    assert torch.equal(again.state_dict()["head.conv_seg.weight"], model.state_dict()["head.conv_seg.weight"])
