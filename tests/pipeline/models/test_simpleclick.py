"""SimpleClick's sizes and the details that its papers and code fix."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.models import create_model
from pipeline.models.layers.patch_embed import resize_pos_embed
from pipeline.models.layers.transformer import WindowedBlocks, from_windows, num_windows, to_windows
from schemas.errors import BadInputError


@pytest.mark.parametrize(
    ("model_id", "millions"),
    [("xtiny", 3.72), ("base", 96.46), ("large", 322.18), ("huge", 659.39)],
)
def test_used_parameters_are_those_of_the_paper(model_id: str, millions: float) -> None:
    with torch.device("meta"):
        model = create_model(f"simpleclick-{model_id}-448")
    used = sum(p.numel() for name, p in model.named_parameters() if not name.endswith("pos_embed"))
    assert used / 1e6 == pytest.approx(millions, abs=0.02)


def test_windows_come_back_as_they_were() -> None:
    x = torch.arange(2 * 6 * 8 * 3, dtype=torch.float32).view(2, 48, 3)
    cut = to_windows(x, (6, 8), (2, 4))
    assert cut.shape == (16, 6, 3)
    assert torch.equal(cut[1], x[0].view(6, 8, 3)[0:3, 2:4].reshape(6, 3))
    assert torch.equal(from_windows(cut, (6, 8), (2, 4)), x)


def test_windows_are_as_many_as_fit() -> None:
    assert num_windows((28, 28), 16) == (2, 2) and num_windows((14, 14), 16) == (1, 1)
    assert num_windows((42, 28), 16) == (3, 2) and num_windows((4, 4), 16) == (1, 1)
    with pytest.raises(BadInputError, match="multiples of 224"):
        num_windows((44, 28), 16)  # 3 windows do not share out 44 rows


@pytest.mark.parametrize(("depth", "expected"), [(8, [2, 4, 6, 8]), (12, [6, 12]), (24, [6, 12, 18, 24])])
def test_global_blocks_are_those_of_the_paper(depth: int, expected: list[int]) -> None:
    schedule = WindowedBlocks(depth, 16)
    assert [index + 1 for index in range(depth) if schedule.is_global(index)] == expected


def test_positions_are_resized_once_from_the_trained_grid() -> None:
    positions = torch.rand(1, 16, 5)
    assert resize_pos_embed(positions, (4, 4), (4, 4)) is positions
    wanted = F.interpolate(positions.view(1, 4, 4, 5).permute(0, 3, 1, 2), (6, 8), mode="bicubic")
    assert torch.equal(resize_pos_embed(positions, (4, 4), (6, 8)), wanted.permute(0, 2, 3, 1).reshape(1, 48, 5))
