"""AdaptiveClick: size, layers against plain loops, what a query may read, and its candidates."""

import math

import numpy as np
import pytest
import torch

from pipeline.inference.predictor import Predictor
from pipeline.inference.step import MAX_CANDIDATES, distinct_candidates
from pipeline.models import create_model
from pipeline.models.adaptiveclick import AdaptiveClick
from pipeline.models.layers.deformable_attention import DeformableAttention, cell_centres
from pipeline.models.layers.masked_decoder import ClickAwareDecoder
from pipeline.models.layers.positions import sine_positions
from schemas.clicks import Click
from tests.pipeline.models.small import SMALL
from tests.pipeline.scenes import ellipse_scene

BASE_UNUSED = 768 + 768 + 2 * 768 + 768 * 1000 + 1000
"""Class token, its position, fc_norm and the 1000-way head of the official backbone."""


def test_parameters_are_those_of_the_official_model() -> None:
    """MODELS 4.2: 121,886,314 for Base."""
    with torch.device("meta"):
        model = create_model("adaptiveclick-base-448")
    assert sum(p.numel() for p in model.parameters()) + BASE_UNUSED == 121_886_314


def test_positions_begin_with_the_rows_and_count_from_one() -> None:
    positions = sine_positions((3, 5), 8)
    assert positions.shape == (1, 8, 3, 5)
    row, column = 2, 4
    for half, place in ((0, (row + 1) / (3 + 1e-6)), (4, (column + 1) / (5 + 1e-6))):
        for pair in range(2):
            angle = place * 2 * math.pi / 10000 ** (2 * pair / 4)
            assert positions[0, half + 2 * pair, row, column] == pytest.approx(math.sin(angle), abs=1e-5)
            assert positions[0, half + 2 * pair + 1, row, column] == pytest.approx(math.cos(angle), abs=1e-5)


def bilinear(plane: np.ndarray, y: float, x: float) -> np.ndarray:
    """Value at a place in cell indices, zero outside; plane (h, w, C)."""
    total = np.zeros(plane.shape[2])
    y0, x0 = math.floor(y), math.floor(x)
    for row in (y0, y0 + 1):
        for column in (x0, x0 + 1):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row, column]
    return total


def test_deformable_attention_equals_a_plain_loop() -> None:
    torch.manual_seed(3)
    grids, heads, points, dim = [(3, 4), (6, 8)], 2, 3, 8
    layer = DeformableAttention(dim, heads, len(grids), points)
    torch.nn.init.normal_(layer.sampling_offsets.weight)
    torch.nn.init.normal_(layer.attention_weights.weight)
    cells = torch.randn(1, 12 + 48, dim)
    places = cell_centres(grids, cells.device)
    with torch.no_grad():
        got = layer(cells, places, cells, grids)[0].numpy()
        values = layer.value_proj(cells)[0].numpy()
        offsets = layer.sampling_offsets(cells)[0].view(-1, heads, len(grids), points, 2).numpy()
        weights = layer.attention_weights(cells)[0].view(-1, heads, len(grids) * points).softmax(-1).numpy()
    wanted = np.zeros((len(places), dim))
    for query in range(len(places)):
        for head in range(heads):
            channels, begin = slice(4 * head, 4 * head + 4), 0
            for level, (h, w) in enumerate(grids):
                plane = values[begin : begin + h * w, channels].reshape(h, w, 4)
                begin += h * w
                for point in range(points):
                    dx, dy = offsets[query, head, level, point]
                    x, y = float(places[query, 0]) * w + dx - 0.5, float(places[query, 1]) * h + dy - 0.5
                    wanted[query, channels] += weights[query, head, level * points + point] * bilinear(plane, y, x)
    with torch.no_grad():
        projected = layer.output_proj(torch.from_numpy(wanted).float()).numpy()
    assert np.abs(got - projected).max() < 1e-4


