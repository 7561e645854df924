"""Against numbers made with the official SimpleClick code; skipped where the vectors are not there."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.clicks.encode import clicks_to_points, disks
from pipeline.clicks.simulate import next_click
from pipeline.inference.sampling import CornerAligned
from pipeline.inference.zoom import Roi, click_to_crop, mirror_click, next_roi
from pipeline.masks.boxes import mask_box_xyxy
from pipeline.training.losses import afl, dice, nfl
from schemas.clicks import Click

Vectors = dict[str, NDArray[np.generic]]
ZOOMS = ("small", "mid", "corner", "tall")
CROP = (96, 128)


@pytest.fixture(scope="module")
def vectors(shared_dir: Path) -> Iterator[Vectors]:
    with np.load(shared_dir / "vectors" / "simpleclick_xtiny.npz") as file:
        groups = ("disk/", "clicksim/", "zoom/", "nfl/", "pred/")
        yield {name: file[name] for name in file.files if name.startswith(groups)}


def half_open(inclusive: NDArray[np.generic]) -> Roi:
    """(rmin, rmax, cmin, cmax), inclusive, as the vectors have it, to (y0, x0, y1, x1)."""
    rmin, rmax, cmin, cmax = (int(v) for v in inclusive)
    return rmin, cmin, rmax + 1, cmax + 1


def zoom_clicks(vectors: Vectors) -> list[Click]:
    return [Click(float(c), float(r), bool(s)) for r, c, s in vectors["zoom/in_clicks"].tolist()]


def test_disk_maps_are_equal(vectors: Vectors) -> None:
    maps = disks(torch.from_numpy(vectors["disk/points"]), (64, 80))
    assert np.array_equal(maps.numpy(), vectors["disk/maps"])


def test_simulated_clicks_are_equal(vectors: Vectors) -> None:
    for gt, mask, clicks in zip(
        vectors["clicksim/gt"], vectors["clicksim/pred"], vectors["clicksim/clicks"], strict=True
    ):
        clicked = np.zeros(gt.shape, np.bool_)
        for row, column, is_positive in clicks.tolist():
            assert next_click(gt, mask, clicked) == Click(float(column), float(row), bool(is_positive))
            clicked[row, column] = True


@pytest.mark.parametrize("name", ZOOMS)
def test_rois_are_equal(vectors: Vectors, name: str) -> None:
    previous = vectors[f"zoom/{name}_prev"] > 0
    x0, y0, x1, y1 = mask_box_xyxy(previous)
    expected = half_open(vectors[f"zoom/{name}_roi"])
    assert next_roi(None, (y0, x0, y1, x1), zoom_clicks(vectors), previous.shape) == expected


@pytest.mark.parametrize("name", ZOOMS)
def test_crops_clicks_and_pasted_maps_are_equal(vectors: Vectors, name: str) -> None:
    image, roi, sampling = vectors["zoom/image_u8"], half_open(vectors[f"zoom/{name}_roi"]), CornerAligned()
    crop = sampling.crop_image(image, roi, CROP)
    assert np.abs(crop.numpy() - vectors[f"zoom/{name}_roi_image"]).max() <= 1e-6
    plain = [click_to_crop(click, roi, CROP) for click in zoom_clicks(vectors)]
    mirrored = [mirror_click(click, CROP[1]) for click in plain]
    mapped = np.array([[(c.y, c.x) for c in view] for view in (plain, mirrored)])
    assert np.abs(mapped - vectors[f"zoom/{name}_clicks"]).max() <= 1e-9
    views = vectors[f"zoom/{name}_net_prob"][:, 0]
    merged = ((views[0] + views[1][:, ::-1]) / 2).astype(np.float32)
    pasted = sampling.paste(merged, roi, image.shape[:2])
    assert np.abs(pasted - vectors[f"zoom/{name}_full_prob"][0, 0]).max() <= 1e-6


@pytest.mark.parametrize("step", range(4))
def test_predictor_gives_the_network_the_same_roi_points_and_pixels(vectors: Vectors, step: int) -> None:
    image = vectors["pred/image_u8"]
    size, target = image.shape[:2], tuple(vectors["pred/target_size"].tolist())
    clicks = [Click(float(c), float(r), bool(s)) for r, c, s in vectors["pred/clicks"][: step + 1].tolist()]
    current, box, previous = None, None, np.zeros(size, np.float32)
    if step:
        previous = vectors[f"pred/step{step - 1}_prob"]
        current = half_open(vectors[f"pred/step{step - 1}_roi"])
        if (previous > 0.5).any():
            x0, y0, x1, y1 = mask_box_xyxy(previous > 0.5)
            box = (y0, x0, y1, x1)
    roi = next_roi(current, box, clicks, size)
    assert roi == half_open(vectors[f"pred/step{step}_roi"])
    plain = [click_to_crop(click, roi, target) for click in clicks]
    points = clicks_to_points([plain, [mirror_click(click, target[1]) for click in plain]])
    assert np.abs(points.numpy() - vectors[f"pred/step{step}_net_points"]).max() <= 1e-4
    sampling = CornerAligned()
    pixels = sampling.crop_image(image, roi, target)[0].double().sum((1, 2)).tolist()
    memory = float(sampling.crop_mask(previous, roi, target).sum(dtype=np.float64))
    assert [*pixels, memory] == pytest.approx(vectors[f"pred/step{step}_net_input_sum"][0].tolist(), rel=1e-5)


def test_normalised_focal_loss_and_its_gradient_are_equal(vectors: Vectors) -> None:
    logits = torch.from_numpy(vectors["nfl/logits"]).requires_grad_()
    loss = nfl(logits, torch.from_numpy(vectors["nfl/label"]))
    assert np.abs(loss.detach().numpy() - vectors["nfl/loss"]).max() <= 1e-6
    (gradient,) = torch.autograd.grad(loss.mean(), logits)
    assert np.abs(gradient.numpy() - vectors["nfl/grad"]).max() <= 1e-8


def test_adaptive_focal_loss_is_equal(shared_dir: Path) -> None:
    with np.load(shared_dir / "vectors" / "simpleclick_xtiny.npz") as file:
        logits = torch.from_numpy(file["afl/logits"])[:, None, None].requires_grad_()
        target = torch.from_numpy(file["afl/target"])[:, None, None]
        loss = afl(logits, target).mean()  # summed over the masks, divided by their number
        loss.backward()  # type: ignore[no-untyped-call]
        assert loss.item() == pytest.approx(float(file["afl/loss"]), abs=1e-6)
        assert logits.grad is not None
        assert np.abs(logits.grad[:, 0, 0].numpy() - file["afl/grad"]).max() < 1e-8
        assert dice(logits, target).mean().item() == pytest.approx(float(file["afl/dice"]), abs=1e-6)
