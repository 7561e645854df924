"""What a model finds by itself: every object once, nothing that is no object."""

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.evaluation.metrics import iou
from pipeline.inference.instance import apply_edit, final_mask, start
from pipeline.inference.step import encode_image
from pipeline.masks.digest import mask_digest
from pipeline.masks.rle import rle_to_mask
from pipeline.models import load_model
from pipeline.models._base import Encoding
from pipeline.prelabels import MAX_AREA, SAME_IOU, find_prelabels, grid_clicks, mean_pooled
from schemas.errors import BadInputError
from schemas.events import normalise_payload
from schemas.predictions import Edit, Prelabels
from schemas.requests import MAX_GRID

SIZE = (160, 200)
DISCS = (((50, 45), 26, (190, 40, 40)), ((145, 50), 30, (40, 60, 190)), ((95, 118), 28, (30, 130, 40)))
"""((x, y), radius, colour)."""


def scene() -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    """Three discs of three colours on grey."""
    picture = np.random.default_rng(0).normal(215, 3, (*SIZE, 3)).clip(0, 255).astype(np.uint8)
    truths = []
    for centre, radius, colour in DISCS:
        mask = np.zeros(SIZE, np.uint8)
        cv2.circle(mask, centre, radius, 1, -1)
        picture[mask > 0] = colour
        truths.append(mask.astype(bool))
    return picture, truths


def found_on(picture: NDArray[np.uint8], grid: int = 6) -> Prelabels:
    model = load_model("toy-color")
    return find_prelabels(model, picture, encode_image(model, picture), grid, sha256="s")


def test_every_disc_is_found_and_none_twice() -> None:
    picture, truths = scene()
    found = found_on(picture)
    masks = [rle_to_mask(own.rle) for own in found.masks]
    for truth in truths:
        assert max(iou(truth, mask) for mask in masks) > 0.8
        assert sum(iou(truth, mask) >= 0.9 for mask in masks) <= 1
    for index, mask in enumerate(masks):  # measured at the crop's size, which moves an IoU a little
        assert all(iou(mask, other) < SAME_IOU + 0.05 for other in masks[index + 1 :])
        own = found.masks[index]
        assert (own.mask_sha256, own.area) == (mask_digest(mask), mask.sum())
        assert mask.mean() < MAX_AREA + 0.05 and mask[int(own.click[1]), int(own.click[0])]
    scores = [own.score for own in found.masks]
    assert scores == sorted(scores, reverse=True)
    assert found.sha256 == "s" and 0 < found.uncertainty < 1 and len(found.feature) == 3
    assert found_on(picture) == found


def test_a_mask_is_that_of_a_persons_first_click() -> None:
    picture, _ = scene()
    model = load_model("toy-color")
    encoding = encode_image(model, picture)
    best = found_on(picture).masks[0]
    payload, digest = normalise_payload("click", {"x": best.click[0], "y": best.click[1], "is_positive": True})
    edit = Edit(kind="click", payload=payload, payload_sha256=digest)
    state = apply_edit(model, picture, encoding, start(picture), edit)
    assert best.mask_sha256 in {
        mask_digest(final_mask(apply_edit(model, picture, encoding, state, choice), SIZE))
        for choice in (
            Edit(kind="candidate", payload={"v": 1, "index": index}, payload_sha256="") for index in range(3)
        )
    }


def test_a_picture_of_nothing_has_no_prelabels() -> None:
    model = load_model("toy-color")
    with torch.no_grad():
        model.get_parameter("place").zero_()  # a click takes all of its colour: the whole picture
    plain = np.full((*SIZE, 3), 128, np.uint8)
    assert find_prelabels(model, plain, encode_image(model, plain), 4).masks == ()


def test_no_grid_gives_only_the_feature() -> None:
    picture, _ = scene()
    found = found_on(picture, grid=0)
    assert (found.masks, found.uncertainty) == ((), 0.0)
    assert found.feature == found_on(picture, grid=1).feature


def test_clicks_lie_in_the_middle_of_equal_cells() -> None:
    assert [(c.x, c.y) for c in grid_clicks((10, 20), 2)] == [(5, 2.5), (15, 2.5), (5, 7.5), (15, 7.5)]
    assert all(0 <= c.x < 3 and 0 <= c.y < 2 for c in grid_clicks((2, 3), MAX_GRID))
    for grid in (0, MAX_GRID + 1):
        with pytest.raises(BadInputError, match=f"1 to {MAX_GRID}"):
            grid_clicks((10, 20), grid)


def test_features_are_means_over_places_in_the_order_of_names() -> None:
    maps = torch.arange(8.0).view(1, 2, 2, 2)
    tokens = torch.tensor([[[1.0, 10.0], [3.0, 30.0]]])
    assert mean_pooled(Encoding({"b": maps, "a": tokens})) == (2.0, 20.0, 1.5, 5.5)