def test_a_query_reads_its_mask_and_the_cells_around_positive_clicks() -> None:
    decoder = ClickAwareDecoder(8, 3, 1, 2, 8, 1, 2)
    masks = torch.full((1, 3, 8, 8), -5.0)
    masks[0, 0, :4] = 5.0  # an object, upper half
    masks[0, 1, :, :4] = 5.0  # background, left half
    classes = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])
    clicks = torch.zeros(1, 32, 32)
    clicks[0, 30, 30] = 1.0
    blocked = decoder._blocked((classes, masks), clicks, (8, 8))
    assert blocked.shape == (2, 3, 64)
    free = ~blocked[0].view(3, 8, 8)
    assert free[0, :4].all() and free[0, 7, 7] and not free[0, 5, 2]  # its mask, and the click
    assert free[1, :, :4].all() and not free[1, :, 4:].any()  # no object: clicks do not count
    assert free[2].all()  # an empty mask would leave nothing: everything is read


def test_copies_in_official_files_go_only_where_they_agree() -> None:
    one, other = torch.rand(3), torch.rand(3)
    state = {"pixel_decoder.adapter_1.0.weight": one, "pixel_decoder.lateral_convs.0.0.weight": one.clone(),
             "pixel_decoder.layer_1.0.weight": one, "pixel_decoder.output_convs.0.0.weight": other,
             "criterion.empty_weight": one}  # fmt: skip
    assert set(AdaptiveClick.remap_official(state)) == {
        "pixel_decoder.lateral_convs.0.0.weight", "pixel_decoder.layer_1.0.weight",
        "pixel_decoder.output_convs.0.0.weight",
    }  # fmt: skip


def test_candidates_are_distinct_and_fall_in_score() -> None:
    probabilities = torch.zeros(7, 4, 4)
    probabilities[0, :2] = 1.0
    probabilities[1, :2] = 1.0  # the same as the first
    probabilities[2, :3] = 1.0
    probabilities[3, :1] = 1.0
    probabilities[5, :, :2] = 1.0  # 4 stays empty
    probabilities[6, :, 2:] = 1.0
    scores = torch.tensor([0.1, 0.9, 0.5, 0.8, 0.7, 0.6, 0.2])
    assert distinct_candidates(probabilities, scores) == [0, 3, 5, 2] and MAX_CANDIDATES == 4


@pytest.mark.parametrize("flip", [False, True])
def test_candidates_reach_the_predictor_with_stable_ids(flip: bool) -> None:
    torch.manual_seed(4)
    model = SMALL["adaptiveclick"]().eval()
    predictor = Predictor(model, flip=flip)
    predictor.set_image(ellipse_scene(1)[0])
    first = predictor.click(Click(x=80.0, y=60.0, is_positive=True))
    prediction = predictor._states[-1].prediction
    assert prediction is not None
    count = len(predictor.scores)
    assert 1 <= count <= MAX_CANDIDATES and len(prediction.query_ids) == count == len(prediction.probabilities)
    assert prediction.query_ids[0] == 0 and len(set(prediction.query_ids)) == count
    assert list(predictor.scores[1:]) == sorted(predictor.scores[1:], reverse=True)
    if count > 1:
        assert not np.array_equal(predictor.choose(1), first)


def test_layers_for_the_loss_end_with_what_is_shown() -> None:
    model = SMALL["adaptiveclick"]().eval()
    assert isinstance(model, AdaptiveClick)
    previous, clicks = torch.zeros(2, 1, 64, 64), [[Click(5.0, 5.0, True)], []]
    with torch.no_grad():
        encoding = model.encode(torch.rand(2, 3, 64, 64))
        layers = model.refine_layers(encoding, clicks, previous)
        shown = model.refine(encoding, clicks, previous)
    assert len(layers) == model.config.decoder_layers + 1
    classes, masks = layers[-1]
    assert classes.shape == (2, 5, 2) and masks.shape == (2, 5, 16, 16)
    wanted = (classes[..., 1].sigmoid()[..., None, None] * shown.logits[:, 1:]).sum(1)
    assert torch.allclose(shown.logits[:, 0], wanted, atol=1e-4)
    assert not shown.is_ranked
